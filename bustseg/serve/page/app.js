// The page: files, one image at a time, corrections, downloads. What it shows of an image is computed from the logits.

import * as api from "./api.js";
import * as masks from "./masks.js";
import { Viewer, WORDS } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const KNOWN = "bustseg-uploads", UNDO_STEPS = 60;
const viewer = new Viewer($("canvas"));

let model = null;
const entries = []; // one for each file
let current = null; // entry that is shown
let playing = null;

// ---------------------------------------------------------------- files

const frameOf = (entry, number = entry.frame) => {
  if (!entry.data.has(number)) entry.data.set(number, { info: null, logits: null, mask: null, predicted: null, edited: false, undo: [], redo: [], edits: 0, saving: false, saved: null, threshold: null, asked: 0 });
  return entry.data.get(number);
};

const newEntry = (name, id = null) => ({ name, id, label: null, frames: 1, dicom: false, frame: 0, data: new Map(), error: "", state: id ? "there" : "waiting", file: null });

// of this tab only: two tabs would remove each other's images
function remember() {
  sessionStorage.setItem(KNOWN, JSON.stringify(entries.filter((entry) => entry.id).map(({ id, name }) => ({ id, name }))));
}

let working = 0;
/** Open files, given as { file, name }. */
async function add(files) {
  const added = files.map(({ file, name }) => Object.assign(newEntry(name), { file }));
  entries.push(...added);
  showList();
  added.forEach((entry) => queue.push(entry));
  while (working < 2 && queue.length) work();
}

const queue = [];
let expired = 0;
async function work() {
  working++;
  while (queue.length) {
    const entry = queue.shift();
    try {
      if (!entry.id) {
        entry.state = "sending";
        showItem(entry);
        await sendFile(entry);
      } else {
        const made = await api.json(`/uploads/${entry.id}`);
        Object.assign(entry, { frames: made.frames, dicom: made.dicom });
      }
      entry.state = "there";
      if (!current && entries.slice(0, entries.indexOf(entry)).every((one) => one.state === "error")) await open(entry);
      else await inform(entry, 0);
      if (entry.frames > 1) informAll(entry);
    } catch (error) {
      if (error.status === 404 && !entry.file) {
        expired++;
        note(`${expired} ${expired > 1 ? "files are" : "file is"} no longer on the server: open ${expired > 1 ? "them" : "it"} again.`);
        if (entries.includes(entry)) entries.splice(entries.indexOf(entry), 1);
        remember();
        showList();
        continue;
      }
      entry.state = "error";
      entry.error = error.message;
    }
    showList();
  }
  working--;
  if (!current && !working) open(entries.find((entry) => entry.state === "there"));
}

async function sendFile(entry) {
  const made = await api.upload(entry.file);
  Object.assign(entry, { id: made.id, frames: made.frames, dicom: made.dicom });
  remember();
}

/** A request for an upload; one that the server no longer has, such as after a restart, is sent again first. */
async function onServer(entry, ask) {
  const { id } = entry;
  try {
    return await ask(`/uploads/${id}`);
  } catch (error) {
    if (error.status !== 404 || !entry.file) throw error;
    // several requests may find it missing at the same time
    if (entry.id === id) await (entry.sending ??= sendFile(entry).finally(() => { entry.sending = null; }));
    return ask(`/uploads/${entry.id}`);
  }
}

async function inform(entry, number) {
  const frame = frameOf(entry, number);
  if (!frame.info) {
    frame.info = await onServer(entry, (where) => api.json(`${where}/${number}`));
    if (model.corrections) frame.saved = await onServer(entry, (where) => api.json(`${where}/${number}/correction`));
  }
  return frame;
}

/** The network's results for every frame of a loop, one after the other, for the strip and the list. */
async function informAll(entry) {
  for (let number = 0; number < entry.frames && entries.includes(entry); number++) {
    try { await inform(entry, number); } catch { return; }
    if (entry === current) showStrip();
    if (number % 10 === 9) showItem(entry);
  }
  showItem(entry);
}

/** The frame of a file to look at first: the least confident, flagged ones first. */
const worst = (entry) => [...entry.data.values()].filter((frame) => frame.info).sort((a, b) =>
  (b.info.look_at_this - a.info.look_at_this) || ((a.info.confidence ?? 1) - (b.info.confidence ?? 1)))[0];

const numberOf = (entry, frame) => [...entry.data].find(([, one]) => one === frame)?.[0] ?? entry.frame;

const isFlagged = (entry) => entry.state === "error" || Boolean(worst(entry)?.info.look_at_this);

function listed() {
  if (!$("look-first").checked) return entries;
  return entries.filter(isFlagged).sort((a, b) => (worst(a)?.info.confidence ?? 1) - (worst(b)?.info.confidence ?? 1));
}

