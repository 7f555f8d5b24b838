// From the network's logits to a mask, as in Python, so that the threshold can be changed without the server.
// Pure functions on typed arrays; the tests run them in Node and compare them with Python's.

/** Logits (h, w) at the image's own size (H, W): bilinear with half-pixel centres, edges repeated. */
export function enlarge(logits, [h, w], [H, W]) {
  if (h === H && w === W) return Float32Array.from(logits);
  const out = new Float32Array(H * W);
  const axis = (n, N) => {
    const low = new Int32Array(N), high = new Int32Array(N), part = new Float32Array(N);
    for (let i = 0; i < N; i++) {
      const at = (i + 0.5) * n / N - 0.5;
      const floor = Math.floor(at);
      low[i] = Math.min(Math.max(floor, 0), n - 1);
      high[i] = Math.min(Math.max(floor + 1, 0), n - 1);
      part[i] = at - floor;
    }
    return { low, high, part };
  };
  const rows = axis(h, H), columns = axis(w, W);
  for (let y = 0; y < H; y++) {
    const top = rows.low[y] * w, bottom = rows.high[y] * w, down = rows.part[y];
    for (let x = 0; x < W; x++) {
      const left = columns.low[x], right = columns.high[x], across = columns.part[x];
      const above = logits[top + left] * (1 - across) + logits[top + right] * across;
      const below = logits[bottom + left] * (1 - across) + logits[bottom + right] * across;
      out[y * W + x] = above * (1 - down) + below * down;
    }
  }
  return out;
}

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** Logit above which a probability is above `threshold`. */
export const cut = (threshold) => threshold <= 0 ? -Infinity : threshold >= 1 ? Infinity : Math.log(threshold / (1 - threshold));

/** 8-connected components: their areas, and a map of their numbers from 1 on. */
export function components(mask, [H, W]) {
  const labels = new Int32Array(H * W), areas = [], stack = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    const label = areas.length + 1;
    let area = 0;
    labels[start] = label;
    stack.push(start);
    while (stack.length) {
      const at = stack.pop(), y = Math.floor(at / W), x = at - y * W;
      area++;
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, H - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, W - 1); u++) {
          const next = v * W + u;
          if (mask[next] && !labels[next]) { labels[next] = label; stack.push(next); }
        }
      }
    }
    areas.push(area);
  }
  return { areas, labels };
}

function fillHoles(mask, [H, W]) {
  const outside = new Uint8Array(H * W), stack = [];
  const push = (at) => { if (!mask[at] && !outside[at]) { outside[at] = 1; stack.push(at); } };
  for (let x = 0; x < W; x++) { push(x); push((H - 1) * W + x); }
  for (let y = 0; y < H; y++) { push(y * W); push(y * W + W - 1); }
  while (stack.length) {
    const at = stack.pop(), x = at % W;
    if (x > 0) push(at - 1);
    if (x < W - 1) push(at + 1);
    if (at >= W) push(at - W);
    if (at < (H - 1) * W) push(at + W);
  }
  return outside.map((value) => 1 - value);
}

const keepOnly = (labels, kept) => Uint8Array.from(labels, (label) => label > 0 && kept[label - 1] ? 1 : 0);

/** The mask of enlarged logits at a threshold, after the model's post-processing (bustseg.masks). */
export function maskOf(logits, shape, threshold, settings = {}) {
  const limit = cut(threshold);
  let mask = new Uint8Array(logits.length), any = false;
  for (let i = 0; i < logits.length; i++) if (logits[i] > limit) { mask[i] = 1; any = true; }
  const gap = settings.max_confidence_gap ?? null, peak = settings.min_peak_probability ?? 0;
  const least = settings.min_area_px_relative ?? 0, largest = settings.keep === "largest";
  if (!any) return mask;
  if (gap !== null || peak > 0) {
    const { areas, labels } = components(mask, shape);
    const sums = new Float64Array(areas.length), kept = areas.map(() => false), high = cut(peak);
    for (let i = 0; i < labels.length; i++) {
      if (!labels[i]) continue;
      // probabilities are clipped at 1e-7 before their logits are averaged
      sums[labels[i] - 1] += Math.min(Math.max(logits[i], -16.118), 16.118);
      if (logits[i] >= high) kept[labels[i] - 1] = true;
    }
    const means = areas.map((area, k) => sums[k] / area);
    if (gap !== null) {
      const best = Math.max(...means.filter((_, k) => kept[k]));
      means.forEach((mean, k) => { kept[k] = kept[k] && mean >= best - gap - 1e-9; });
    }
    mask = keepOnly(labels, kept);
  }
  if (settings.fill_holes) mask = fillHoles(mask, shape);
  if (least > 0 || largest) {
    const { areas, labels } = components(mask, shape);
    const kept = areas.map((area) => area >= least * mask.length);
    if (largest && kept.some(Boolean)) {
      const sizes = areas.map((area, k) => kept[k] ? area : 0), best = sizes.indexOf(Math.max(...sizes));
      kept.forEach((_, k) => { kept[k] = k === best; });
    }
    mask = keepOnly(labels, kept);
  }
  return mask;
}

