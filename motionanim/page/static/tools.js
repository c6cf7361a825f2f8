// Pointer and keyboard on the canvas: mouse, pen and touch draw with the tool in hand; two fingers zoom and pan.

import { Edits, removeRegion } from "./edits.js";

export class Tools extends Edits {
  constructor(parts) {
    super(parts);
    const { board, selection } = parts;
    this.canvas = board.canvas;
    this.fingers = new Map();
    this.pen = null; // the pen that is down
    this.spaceHeld = false;
    const on = (name, listener, options) => this.canvas.addEventListener(name, listener, options);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.moved(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.lost(event));
    on("pointerleave", () => this.hover(null));
    on("dblclick", (event) => this.doubled(event));
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("contextmenu", (event) => event.preventDefault());
    on("keydown", (event) => this.key(event));
    on("blur", () => this.leave());
    selection.addEventListener("change", () => this.toolChanged());
    this.lastTool = selection.tool;
  }

  place(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  get ready() {
    return this.photo() !== null;
  }

  // Another tool closes the polygon under way, so that its corners are not lost.
  toolChanged() {
    const { tool } = this.selection;
    if (tool !== this.lastTool) {
      if (this.board.stroke?.corners) this.close();
      this.lastTool = tool;
      this.hover(null);
    }
    this.canvas.classList.toggle("grab", tool === "hand" || this.spaceHeld);
  }

  down(event) {
    // A palm beside the pen draws nothing.
    if (!this.ready || (this.pen !== null && event.pointerType === "touch")) return;
    if (event.pointerType === "pen") this.pen = event.pointerId;
    this.drawing.commit(); // of a number that was just typed
    this.canvas.setPointerCapture(event.pointerId);
    this.board.cross = null;
    const place = this.place(event);
    this.fingers.set(event.pointerId, place);
    if (this.fingers.size === 2) return this.end((action) => action.cancel());
    if (this.fingers.size > 2) return;
    if (event.button === 1 || event.button === 2 || this.spaceHeld || this.selection.tool === "hand") this.action = this.panning(place);
    else this.press(this.view.toPhoto(place));
  }

  moved(event) {
    if (!this.ready) return;
    const place = this.place(event);
    if (this.fingers.size === 2 && this.fingers.has(event.pointerId)) return this.pinch(event.pointerId, place);
    if (this.fingers.has(event.pointerId)) {
      // The browser may merge several places of a fast pen into one event.
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length > 0 ? events : [event]) this.action?.move(this.view.toPhoto(this.place(each)), this.place(each));
    }
    this.hover(event.pointerType === "touch" ? null : this.view.toPhoto(place));
  }

  up(event) {
    const place = this.place(event), alone = this.fingers.size === 1;
    if (event.pointerId === this.pen) this.pen = null;
    if (!this.fingers.delete(event.pointerId) || !alone) return;
    this.end((action) => action.up(this.view.toPhoto(place), place));
  }

  lost(event) {
    if (event.pointerId === this.pen) this.pen = null;
    if (this.fingers.delete(event.pointerId)) this.end((action) => action.cancel());
  }

  pinch(id, place) {
    const other = [...this.fingers].find(([each]) => each !== id)[1], before = this.fingers.get(id);
    const middle = [(place[0] + other[0]) / 2, (place[1] + other[1]) / 2];
    const apart = (a) => Math.max(Math.hypot(a[0] - other[0], a[1] - other[1]), 1);
    this.view.pan((place[0] - before[0]) / 2, (place[1] - before[1]) / 2);
    this.view.zoom(apart(place) / apart(before), middle);
    this.fingers.set(id, place);
  }

  wheel(event) {
    if (!this.ready) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
    if (event.shiftKey && !event.ctrlKey) this.view.pan(-event.deltaY * lines, -event.deltaX * lines);
    else this.view.zoom(Math.exp((-event.deltaY * lines) / 400), this.place(event));
  }

  hover(point) {
    const brush = ["brush", "eraser", "magic"].includes(this.selection.tool);
    this.board.hover = brush && point !== null ? { point, radius: this.selection.radius } : null;
    this.board.paint();
  }

  doubled(event) {
    if (!this.ready) return;
    if (this.selection.tool === "polygon" && this.board.stroke?.corners) this.close();
    else if (this.selection.tool === "arrow") this.bend(this.view.toPhoto(this.place(event)));
  }

  // With the keyboard: arrow keys move a cross, Enter presses and releases.
  key(event) {
    if (!this.ready || event.ctrlKey || event.metaKey || event.altKey) return;
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in ways) {
      const step = (event.shiftKey ? 1 : 12) / this.view.scale, { width, height } = this.drawing;
      const [x, y] = this.board.cross ?? [width / 2, height / 2];
      this.board.cross = this.drawing.inside([x + ways[event.key][0] * step, y + ways[event.key][1] * step]);
      this.follow(this.board.cross);
      this.action?.move(this.board.cross, this.view.toStage(this.board.cross));
    } else if (event.key === "Enter") {
      const corners = this.board.stroke?.corners;
      if (corners && (event.shiftKey || this.board.cross === null)) this.close();
      else if (this.board.cross === null) this.board.cross = this.drawing.inside([this.drawing.width / 2, this.drawing.height / 2]);
      else if (this.action !== null) this.end((action) => action.up(this.board.cross, this.view.toStage(this.board.cross)));
      else {
        if (this.selection.tool !== "hand") this.press(this.board.cross);
        if (["polygon", "pin"].includes(this.selection.tool)) this.end((action) => action.up(this.board.cross));
      }
    } else if (event.key.toLowerCase() === "d" && this.board.cross !== null) this.bend(this.board.cross);
    else return;
    if (this.board.cross !== null) this.say(`${this.board.cross.map(Math.round).join(", ")}${this.action === null ? "" : ", pressed"}`);
    event.preventDefault();
    this.board.paint();
  }

  // The view follows the cross.
  follow(point) {
    const [x, y] = this.view.toStage(point), edge = 40;
    const way = (place, side) => Math.min(Math.max(0, edge - place), side) - Math.max(0, place - side + edge);
    const [dx, dy] = [way(x, this.view.width), way(y, this.view.height)];
    if (dx !== 0 || dy !== 0) this.view.pan(dx, dy);
  }

  // For screen readers.
  say(text) {
    document.querySelector("#place").textContent = text;
  }

  escape() {
    if (this.action !== null) this.end((action) => action.cancel());
    else if (this.board.stroke !== null) {
      this.board.stroke = null;
    } else this.selection.choose({ arrow: null, pin: null, region: null });
    this.board.paint();
  }

  leave() {
    this.board.cross = null;
    if (this.fingers.size === 0) this.end((action) => action.cancel());
    this.board.paint();
  }

  remove() {
    const { arrow, pin, region } = this.selection;
    if (this.board.stroke?.corners) return this.dropCorner();
    this.stop();
    this.drawing.edit((content) => {
      if (arrow !== null) content.arrows.splice(arrow, 1);
      else if (pin !== null) content.pins.splice(pin, 1);
      else if (region !== null) removeRegion(content, region);
    });
    this.selection.choose({ arrow: null, pin: null, ...(arrow === null && pin === null ? { region: null } : {}) });
  }
}