function describe(entry) {
  if (entry.state === "error") return { text: entry.error, kind: "error", mark: "error" };
  const frame = worst(entry);
  if (!frame) return { text: entry.state === "sending" ? "sending …" : entry.state === "there" ? "segmenting …" : "waiting", kind: "", mark: "" };
  const { info } = frame, words = [];
  const states = [...entry.data.values()].map((one) => one.saved?.verdict).filter(Boolean);
  words.push(info.area_px ? `${info.area_px} px` : "no lesion");
  if (info.confidence !== null) words.push(`confidence ${info.confidence.toFixed(2)}`);
  const where = entry.frames > 1 ? `${entry.frames} frames; frame ${numberOf(entry, frame) + 1}: ` : "";
  return {
    text: where + words.join(", ") + (info.look_at_this ? `: ${info.reasons.join(", ")}` : ""), kind: info.look_at_this ? "flagged" : "",
    mark: isUnsaved(entry) ? "edited" : states.length ? states[states.length - 1] : [...entry.data.values()].some((one) => one.edited) ? "edited" : info.look_at_this ? "look" : "",
  };
}

function fillItem(item, entry) {
  const { text, kind, mark } = describe(entry);
  item.replaceChildren();
  for (const [name, content] of [["name", entry.name], ["mark", mark], ["what", text]]) {
    const span = document.createElement("span");
    span.className = name + (name === "mark" ? ` ${mark === "look" || mark === "error" || mark === "edited" ? "flagged" : "done"}` : name === "what" && kind === "error" ? " error" : "");
    span.textContent = content;
    if (name === "name") span.title = content;
    item.append(span);
  }
  item.setAttribute("aria-selected", String(entry === current));
}

function showItem(entry) {
  const item = document.getElementById(`item-${entries.indexOf(entry)}`);
  if (item) fillItem(item, entry);
}

function showList() {
  const shown = listed(), list = $("list");
  list.replaceChildren(...shown.map((entry) => {
    const item = document.createElement("div");
    item.className = "item";
    item.id = `item-${entries.indexOf(entry)}`;
    item.setAttribute("role", "option");
    fillItem(item, entry);
    item.addEventListener("click", () => { open(entry, frameToOpen(entry)); });
    return item;
  }));
  const active = shown.includes(current) ? `item-${entries.indexOf(current)}` : "";
  list.toggleAttribute("aria-activedescendant", false);
  if (active) {
    list.setAttribute("aria-activedescendant", active);
    // the list alone: on a narrow screen the page would scroll away from the picture
    const whole = list.getBoundingClientRect(), own = document.getElementById(active).getBoundingClientRect();
    list.scrollTop += Math.min(0, own.top - whole.top) || Math.max(0, own.bottom - whole.bottom);
  }
  const flagged = entries.filter(isFlagged).length;
  $("count").textContent = entries.length ? `${flagged} of ${entries.length} to look at` : "";
  $("csv").disabled = $("clear").disabled = !entries.length;
  $("drop").hidden = Boolean(current);
  $("drop").style.display = current ? "none" : "";
}

/** The frame that is shown when a file is opened: of those to look at first, the one that they are listed for. */
const frameToOpen = (entry) => $("look-first").checked && entry !== current ? numberOf(entry, worst(entry)) : entry.frame;

function step(by) {
  const shown = listed();
  if (!shown.length) return;
  const at = shown.indexOf(current), entry = shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)];
  open(entry, frameToOpen(entry));
}

// ---------------------------------------------------------------- one image

let showing = 0; // an image that is still loading when another is opened is not shown any more
async function open(entry, number = entry.frame) {
  if (entry?.state === "error") { say(entry.error); return; }
  if (!entry?.id) return;
  if (current && (held || stroke === "paint")) { held = false; stroke = null; changed(); } // it ends with its image
  const ticket = ++showing, start = performance.now();
  current = entry;
  entry.frame = number;
  say("loading …");
  try {
    const frame = frameOf(entry, number);
    const [bitmap] = await Promise.all([
      onServer(entry, (where) => api.picture(`${where}/${number}/picture`)),
      inform(entry, number),
      frame.logits ? null : onServer(entry, (where) => api.logits(`${where}/${number}/logits`)).then((answer) => { frame.small = answer; }),
    ]);
    if (ticket !== showing) return;
    const shape = [frame.info.height, frame.info.width];
    if (!frame.logits) frame.logits = masks.enlarge(frame.small.values, frame.small.size, shape);
    frame.small = null;
    frame.threshold ??= model.threshold;
    if (!frame.predicted) predict(frame);
    if (!frame.mask) {
      frame.mask = frame.saved && frame.saved.verdict !== "rejected" ? masks.fromRunLengths(frame.saved.rle) : frame.predicted.slice();
      frame.edited = differs(frame.mask, frame.predicted);
    }
    viewer.show(bitmap);
    forget(entry, number);
    $("heat").checked = false;
    show();
    say("");
    performance.measure("outline", { start, end: performance.now() });
  } catch (error) {
    if (ticket === showing) say(error.message);
  }
  showList();
}