export const area = (mask) => { let sum = 0; for (const value of mask) sum += value; return sum; };

/** Calibrated confidence of a mask (bustseg.deploy.confidence.mask_confidence); null without a temperature. */
export function confidence(mask, logits, temperature) {
  if (!temperature) return null;
  let inside = 0, total = 0, size = 0, highest = 0;
  for (let i = 0; i < mask.length; i++) {
    const p = sigmoid(logits[i] / temperature);
    total += p;
    if (p > highest) highest = p;
    if (mask[i]) { inside += p; size++; }
  }
  return size ? 2 * inside / (total + size) : 1 - highest;
}

/** COCO's uncompressed run lengths: column by column, zeros first. */
export function runLengths(mask, [H, W]) {
  const counts = [];
  let value = 0, run = 0;
  for (let x = 0; x < W; x++) {
    for (let y = 0; y < H; y++) {
      if (mask[y * W + x] === value) run++;
      else { counts.push(run); run = 1; value = 1 - value; }
    }
  }
  counts.push(run);
  return { size: [H, W], counts };
}

export function fromRunLengths({ size: [H, W], counts }) {
  const mask = new Uint8Array(H * W);
  let at = 0;
  counts.forEach((count, index) => {
    if (index % 2) for (let i = at; i < at + count; i++) mask[(i % H) * W + Math.floor(i / H)] = 1;
    at += count;
  });
  return mask;
}

/** Pixels of a mask of run lengths. */
export const areaOf = ({ counts }) => counts.reduce((sum, count, index) => sum + (index % 2 ? count : 0), 0);

/** Borders of a mask along the edges of pixels, as straight lines [x0, y0, x1, y1]. */
export function borders(mask, [H, W]) {
  const lines = [];
  const at = (y, x) => y >= 0 && y < H && x >= 0 && x < W ? mask[y * W + x] : 0;
  for (let y = 0; y <= H; y++) {
    let start = -1;
    for (let x = 0; x <= W; x++) {
      const edge = x < W && at(y - 1, x) !== at(y, x);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) { lines.push([start, y, x, y]); start = -1; }
    }
  }
  for (let x = 0; x <= W; x++) {
    let start = -1;
    for (let y = 0; y <= H; y++) {
      const edge = y < H && at(y, x - 1) !== at(y, x);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) { lines.push([x, start, x, y]); start = -1; }
    }
  }
  return lines;
}

/** Paint a disc, or a stroke of discs from one point to another, with `value`; points are in pixels of the image. */
export function paint(mask, [H, W], from, to, radius, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(radius / 2, 0.5)));
  for (let step = 0; step <= steps; step++) {
    const cx = from[0] + (to[0] - from[0]) * step / steps, cy = from[1] + (to[1] - from[1]) * step / steps;
    for (let y = Math.max(0, Math.floor(cy - radius)); y <= Math.min(H - 1, Math.ceil(cy + radius)); y++) {
      for (let x = Math.max(0, Math.floor(cx - radius)); x <= Math.min(W - 1, Math.ceil(cx + radius)); x++) {
        if (Math.hypot(x + 0.5 - cx, y + 0.5 - cy) <= radius) mask[y * W + x] = value;
      }
    }
  }
}

/** Fill a polygon of points [x, y] with `value`: pixels whose centre lies inside, by the even-odd rule. */
export function fillPolygon(mask, [H, W], points, value) {
  for (let y = 0; y < H; y++) {
    const crossings = [], cy = y + 0.5;
    points.forEach(([x0, y0], i) => {
      const [x1, y1] = points[(i + 1) % points.length];
      if ((y0 <= cy) !== (y1 <= cy)) crossings.push(x0 + (cy - y0) * (x1 - x0) / (y1 - y0));
    });
    crossings.sort((a, b) => a - b);
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      for (let x = Math.max(0, Math.ceil(crossings[k] - 0.5)); x < Math.min(W, crossings[k + 1] - 0.5); x++) mask[y * W + x] = value;
    }
  }
}
