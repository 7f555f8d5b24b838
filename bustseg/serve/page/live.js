// Shows the server's newest picture, then the next: pictures in between are skipped.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("bustseg-token", given);
  history.replaceState(null, "", location.pathname);
}
const token = given || sessionStorage.getItem("bustseg-token") || "";
const headers = token ? { Authorization: `Bearer ${token}` } : {};
document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);

let held = false;
function hold() {
  held = !held;
  $("pause").setAttribute("aria-pressed", String(held));
}
$("pause").addEventListener("click", hold);
addEventListener("keydown", (event) => { if (event.key === " " && event.target === document.body) { event.preventDefault(); hold(); } });

function show(answer, drawn) {
  const of = (name) => answer.headers.get(name), area = Number(of("X-Area"));
  const rows = [
    ["Frames per second", of("X-Rate")], ["Shown here", drawn.toFixed(1)], ["Dropped", `${of("X-Dropped")} of ${of("X-Read")}`],
    ["Frame to outline", `${of("X-Milliseconds")} ms`], ["Area", area ? `${area} px` : "no lesion"],
    ["Probability of a lesion", of("X-Presence") || "not calibrated"], ["Confidence", of("X-Confidence") || "not calibrated"],
  ];
  $("values").replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  $("flag").hidden = !of("X-Look");
  $("flag").textContent = of("X-Look") ? `Look at this: ${of("X-Look")}` : "";
  canvas.setAttribute("aria-label", area ? `a lesion of ${area} pixels outlined` : "no lesion outlined");
}

async function run() {
  let number = 0;
  const times = [];
  for (;;) {
    if (held) { await new Promise((done) => setTimeout(done, 50)); continue; }
    let answer;
    try {
      answer = await fetch(`/frame?after=${number}`, { headers, cache: "no-store" });
    } catch { $("busy").textContent = "the server does not answer"; return; }
    if (answer.status === 204) continue;
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      $("busy").textContent = answer.status === 401 ? "This server requires a token: open the address that it printed." : body.error || body.detail || "ended";
      return;
    }
    number = Number(answer.headers.get("X-Number"));
    const bitmap = await createImageBitmap(await answer.blob());
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; }
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    $("busy").textContent = "";
    times.push(performance.now());
    while (times[0] < times[times.length - 1] - 2000) times.shift();
    show(answer, times.length > 1 ? 1000 * (times.length - 1) / (times[times.length - 1] - times[0]) : 0);
    document.documentElement.dataset.frames = String(number);
  }
}

const about = await fetch("/about", { headers }).then((answer) => answer.json()).catch(() => ({}));
$("model").textContent = about.model ?? "";
run();