/** Drop data of distant frames that can be fetched again, so that a long loop does not fill the memory. */
function forget(entry, number) {
  for (const other of entries) {
    for (const [k, frame] of other.data) {
      const near = other === entry && Math.abs(k - number) < 8;
      const moved = frame.threshold !== null && frame.threshold !== model.threshold; // a DICOM SEG takes its mask
      if (near || frame.edited || frame.undo.length || moved) continue;
      frame.logits = frame.predicted = frame.mask = null;
    }
  }
}

const shapeOf = (frame) => [frame.info.height, frame.info.width];
const differs = (a, b) => a.some((value, i) => value !== b[i]);

function predict(frame) {
  frame.predicted = masks.maskOf(frame.logits, shapeOf(frame), frame.threshold, model.postprocess);
}

const shownFrame = () => current && current.data.get(current.frame);
const ready = () => Boolean(shownFrame()?.mask && viewer.shape);

function show() {
  const frame = shownFrame(), entry = current;
  viewer.setMask(frame.mask, frame.predicted, frame.edited);
  $("threshold").value = frame.threshold;
  $("threshold-text").textContent = frame.threshold.toFixed(2);
  $("loop").hidden = entry.frames === 1;
  if (entry.frames > 1) {
    $("frame").max = entry.frames - 1;
    $("frame").value = entry.frame;
    $("frame-text").textContent = `${entry.frame + 1} of ${entry.frames}`;
    showStrip();
  }
  for (const id of ["save-mask", "save-overlay", "heat"]) $(id).disabled = false;
  $("save-seg").disabled = !entry.dicom;
  $("accept").disabled = $("reject").disabled = !model.corrections;
  $("label").value = entry.label ?? frame.saved?.label ?? "unknown";
  showValues();
  showEdits();
}

function showEdits() {
  const frame = shownFrame();
  $("undo").disabled = !frame?.undo.length;
  $("redo").disabled = !frame?.redo.length;
  const changed = frame && (frame.edited || frame.threshold !== model.threshold);
  $("reset").disabled = !changed;
  $("accept").firstChild.textContent = changed ? "Save correction " : "Accept ";
  if (!model.corrections) $("saved").textContent = "Start the server with --corrections DIR to save.";
  else if (frame?.saved) {
    const { verdict, who, when, changed_px: px } = frame.saved;
    $("saved").textContent = `${frame.undo.length ? "Changed since it was saved" : "Saved"}: ${verdict}${who ? ` by ${who}` : ""}, ${px} px changed, ${new Date(when).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" })}`;
  } else $("saved").textContent = "Not saved yet.";
}

function showValues() {
  const frame = shownFrame(), { info } = frame, size = masks.area(frame.mask);
  const spacing = info.spacing, trust = masks.confidence(frame.mask, frame.logits, model.temperature);
  const rows = [
    ["Lesion", size ? "outlined" : "none"],
    ["Probability of a lesion", info.presence === null ? "not calibrated" : info.presence.toFixed(2)],
    ["Highest of a pixel", info.lesion_probability.toFixed(3)],
    [frame.edited ? "Confidence (yours)" : "Confidence", trust === null ? "not calibrated" : trust.toFixed(2)],
    ["Area", `${size} px`],
    ["Area in mm²", spacing ? `${(size * spacing[0] * spacing[1]).toFixed(1)} mm²` : "unknown"],
    ["Components", masks.components(frame.mask, shapeOf(frame)).areas.length],
    ["Size", `${info.width} × ${info.height}`],
  ];
  $("values").replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  $("flag").hidden = !info.look_at_this;
  $("flag").textContent = info.look_at_this ? `Look at this: ${info.reasons.join(", ")}` : "";
  const what = size ? `a lesion of ${size} pixels outlined` : "no lesion outlined";
  $("canvas").setAttribute("aria-label", `${current.name}${current.frames > 1 ? `, frame ${current.frame + 1}` : ""}: ${what}${info.look_at_this ? `; look at this: ${info.reasons.join(", ")}` : ""}`);
}

