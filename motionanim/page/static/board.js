// Draws the photo, and on it the drawing: regions, arrows, pins, the stroke under way and the keyboard's cross.

import { RegionPictures } from "./regions.js";

const KIND_COLOURS = { flow: "#ffffff", move: "#ffd166", sway: "#9be37a", turn: "#ff9ecb" };

export class Board {
  constructor({ stage, view, drawing, selection }) {
    Object.assign(this, { view, drawing, selection });
    this.base = stage.querySelector("#base");
    this.canvas = stage.querySelector("#board");
    this.regions = new RegionPictures(drawing);
    this.picture = null; // of the photo
    this.stroke = null; // { parts, corners }: what the tool draws at the moment
    this.proposal = null; // a region to accept or dismiss
    this.cross = null; // the keyboard's place in the photo
    this.hover = null; // { point, radius }: the brush under the pointer
    this.faint = false; // regions hardly seen, over the photo in motion
    this.asked = false;
    for (const source of [view, drawing, selection]) source.addEventListener("change", () => this.paint());
  }

  // At most one painting for each frame of the screen.
  paint() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.paintBase();
      this.paintDrawing();
    });
  }

  pen(canvas) {
    const ratio = window.devicePixelRatio || 1, width = Math.round(this.view.width * ratio), height = Math.round(this.view.height * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.view.width, this.view.height);
    return pen;
  }

  get frame() {
    const { x, y, scale, photo } = this.view;
    return [x, y, photo.width * scale, photo.height * scale];
  }

  paintBase() {
    const pen = this.pen(this.base);
    if (this.picture === null) return;
    pen.imageSmoothingEnabled = this.view.scale < 4;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.picture, ...this.frame);
  }

  paintDrawing() {
    const pen = this.pen(this.canvas);
    if (this.picture === null) return;
    const { content } = this.drawing;
    for (const name of Object.keys(content.regions)) {
      pen.globalAlpha = this.faint ? 0.06 : this.selection.region === name ? 0.45 : 0.28;
      pen.drawImage(this.regions.picture(name).canvas, ...this.frame);
    }
    if (this.proposal !== null) {
      pen.globalAlpha = 0.5;
      pen.drawImage(this.regions.picture(null, this.proposal).canvas, ...this.frame);
    }
    pen.globalAlpha = 1;
    if (this.stroke !== null) this.paintStroke(pen);
    content.arrows.forEach((arrow, i) => this.paintArrow(pen, arrow, this.selection.arrow === i));
    content.pins.forEach((pin, i) => this.paintPin(pen, pin, this.selection.pin === i));
    if (this.hover !== null) this.circle(pen, this.hover.point, this.hover.radius);
    if (this.cross !== null) this.paintCross(pen);
  }

  paintArrow(pen, arrow, chosen) {
    const points = arrow.path.map((point) => this.view.toStage(point));
    const colour = KIND_COLOURS[arrow.kind ?? "flow"], width = chosen ? 4 : 3;
    pen.lineCap = pen.lineJoin = "round";
    for (const [style, extra] of [["rgb(0 0 0 / .65)", 2.5], [colour, 0]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width + extra;
      pen.setLineDash(arrow.kind === "sway" ? [width * 2.5, width * 2] : []);
      pen.beginPath();
      points.forEach(([x, y], i) => (i === 0 ? pen.moveTo(x, y) : pen.lineTo(x, y)));
      pen.stroke();
      pen.setLineDash([]);
      const [[fromX, fromY], [x, y]] = points.slice(-2);
      const angle = Math.atan2(y - fromY, x - fromX), size = 11;
      pen.beginPath();
      for (const side of [-2.6, 2.6]) {
        pen.moveTo(x, y);
        pen.lineTo(x + size * Math.cos(angle + side), y + size * Math.sin(angle + side));
      }
      pen.stroke();
    }
    if (arrow.kind === "turn" && arrow.center) this.circle(pen, arrow.center, 5 / this.view.scale);
    // The tip has no dot, which would hide its head.
    points.slice(0, -1).forEach((point, i) => this.dot(pen, point, chosen ? 5.5 : i === 0 ? 4 : 0, colour));
  }

  dot(pen, [x, y], radius, colour) {
    if (radius === 0) return;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = "rgb(0 0 0 / .75)";
    pen.stroke();
  }

  paintPin(pen, point, chosen) {
    const [x, y] = this.view.toStage(point);
    this.dot(pen, [x, y], chosen ? 8 : 6.5, "#ff6b57");
    this.dot(pen, [x, y], 2, "#ffffff");
  }

  paintStroke(pen) {
    const { line, radius, corners } = this.stroke, points = line.map((point) => this.view.toStage(point));
    pen.beginPath();
    points.forEach(([x, y], i) => (i === 0 ? pen.moveTo(x, y) : pen.lineTo(x, y)));
    if (points.length === 1) pen.lineTo(points[0][0] + 0.1, points[0][1]);
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = corners ? "#ffffff" : this.stroke.erases ? "rgb(0 0 0 / .5)" : "rgb(255 255 255 / .55)";
    pen.lineWidth = corners ? 2 : 2 * radius * this.view.scale;
    pen.stroke();
    if (corners) points.forEach((point) => this.dot(pen, point, 4, "#ffffff"));
  }

  // `radius` in pixels of the photo.
  circle(pen, point, radius) {
    const [x, y] = this.view.toStage(point);
    for (const [style, width] of [["rgb(0 0 0 / .6)", 3], ["#ffffff", 1.5]]) {
      pen.beginPath();
      pen.arc(x, y, Math.max(radius * this.view.scale, 1), 0, 2 * Math.PI);
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.stroke();
    }
  }

  paintCross(pen) {
    const [x, y] = this.view.toStage(this.cross);
    for (const [style, width] of [["rgb(0 0 0 / .7)", 4], ["#ffffff", 1.5]]) {
      pen.beginPath();
      pen.moveTo(x - 14, y);
      pen.lineTo(x + 14, y);
      pen.moveTo(x, y - 14);
      pen.lineTo(x, y + 14);
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.stroke();
    }
  }
}
