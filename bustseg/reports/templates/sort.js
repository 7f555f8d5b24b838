const table = document.querySelector('.sortable'), body = table.tBodies[0], pick = document.querySelectorAll('select');
const show = () => {
  for (const row of body.rows) row.hidden = [...pick].some(s => s.value && row.dataset[s.name] !== s.value);
};
pick.forEach(s => s.addEventListener('change', show));
table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const up = head.dataset.up === '1' ? 0 : 1;
  table.querySelectorAll('th').forEach(other => delete other.dataset.up);
  head.dataset.up = up;
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const order = (a, b) => {
    const x = key(a), y = key(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    const gap = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? gap : -gap;
  };
  [...body.rows].sort(order).forEach(row => body.append(row));
}));
show();