function showStrip() {
  const strip = $("strip"), context = strip.getContext("2d"), entry = current, width = strip.width = strip.clientWidth || 600;
  context.clearRect(0, 0, width, 10);
  const step = width / entry.frames, most = Math.max(1, ...[...entry.data.values()].map((frame) => frame.info?.area_px ?? 0));
  for (const [k, frame] of entry.data) {
    if (!frame.info) continue;
    context.globalAlpha = 1;
    context.fillStyle = frame.info.look_at_this ? "#d9480f" : "#2b8a3e";
    context.fillRect(k * step, 7, Math.max(step, 1), 3);
    context.fillStyle = "#ff9f1c";
    context.globalAlpha = frame.info.area_px / most;
    context.fillRect(k * step, 0, Math.max(step, 1), 6);
  }
  context.globalAlpha = 1;
  context.fillStyle = "#1c7ed6";
  context.fillRect(entry.frame * step, 0, Math.max(step, 2), 10);
}

/** What was left out of the list, below it. */
const note = (text) => { $("note").textContent = text; };

const say = (text) => { $("busy").textContent = text; };

// ---------------------------------------------------------------- correct

function begin() {
  const frame = shownFrame();
  frame.edits++;
  frame.undo.push(frame.mask.slice());
  if (frame.undo.length > UNDO_STEPS) frame.undo.shift();
  frame.redo.length = 0;
}

function changed() {
  const frame = shownFrame();
  frame.edited = differs(frame.mask, frame.predicted);
  viewer.setMask(frame.mask, frame.predicted, frame.edited);
  showValues();
  showEdits();
}

function travel(from, to) {
  const frame = shownFrame();
  if (!ready() || !frame[from].length) return;
  frame.edits++;
  frame[to].push(frame.mask);
  frame.mask = frame[from].pop();
  changed();
  showItem(current);
}

function reset() {
  if (!ready()) return;
  const frame = shownFrame();
  if (frame.edited) {
    begin();
    frame.mask = frame.predicted.slice();
    changed();
  }
  if (frame.threshold !== model.threshold) setThreshold(model.threshold);
  showItem(current);
}

function dab(from, to) {
  const frame = shownFrame();
  masks.paint(frame.mask, shapeOf(frame), from, to, viewer.radius, viewer.tool === "brush" ? 1 : 0);
  frame.edited = true;
  viewer.setMask(frame.mask, frame.predicted, true);
}

function closePolygon() {
  if (viewer.points.length > 2) {
    begin();
    masks.fillPolygon(shownFrame().mask, shapeOf(shownFrame()), viewer.points, 1);
    viewer.points = [];
    changed();
    showItem(current);
  } else { viewer.points = []; viewer.draw(); }
}

function choose(tool) {
  viewer.tool = tool;
  viewer.points = [];
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  $("canvas").style.cursor = tool === "pan" ? "grab" : "none";
  if (tool !== "pan" && viewer.shape && !viewer.cursor) viewer.cursor = [viewer.shape[1] / 2, viewer.shape[0] / 2];
  viewer.draw();
}

/** A correction must not be lost because the server is being restarted. */
async function patiently(work) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (error.status !== 0 || attempt >= 30) throw error;
      say("the server does not answer: trying again …");
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

async function save(verdict) {
  const frame = shownFrame(), entry = current, number = entry?.frame;
  if (!ready() || !model.corrections || frame.saving) return;
  let no_text = !frame.info.may_name_patient;
  if (!no_text && verdict !== "rejected" && !(no_text = confirm("Text in this picture may name the patient, and the picture would be saved with the correction. Is it free of names?"))) return;
  if (verdict !== "rejected") verdict = differs(frame.mask, masks.maskOf(frame.logits, shapeOf(frame), model.threshold, model.postprocess)) ? "corrected" : "accepted";
  say("saving …");
  frame.saving = true;
  const { edits } = frame;
  try {
    const content = { verdict, rle: masks.runLengths(frame.mask, shapeOf(frame)), who: $("who").value, label: $("label").value, no_text };
    const answer = await patiently(() => onServer(entry, (where) => api.send(`${where}/${number}/correction`, content)));
    frame.saved = await answer.json();
    if (frame.edits === edits) frame.undo.length = frame.redo.length = 0; // else it was painted on meanwhile
    say("");
    if (frame === shownFrame()) showEdits();
    showList();
  } catch (error) { say(error.message); } finally { frame.saving = false; }
}

