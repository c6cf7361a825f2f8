// The motion of the drawing as the server computes it, asked for again while one draws; never two questions at a time.

import * as api from "./api.js";

export class Field extends EventTarget {
  constructor({ question, tell, view }) {
    super();
    Object.assign(this, { question, tell, view, current: null, asking: false, stale: false, wrong: false });
  }

  // Ask for the field of the drawing as it is now.
  async ask() {
    this.stale = true;
    if (this.asking) return;
    this.asking = true;
    while (this.stale) {
      this.stale = false;
      const body = this.question();
      try {
        const answer = body === null ? null : await api.field({ ...body, side: 512 });
        if (this.question()?.photo !== body?.photo) continue;
        this.current = answer;
        if (this.wrong || this.current?.notes.length > 0) this.tell(this.current?.notes.join(" ") ?? "", false);
        this.wrong = false;
      } catch (error) {
        // The last field stays: the drawing is often unusable for a moment, such as a region without pixels.
        this.wrong = true;
        this.tell(error.message, true);
      }
      this.dispatchEvent(new Event("change"));
    }
    this.asking = false;
  }

  // Drops the field, when another photo is shown.
  forget() {
    this.current = null;
    this.dispatchEvent(new Event("change"));
  }

  // Velocity at a place of the photo in frame t, px per frame, as plain numbers; for particles.
  sampler() {
    const field = this.current, { photo } = this.view;
    if (field === null) return null;
    const cells = field.width * field.height, flow = floats(field.flow);
    const sways = field.sways.map((each) => ({ ...each, amplitude: floats(each.amplitude) }));
    const moving = [];
    for (let i = 0; i < cells; i++) {
      const still = flow[2 * i] === 0 && flow[2 * i + 1] === 0;
      if (!still || sways.some((each) => each.amplitude[2 * i] !== 0 || each.amplitude[2 * i + 1] !== 0) || [...field.turns, ...field.moves].some((each) => each.region[i] > 0)) moving.push(i);
    }
    const at = (x, y, t) => {
      const column = Math.min(Math.max(Math.floor(x * field.width), 0), field.width - 1);
      const row = Math.min(Math.max(Math.floor(y * field.height), 0), field.height - 1), i = row * field.width + column;
      let vx = flow[2 * i], vy = flow[2 * i + 1];
      for (const { amplitude, period, phase } of sways) {
        const speed = ((2 * Math.PI) / period) * Math.cos((2 * Math.PI * t) / period + phase);
        vx += amplitude[2 * i] * speed;
        vy += amplitude[2 * i + 1] * speed;
      }
      for (const { region, center, angle } of field.turns) {
        if (region[i] === 0) continue;
        vx -= angle * (y * photo.height - center[1]);
        vy += angle * (x * photo.width - center[0]);
      }
      for (const { region, offsets } of field.moves) {
        const now = Math.min(Math.floor(t), offsets.length - 2);
        if (region[i] > 0) [vx, vy] = [0, 1].map((axis) => offsets[now + 1][axis] - offsets[now][axis]);
      }
      return [vx, vy];
    };
    return { at, moving, width: field.width, height: field.height };
  }
}

function floats(halves) {
  const made = new Float32Array(halves.length);
  for (let i = 0; i < made.length; i++) made[i] = api.half(halves[i]);
  return made;
}

// Particles that drift with the field, drawn over the photo.
export class Particles {
  constructor({ canvas, view, field }) {
    Object.assign(this, { canvas, view, field, dots: [], sampler: null });
    field.addEventListener("change", () => {
      this.sampler = field.sampler();
      if (this.sampler === null) this.dots = []; // another photo
    });
  }

  paint(seconds, frame, framesPerSecond) {
    const ratio = window.devicePixelRatio || 1, { view } = this, width = Math.round(view.width * ratio), height = Math.round(view.height * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, view.width, view.height);
    if (this.sampler === null || this.sampler.moving.length === 0) return;
    const { at, moving, width: columns, height: rows } = this.sampler, { photo } = view;
    const wanted = Math.min(1400, 40 + moving.length);
    while (this.dots.length < wanted) this.dots.push({ age: 1, life: 0 });
    this.dots.length = wanted;
    pen.save();
    pen.beginPath();
    pen.rect(view.x, view.y, photo.width * view.scale, photo.height * view.scale);
    pen.clip();
    const step = seconds * framesPerSecond;
    pen.lineCap = "round";
    for (const dot of this.dots) {
      if (dot.age >= dot.life) {
        const cell = moving[Math.floor(Math.random() * moving.length)];
        Object.assign(dot, { x: ((cell % columns) + Math.random()) / columns, y: (Math.floor(cell / columns) + Math.random()) / rows, age: 0, life: 0.6 + 1.4 * Math.random() });
      }
      const [vx, vy] = at(dot.x, dot.y, frame);
      dot.age += seconds;
      if ((vx === 0 && vy === 0) || dot.x < 0 || dot.x > 1 || dot.y < 0 || dot.y > 1) {
        dot.age = dot.life;
        continue;
      }
      dot.x += (vx * step) / photo.width;
      dot.y += (vy * step) / photo.height;
      const [x, y] = [dot.x * photo.width * view.scale + view.x, dot.y * photo.height * view.scale + view.y];
      const tail = Math.min(3, 14 / (Math.hypot(vx, vy) * view.scale)), hue = (Math.atan2(vy, vx) * 180) / Math.PI;
      pen.strokeStyle = `hsl(${hue.toFixed(0)} 95% 72% / ${Math.sin((Math.PI * dot.age) / dot.life).toFixed(2)})`;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.moveTo(x - vx * tail * view.scale, y - vy * tail * view.scale);
      pen.lineTo(x, y);
      pen.stroke();
    }
    pen.restore();
  }
}
