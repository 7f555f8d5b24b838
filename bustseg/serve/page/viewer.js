// The picture with its outline: zoom, pan, window, and the pointer's position in the image.

import { borders } from "./masks.js";

/** Drawn into pictures that leave the page: bustseg.disclaimer.WORDS. */
export const WORDS = "research only, not a medical device";

export const PREDICTION = "#ff9f1c", CORRECTION = "#35d0ff";

// eleven colours of the heat map "inferno", from dark to bright
const HEAT = ["000004", "160b39", "420a68", "6a176e", "932667", "bc3754", "dd513a", "f37819", "fca50a", "f6d746", "fcffa4"]
  .map((hex) => [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16)));

const pathOf = (mask, shape) => {
  const path = new Path2D();
  for (const [x0, y0, x1, y1] of borders(mask, shape)) { path.moveTo(x0, y0); path.lineTo(x1, y1); }
  return path;
};

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.clear();
    new ResizeObserver(() => { if (this.fitted) this.fit(); this.draw(); }).observe(canvas);
  }

  clear() {
    Object.assign(this, {
      shape: null, base: null, grey: null, shown: null, fill: null, outline: null, first: null, heat: null, scale: 1, left: 0, top: 0,
      fitted: true, window: { level: 128, width: 256 }, opacity: 0.25, cursor: null, radius: 8, tool: "pan", points: [], edited: false,
    });
  }

  /** Show another picture; the view is kept if the size is the same. */
  show(bitmap) {
    const same = this.shape && this.shape[0] === bitmap.height && this.shape[1] === bitmap.width;
    this.shape = [bitmap.height, bitmap.width];
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    this.base = context.getImageData(0, 0, bitmap.width, bitmap.height);
    this.shown = new OffscreenCanvas(bitmap.width, bitmap.height);
    this.heat = null;
    this.points = [];
    this.cursor = null;
    this.applyWindow();
    if (!same) this.fit();
  }

  applyWindow() {
    if (!this.base) return;
    const { level, width } = this.window; // DICOM PS3.3 C.11.2.1.2.1, so that 128 and 256 change nothing
    const table = new Uint8ClampedArray(256);
    for (let value = 0; value < 256; value++) table[value] = ((value - level + 0.5) / (width - 1) + 0.5) * 255;
    const image = new ImageData(this.base.width, this.base.height), from = this.base.data, to = image.data;
    for (let i = 0; i < from.length; i += 4) {
      to[i] = table[from[i]]; to[i + 1] = table[from[i + 1]]; to[i + 2] = table[from[i + 2]]; to[i + 3] = 255;
    }
    this.shown.getContext("2d").putImageData(image, 0, 0);
  }

  /** Set the mask, and the network's mask if it is a different one. */
  setMask(mask, predicted, edited) {
    const [H, W] = this.shape, colour = edited ? [53, 208, 255] : [255, 159, 28];
    const image = new ImageData(W, H);
    for (let i = 0; i < mask.length; i++) if (mask[i]) image.data.set([...colour, 255], 4 * i);
    this.fill = new OffscreenCanvas(W, H);
    this.fill.getContext("2d").putImageData(image, 0, 0);
    this.outline = pathOf(mask, this.shape);
    this.first = edited && predicted ? pathOf(predicted, this.shape) : null;
    this.edited = edited;
    this.draw();
  }

  setHeat(bitmap) {
    if (!bitmap) { this.heat = null; this.draw(); return; }
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const image = context.getImageData(0, 0, bitmap.width, bitmap.height);
    for (let i = 0; i < image.data.length; i += 4) {
      const value = image.data[i] / 255, at = Math.min(Math.floor(value * 10), 9), part = value * 10 - at;
      for (let c = 0; c < 3; c++) image.data[i + c] = HEAT[at][c] * (1 - part) + HEAT[at + 1][c] * part;
      image.data[i + 3] = 40 + 140 * value;
    }
    context.putImageData(image, 0, 0);
    this.heat = canvas;
    this.draw();
  }

  fit() {
    if (!this.shape) return;
    const { clientWidth: width, clientHeight: height } = this.canvas, [H, W] = this.shape;
    this.scale = Math.max(0.02, Math.min(width / W, height / H) * 0.98);
    this.left = (width - W * this.scale) / 2;
    this.top = (height - H * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.05), 64);
    this.left = x - (x - this.left) * scale / this.scale;
    this.top = y - (y - this.top) * scale / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) { this.left += dx; this.top += dy; this.fitted = false; this.draw(); }

  /** Image coordinates of a point of the canvas. */
  toImage(x, y) { return [(x - this.left) / this.scale, (y - this.top) / this.scale]; }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.paint(); });
  }

  paint() {
    const ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.canvas, context = this.context;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.shape) return;
    const [H, W] = this.shape;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    context.imageSmoothingEnabled = this.scale < 3;
    context.drawImage(this.shown, 0, 0);
    if (this.heat) { context.imageSmoothingEnabled = true; context.drawImage(this.heat, 0, 0, W, H); }
    context.imageSmoothingEnabled = false;
    if (this.outline && this.opacity > 0) {
      context.globalAlpha = 0.5 * this.opacity;
      context.drawImage(this.fill, 0, 0);
      context.globalAlpha = Math.min(1, 0.7 + this.opacity);
      this.stroke(this.outline, this.edited ? CORRECTION : PREDICTION, 2);
      if (this.first) { context.setLineDash([5 / this.scale, 4 / this.scale]); this.stroke(this.first, PREDICTION, 1.2); context.setLineDash([]); }
      context.globalAlpha = 1;
    }
    if (this.points.length) {
      const path = new Path2D();
      this.points.forEach(([x, y], i) => i ? path.lineTo(x, y) : path.moveTo(x, y));
      if (this.cursor) path.lineTo(...this.cursor);
      this.stroke(path, CORRECTION, 2);
      for (const [x, y] of this.points) { const dot = new Path2D(); dot.arc(x, y, 3 / this.scale, 0, 7); context.fillStyle = CORRECTION; context.fill(dot); }
    }
    if (this.cursor && this.tool !== "pan") {
      const path = new Path2D();
      if (this.tool === "polygon") {
        const reach = 8 / this.scale, [x, y] = this.cursor;
        path.moveTo(x - reach, y); path.lineTo(x + reach, y); path.moveTo(x, y - reach); path.lineTo(x, y + reach);
      } else path.arc(...this.cursor, this.radius, 0, 7);
      this.stroke(path, "#000", 3);
      this.stroke(path, "#fff", 1.4);
    }
  }

  stroke(path, colour, width) {
    this.context.strokeStyle = colour;
    this.context.lineWidth = width / this.scale;
    this.context.stroke(path);
  }

  /** The windowed picture with the outline and the disclaimer, at the image's own size. */
  async overlay() {
    const [H, W] = this.shape, canvas = new OffscreenCanvas(W, H), context = canvas.getContext("2d");
    context.drawImage(this.shown, 0, 0);
    if (this.outline) {
      context.strokeStyle = this.edited ? CORRECTION : PREDICTION;
      context.lineWidth = 2 * Math.max(1, Math.round(Math.min(H, W) / 250)); // half of it on either side of the edge
      context.stroke(this.outline);
    }
    const font = (size) => { context.font = `${size}px sans-serif`; };
    font(100);
    const size = Math.min(Math.max(11, W / 45), 100 * 0.96 * W / context.measureText(WORDS).width);
    font(size);
    Object.assign(context, { lineWidth: size / 4, lineJoin: "round", strokeStyle: "#000", fillStyle: "#fff" });
    context.strokeText(WORDS, 0.02 * W, H - size / 2);
    context.fillText(WORDS, 0.02 * W, H - size / 2);
    return canvas.convertToBlob({ type: "image/png" });
  }
}