// ---------------------------------------------------------------- downloads

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = (ofFrame = true) => current.name.replace(/.*\//, "").replace(/\.[^.]*$/, "") + (ofFrame && current.frames > 1 ? `_frame${current.frame}` : "");

async function saveMask() {
  if (!ready()) return;
  const frame = shownFrame(), { info } = frame, [H, W] = shapeOf(frame);
  const canvas = new OffscreenCanvas(info.picture_width, info.picture_height), context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const image = new ImageData(W, H);
  for (let i = 0; i < frame.mask.length; i++) image.data.set(frame.mask[i] ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * i);
  context.putImageData(image, info.box ? info.box[1] : 0, info.box ? info.box[0] : 0);
  download(await canvas.convertToBlob({ type: "image/png" }), `${stem()}_mask.png`);
}

const quoted = (value) => {
  const text = String(value ?? "");
  // a spreadsheet would treat a cell that begins like a formula as one
  return `"${(/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text).replaceAll('"', '""')}"`;
};

/** The annotator's mask of a frame, also one saved before a reload, as run lengths; null if there is none. */
function correctionOf(frame) {
  if (frame.mask && frame.edited) return masks.runLengths(frame.mask, shapeOf(frame));
  return !frame.mask && frame.saved?.verdict === "corrected" ? frame.saved.rle : null;
}

function saveTable() {
  const columns = ["image", "frame", "width", "height", "area_px", "area_mm2", "components", "presence", "lesion_probability", "confidence", "threshold", "look_at_this", "reason", "verdict", "corrected_area_px", "model", "error", "notice"];
  const rows = [columns];
  for (const entry of entries) {
    if (entry.state === "error") rows.push([entry.name, ...Array(columns.length - 3).fill(""), entry.error, WORDS]);
    for (const [number, frame] of [...entry.data].sort((a, b) => a[0] - b[0])) {
      const { info, saved } = frame, own = correctionOf(frame);
      if (!info) continue;
      rows.push([entry.name, entry.frames > 1 ? number : "", info.width, info.height, info.area_px, info.area_mm2 ?? "", info.components, info.presence ?? "", info.lesion_probability,
        info.confidence ?? "", info.threshold, Number(info.look_at_this), info.reasons.join("; "), saved?.verdict ?? "", own ? masks.areaOf(own) : "", model.digest.slice(0, 12), "", WORDS]);
    }
  }
  download(new Blob([rows.map((row) => row.map(quoted).join(",")).join("\n"), "\n"], { type: "text/csv" }), "bustseg.csv");
}

async function saveSeg() {
  if (!ready() || !current.dicom) return;
  const entry = current, name = `${stem(false)}_seg.dcm`, wanted = { masks: [] };
  say("writing the DICOM SEG …");
  try {
    for (let number = 0; number < entry.frames; number++) {
      const frame = await inform(entry, number); // so that corrections saved before a reload are known
      const moved = frame.mask && frame.threshold !== model.threshold;
      const rle = correctionOf(frame) ?? (moved ? masks.runLengths(frame.mask, shapeOf(frame)) : null);
      if (rle) wanted.masks.push({ frame: number, rle });
    }
    const answer = await onServer(entry, (where) => api.send(`${where}/segmentation`, wanted));
    download(await answer.blob(), name);
    say("");
  } catch (error) { say(error.message); }
}

// ---------------------------------------------------------------- pointer

const canvas = $("canvas");
const pointers = new Map();
let stroke = null;
const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

canvas.addEventListener("pointerdown", (event) => {
  if (!ready()) return;
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  const at = viewer.toImage(...place(event));
  if (pointers.size === 2) { // two fingers zoom and move with any tool
    if (stroke === "paint") travel("undo", "redo");
    stroke = "pinch";
  } else if (event.button === 2) stroke = "window";
  else if (event.button === 1 || viewer.tool === "pan") stroke = "pan";
  else if (viewer.tool === "polygon") {
    const first = viewer.points[0];
    if (first && viewer.points.length > 2 && Math.hypot(at[0] - first[0], at[1] - first[1]) * viewer.scale < 9) closePolygon();
    else { viewer.points.push(at); viewer.cursor = at; viewer.draw(); }
    stroke = null;
  } else { begin(); stroke = "paint"; viewer.cursor = at; dab(at, at); }
});

canvas.addEventListener("pointermove", (event) => {
  if (!viewer.shape) return;
  const now = place(event), before = pointers.get(event.pointerId);
  const [x, y] = viewer.toImage(...now), old = viewer.cursor;
  if (viewer.tool !== "pan") { viewer.cursor = [x, y]; viewer.draw(); }
  if (!before) return;
  if (stroke === "pan") viewer.pan(now[0] - before[0], now[1] - before[1]);
  if (stroke === "paint") dab(old, [x, y]);
  if (stroke === "window") {
    setWindow(viewer.window.level - (now[1] - before[1]) / 2, viewer.window.width + now[0] - before[0]);
  }
  if (stroke === "pinch" && pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const gap = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    viewer.zoom(gap(now, other) / gap(before, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    viewer.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }
  pointers.set(event.pointerId, now);
});

for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    if (stroke === "paint") { changed(); showItem(current); }
    if (!pointers.size) stroke = null;
  });
}
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("dblclick", () => { if (viewer.tool === "polygon") closePolygon(); });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  viewer.zoom(Math.exp(-event.deltaY / 400), ...place(event));
}, { passive: false });

