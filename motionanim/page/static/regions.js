// Regions as pictures: drawn over the photo, and asked which region lies under a point.

export const HUES = [200, 28, 130, 300, 55, 250, 0, 165];
const SIDE = 1024; // px, the longest side of a region's picture

export class RegionPictures {
  constructor(drawing) {
    this.drawing = drawing;
    this.made = new Map(); // name -> { key, canvas, alpha }
  }

  hue(name) {
    return HUES[Object.keys(this.drawing.content.regions).indexOf(name) % HUES.length];
  }

  // A canvas with the region in its colour; the parts are drawn in order, erased parts taken away.
  picture(name, parts = this.drawing.content.regions[name]) {
    const { width, height } = this.drawing, hue = name === null ? 55 : this.hue(name);
    const key = `${width}x${height} ${hue} ${JSON.stringify(parts)}`;
    let found = this.made.get(name);
    if (found?.key !== key) {
      found = { key, canvas: draw(parts, width, height, `hsl(${hue} 90% 55%)`), alpha: null };
      this.made.set(name, found);
    }
    return found;
  }

  // Of regions that overlap, the one of the later arrow is on top; regions without arrows lie below.
  at([x, y]) {
    const names = Object.keys(this.drawing.content.regions), used = this.drawing.content.arrows.map((each) => each.region);
    names.sort((a, b) => used.lastIndexOf(b) - used.lastIndexOf(a));
    return names.find((name) => this.holds(name, [x, y])) ?? null;
  }

  holds(name, [x, y]) {
    const found = this.picture(name), { canvas } = found;
    found.alpha ??= canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const shrink = canvas.width / this.drawing.width;
    const column = Math.min(Math.floor((x + 0.5) * shrink), canvas.width - 1), row = Math.min(Math.floor((y + 0.5) * shrink), canvas.height - 1);
    return found.alpha[4 * (row * canvas.width + column) + 3] > 127;
  }
}

function draw(parts, width, height, colour) {
  const shrink = Math.min(1, SIDE / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink)));
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  // Points count from the centre of the first pixel.
  brush.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0.5 * shrink, 0.5 * shrink);
  brush.fillStyle = brush.strokeStyle = colour;
  brush.lineCap = brush.lineJoin = "round";
  for (const part of parts) {
    const line = Array.isArray(part) ? part : part.brush ?? part.erase;
    brush.globalCompositeOperation = part.erase ? "destination-out" : "source-over";
    brush.beginPath();
    line.forEach(([x, y], i) => (i === 0 ? brush.moveTo(x, y) : brush.lineTo(x, y)));
    if (part.radius === undefined) {
      brush.closePath();
      brush.fill();
    } else {
      if (line.length === 1) brush.lineTo(line[0][0] + 1e-3, line[0][1]);
      brush.lineWidth = 2 * part.radius;
      brush.stroke();
    }
  }
  return canvas;
}