// ---------------------------------------------------------------- controls

function setWindow(level, width) {
  viewer.window = { level: Math.min(Math.max(level, 0), 255), width: Math.min(Math.max(width, 2), 512) };
  $("level").value = viewer.window.level;
  $("width").value = viewer.window.width;
  $("level-text").textContent = Math.round(viewer.window.level);
  $("width-text").textContent = Math.round(viewer.window.width);
  viewer.applyWindow();
  viewer.draw();
}
$("level").addEventListener("input", () => setWindow(Number($("level").value), viewer.window.width));
$("width").addEventListener("input", () => setWindow(viewer.window.level, Number($("width").value)));

function setThreshold(value) {
  const frame = shownFrame();
  $("threshold").value = value;
  $("threshold-text").textContent = value.toFixed(2);
  if (!ready()) return;
  frame.threshold = value;
  predict(frame);
  // an edited mask is the annotator's: the threshold changes only the network's mask
  if (!frame.edited) frame.mask = frame.predicted.slice();
  frame.edited = differs(frame.mask, frame.predicted);
  viewer.setMask(frame.mask, frame.predicted, frame.edited);
  showValues();
  showEdits();
  clearTimeout(frame.asked);
  const entry = current, number = entry.frame; // another image may be shown when the answer comes
  frame.asked = setTimeout(async () => { // only the reasons of the flag come from the server
    try {
      const info = await onServer(entry, (where) => api.json(`${where}/${number}?threshold=${value}`));
      if (frame.threshold !== value) return; // moved on meanwhile
      frame.info = info;
      if (frame === shownFrame()) showValues();
      showItem(entry);
    } catch { /* keep the values that are shown */ }
  }, 400);
}
$("threshold").addEventListener("input", () => setThreshold(Number($("threshold").value)));
$("opacity").addEventListener("input", () => {
  viewer.opacity = $("opacity").value / 100;
  $("opacity-text").textContent = `${$("opacity").value} %`;
  viewer.draw();
});
$("radius").addEventListener("input", () => { viewer.radius = Number($("radius").value); viewer.draw(); });
$("heat").addEventListener("change", async () => {
  if (!$("heat").checked || !ready()) { viewer.setHeat(null); return; }
  const ticket = showing;
  say("explaining …");
  try {
    const number = current.frame, bitmap = await onServer(current, (where) => api.picture(`${where}/${number}/heat`));
    if (ticket === showing && $("heat").checked) viewer.setHeat(bitmap);
    say("");
  } catch (error) { $("heat").checked = false; say(error.message); }
});

for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool));
const clicks = {
  "undo": () => travel("undo", "redo"), "redo": () => travel("redo", "undo"), "reset": reset, "fit": () => viewer.fit(),
  "zoom-in": () => viewer.zoom(1.25), "zoom-out": () => viewer.zoom(0.8), "accept": () => save("accepted"), "reject": () => save("rejected"),
  "save-mask": saveMask, "csv": saveTable, "save-seg": saveSeg, "open": () => $("picker").click(), "open-folder": () => $("folder-picker").click(),
  "keys": () => $("help").showModal(), "theme": () => setTheme(!document.documentElement.classList.contains("dark")), "play": play,
  "save-overlay": async () => { if (ready()) download(await viewer.overlay(), `${stem()}_overlay.png`); },
  "clear": closeAll,
};
for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
for (const id of ["picker", "folder-picker"]) $(id).addEventListener("change", async () => {
  const chosen = [...$(id).files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  $(id).value = "";
  add(id === "picker" ? chosen : await imagesOf(chosen));
});
$("canvas").addEventListener("click", () => { if (!current) $("picker").click(); });
$("look-first").addEventListener("change", showList);
$("label").addEventListener("change", () => { if (current) current.label = $("label").value; }); // of all frames of a file
$("frame").addEventListener("input", () => open(current, Number($("frame").value)));
$("who").addEventListener("change", () => localStorage.setItem("bustseg-who", $("who").value));

async function play() {
  playing = playing ? null : {};
  $("play").setAttribute("aria-pressed", String(Boolean(playing)));
  const ticket = playing, entry = current;
  while (ticket && ticket === playing && entry === current && entry) {
    const start = performance.now();
    await open(entry, (entry.frame + 1) % entry.frames);
    await new Promise((done) => setTimeout(done, Math.max(0, 66 - (performance.now() - start))));
  }
  if (ticket === playing) { playing = null; $("play").setAttribute("aria-pressed", "false"); }
}

async function closeAll() {
  if (unsaved() && !confirm("Corrections that are not saved would be lost. Close all images?")) return;
  showing++;
  const old = entries.splice(0);
  queue.length = 0;
  current = null;
  viewer.clear();
  viewer.draw();
  choose("pan");
  $("canvas").setAttribute("aria-label", "No image");
  $("values").replaceChildren();
  $("flag").hidden = $("loop").hidden = true;
  for (const id of ["save-mask", "save-overlay", "save-seg", "accept", "reject", "heat", "undo", "redo", "reset"]) $(id).disabled = true;
  $("saved").textContent = "";
  note("");
  remember();
  showList();
  await Promise.allSettled(old.filter((entry) => entry.id).map((entry) => api.ask(`/uploads/${entry.id}`, { method: "DELETE" })));
}

const isUnsaved = (entry) => [...entry.data.values()].some((frame) => frame.undo.length);
const unsaved = () => entries.some(isUnsaved);
addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

// ---------------------------------------------------------------- drop

const stage = document.body;
for (const name of ["dragenter", "dragover"]) stage.addEventListener(name, (event) => { event.preventDefault(); $("drop").style.display = ""; $("drop").classList.add("over"); });
stage.addEventListener("dragleave", (event) => { if (!event.relatedTarget) { $("drop").classList.remove("over"); showList(); } });
stage.addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const dropped = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const loose = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
  const files = dropped.length ? (await Promise.all(dropped.filter((one) => one.isFile).map(filesOf))).flat() : loose;
  const inside = (await Promise.all(dropped.filter((one) => one.isDirectory).map(filesOf))).flat();
  add([...files, ...(inside.length ? await imagesOf(inside) : [])]);
  showList();
});

/** The files of a dropped file or folder, as { file, name }; what the browser cannot read is left out. */
async function filesOf(entry) {
  try {
    if (entry.isFile) return [{ file: await new Promise((done, failed) => entry.file(done, failed)), name: entry.fullPath.replace(/^\//, "") }];
    const reader = entry.createReader(), found = [];
    for (;;) { // a reader returns at most a hundred entries at a time
      const part = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!part.length) break;
      found.push(...part);
    }
    found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    return (await Promise.all(found.map(filesOf))).flat();
  } catch { return []; }
}

/** The images of a folder by the rules of `bustseg predict`: no masks beside their image, hidden or other files. */
async function imagesOf(found) {
  const inOrder = found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const stems = new Set(inOrder.map(({ name }) => name.replace(/\.[^./]*$/, "").toLowerCase()));
  const kept = [], left = { "masks beside their image": 0, "other files": 0 };
  for (const one of inOrder) {
    if (/(^|\/)(\.|__macosx\/|thumbs\.db$|desktop\.ini$)/i.test(one.name)) continue;
    const image = one.name.replace(/\.[^./]*$/, "").toLowerCase().match(/^(.*[^/])_mask(_\d+)?$/)?.[1];
    if (image && stems.has(image)) left["masks beside their image"]++;
    else if (/\.(png|jpe?g|tiff?|bmp|mp4|m4v|mov|avi|mkv|webm)$/i.test(one.name) || await isDicom(one.file)) kept.push(one);
    else left["other files"]++;
  }
  const words = Object.entries(left).filter(([, number]) => number).map(([kind, number]) => `${number} ${kind}`);
  note(words.length ? `Left out of the folder: ${words.join(", ")}.` : "");
  return kept;
}

const isDicom = (file) => file.slice(128, 132).text().then((mark) => mark === "DICM", () => false);

// ---------------------------------------------------------------- keyboard

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function move([dx, dy], far) {
  if (!ready()) return;
  if (viewer.tool === "pan") { viewer.pan(-dx * (far ? 80 : 20), -dy * (far ? 80 : 20)); return; }
  const by = far ? 10 : 1, [H, W] = viewer.shape, [x, y] = viewer.cursor ?? [W / 2, H / 2];
  const next = [Math.min(Math.max(x + dx * by, 0), W), Math.min(Math.max(y + dy * by, 0), H)];
  if (held && viewer.tool !== "polygon") dab([x, y], next);
  viewer.cursor = next;
  viewer.draw();
}

let held = false;
function press() {
  if (!ready() || viewer.tool === "pan") return;
  viewer.cursor ??= [viewer.shape[1] / 2, viewer.shape[0] / 2];
  if (viewer.tool === "polygon") { viewer.points.push([...viewer.cursor]); viewer.draw(); return; }
  if (!held) { begin(); held = true; }
  dab(viewer.cursor, viewer.cursor);
}

const letters = {
  "o": () => $("picker").click(), "j": () => step(1), "n": () => step(1), "N": () => step(-1), "v": () => choose("pan"), "b": () => choose("brush"), "e": () => choose("eraser"),
  "p": () => choose("polygon"), "[": () => size(-1), "]": () => size(1), "+": () => viewer.zoom(1.25), "=": () => viewer.zoom(1.25), "-": () => viewer.zoom(0.8),
  "0": () => viewer.fit(), "t": () => $("threshold").focus(), "a": () => save("accepted"), "x": () => save("rejected"), "m": saveMask, "?": () => $("help").showModal(),
  "g": () => { if (!$("heat").disabled) $("heat").click(); }, "l": () => $("look-first").click(), "w": () => $("level").focus(),
  ",": () => { if (current?.frames > 1) open(current, Math.max(0, current.frame - 1)); }, ".": () => { if (current?.frames > 1) open(current, Math.min(current.frames - 1, current.frame + 1)); },
  "k": () => { if (current?.frames > 1) play(); }, "Escape": () => { viewer.points = []; viewer.draw(); }, "h": () => hide(true),
};
const size = (by) => { $("radius").value = viewer.radius + by; viewer.radius = Number($("radius").value); viewer.draw(); };
let hidden = null;
function hide(on) {
  if (on && hidden === null) { hidden = viewer.opacity; viewer.opacity = 0; }
  if (!on && hidden !== null) { viewer.opacity = hidden; hidden = null; }
  viewer.draw();
}

addEventListener("keydown", (event) => {
  const inText = event.target.matches("input[type=text], select"), onSlider = event.target.matches("input[type=range]");
  if ($("help").open || inText) return;
  if ((event.ctrlKey || event.metaKey) && !event.altKey) {
    const key = event.key.toLowerCase();
    if (key === "z") { event.preventDefault(); if (event.shiftKey) travel("redo", "undo"); else travel("undo", "redo"); }
    if (key === "y") { event.preventDefault(); travel("redo", "undo"); }
    return;
  }
  if (event.altKey) return;
  if (event.target === $("list") && ["ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
    event.preventDefault();
    step({ ArrowUp: -1, ArrowDown: 1, Home: -entries.length, End: entries.length }[event.key]);
    return;
  }
  if (event.target === canvas) {
    if (ARROWS[event.key]) { event.preventDefault(); move(ARROWS[event.key], event.shiftKey); return; }
    if (event.key === " ") { event.preventDefault(); press(); return; }
    if (event.key === "Enter" && viewer.tool === "polygon") { event.preventDefault(); closePolygon(); return; }
  }
  const group = event.target.closest?.("[role=radiogroup]");
  if (group && ARROWS[event.key]) { // like radio buttons
    event.preventDefault();
    const buttons = [...group.querySelectorAll("button")], by = ARROWS[event.key][0] + ARROWS[event.key][1];
    const next = buttons[(buttons.indexOf(event.target) + by + buttons.length) % buttons.length];
    next.focus();
    choose(next.dataset.tool);
    return;
  }
  if (onSlider && (ARROWS[event.key] || ["Home", "End", "PageUp", "PageDown"].includes(event.key))) return;
  if (event.repeat && /^[axmoglk?]$/i.test(event.key)) return; // once for each press
  const action = letters[event.key] ?? (event.key.length === 1 && event.key !== "N" ? letters[event.key.toLowerCase()] : null);
  if (action) { event.preventDefault(); action(); }
});
addEventListener("keyup", (event) => {
  if (event.key === " " && held) { held = false; changed(); showItem(current); }
  if (event.key.toLowerCase() === "h") hide(false);
});
addEventListener("blur", () => hide(false));

// ---------------------------------------------------------------- start

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").setAttribute("aria-pressed", String(dark));
  localStorage.setItem("bustseg-theme", dark ? "dark" : "light");
}

async function start() {
  const chosen = localStorage.getItem("bustseg-theme");
  document.documentElement.classList.toggle("dark", chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  $("theme").setAttribute("aria-pressed", String(document.documentElement.classList.contains("dark")));
  $("who").value = localStorage.getItem("bustseg-who") ?? "";
  api.takeToken();
  try {
    model = await api.json("/model");
  } catch (error) {
    say(error.status === 401 ? "This server requires a token: open the address that it printed." : error.message);
    return;
  }
  $("model").textContent = `${model.name}, ${model.digest.slice(0, 12)}`;
  $("heat-name").textContent = model.explanation === "Occlusion" ? "Heat map (occlusion, slow)" : `Heat map (${model.explanation})`;
  $("threshold").value = model.threshold;
  $("threshold-text").textContent = model.threshold.toFixed(2);
  const known = JSON.parse(sessionStorage.getItem(KNOWN) ?? "[]").map(({ id, name }) => newEntry(name, id));
  entries.push(...known);
  queue.push(...known);
  showList();
  if (known.length) work();
  document.documentElement.dataset.ready = "true";
}

start();
