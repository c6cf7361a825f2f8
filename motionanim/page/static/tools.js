// Pointer and keyboard on the canvas: mouse, pen and touch draw with the tool in hand; two fingers zoom and pan.

import * as api from "./api.js";
import { nearestOnPath } from "./drawing.js";

const NEAR = 11; // CSS pixels within which a point or a line is hit
const SHORTEST = 5; // CSS pixels; a shorter drag is a click
const THIN = 1.5; // CSS pixels between two points of a stroke

export class Tools {
  constructor({ board, view, drawing, selection, tell, photo, busy }) {
    Object.assign(this, { board, view, drawing, selection, tell, photo, busy });
    this.canvas = board.canvas;
    this.fingers = new Map();
    this.action = null; // the drag under way: { move(point), up(point), cancel() }
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

  // A stroke is never lost by another tool: what is under way ends as it is.
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
    if (!this.ready) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.board.cross = null;
    const place = this.place(event);
    this.fingers.set(event.pointerId, place);
    if (this.fingers.size === 2) {
      this.action?.cancel();
      this.action = null;
      return;
    }
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
    this.fingers.delete(event.pointerId);
    if (!alone) return;
    const action = this.action;
    this.action = null;
    action?.up(this.view.toPhoto(place), place);
  }

  lost(event) {
    this.fingers.delete(event.pointerId);
    this.action?.cancel();
    this.action = null;
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

  // What each tool does from the press on; `point` is in pixels of the photo.
  press(point) {
    const tool = this.selection.tool;
    this.action =
      tool === "polygon" ? this.corner(point)
      : ["brush", "eraser", "magic"].includes(tool) ? this.painting(point, tool)
      : this.grabbed(point) ?? (tool === "pin" ? this.pinning(point) : this.pulling(point));
  }

  near(point, other) {
    return Math.hypot(point[0] - other[0], point[1] - other[1]) * this.view.scale <= NEAR;
  }

  // A drag of a point of an arrow, or of a pin.
  grabbed(point) {
    const { arrows, pins } = this.drawing.content, last = arrows.length - 1;
    const drag = (chosen, move) => {
      this.selection.choose(chosen);
      this.drawing.begin();
      return { move: (to) => this.drawing.live((content) => move(content, this.drawing.inside(to))), up: () => this.drawing.commit(), cancel: () => this.drawing.cancel() };
    };
    const order = [this.selection.arrow, ...arrows.map((_, i) => last - i)].filter((i) => i !== null && i <= last);
    for (const i of order) {
      const corner = arrows[i].path.findIndex((each) => this.near(each, point));
      if (corner >= 0) return drag({ arrow: i }, (content, to) => {
        const path = content.arrows[i].path;
        if ([path[corner - 1], path[corner + 1]].every((each) => each === undefined || each[0] !== to[0] || each[1] !== to[1])) path[corner] = to;
      });
    }
    const pin = pins.findIndex((each) => this.near(each, point));
    if (pin >= 0) return drag({ pin }, (content, to) => (content.pins[pin] = to));
    if (this.selection.tool !== "arrow") return null;
    const line = order.find((i) => nearestOnPath(arrows[i].path, point).distance * this.view.scale <= NEAR);
    if (line === undefined) return null;
    // A press on a line chooses its arrow; a drag moves it as a whole.
    const from = structuredClone(arrows[line].path);
    return drag({ arrow: line }, (content, to) => {
      const start = this.drawing.inside(point), way = [0, 1].map((axis) => {
        const limit = [this.drawing.width, this.drawing.height][axis] - 1, places = from.map((each) => each[axis]);
        return Math.min(Math.max(to[axis] - start[axis], -Math.min(...places)), limit - Math.max(...places));
      });
      content.arrows[line].path = from.map((each) => this.drawing.inside([each[0] + way[0], each[1] + way[1]]));
    });
  }

  pinning(point) {
    return { move() {}, cancel() {}, up: (to) => {
      this.drawing.edit((content) => content.pins.push(this.drawing.inside(to)));
      this.selection.choose({ pin: this.drawing.content.pins.length - 1 });
    } };
  }

  // A new arrow. It moves the region that it begins in.
  pulling(point) {
    const start = this.drawing.inside(point), number = this.drawing.content.arrows.length;
    this.drawing.begin();
    return {
      move: (to) => {
        const end = this.drawing.inside(to), long = Math.hypot(end[0] - start[0], end[1] - start[1]) * this.view.scale >= SHORTEST;
        this.drawing.live((content) => {
          content.arrows.length = number;
          if (long) content.arrows.push({ kind: "flow", path: [start, end], region: this.board.regions.at(start) });
        });
      },
      up: () => {
        const drawn = this.drawing.content.arrows.length > number;
        this.drawing.commit();
        this.selection.choose(drawn ? { arrow: number } : { arrow: null, pin: null, region: this.board.regions.at(start) });
      },
      cancel: () => this.drawing.cancel(),
    };
  }

  panning(place) {
    let last = place;
    return { up() {}, cancel() {}, move: (_, to) => {
      this.view.pan(to[0] - last[0], to[1] - last[1]);
      last = to;
    } };
  }

  // One decimal is enough, and a point may lie one frame outside the photo.
  round([x, y]) {
    const { width, height } = this.drawing, place = (value, side) => Math.round(Math.min(Math.max(value, 1 - side), 2 * side - 2) * 10) / 10;
    return [place(x, width), place(y, height)];
  }

  painting(point, tool) {
    const radius = Math.round(this.selection.radius * 10) / 10, line = [this.round(point)];
    this.board.stroke = { line, radius, erases: tool === "eraser" };
    this.board.paint();
    const done = () => {
      this.board.stroke = null;
      this.board.paint();
    };
    return {
      move: (to) => {
        const last = line.at(-1), next = this.round(to);
        if (Math.hypot(next[0] - last[0], next[1] - last[1]) * this.view.scale >= THIN) line.push(next);
        this.board.paint();
      },
      up: async () => {
        if (tool === "eraser") {
          this.erase(line, radius);
          done();
        } else if (tool === "brush") {
          this.addParts([{ brush: line, radius }]);
          done();
        } else await this.grow(line, radius).finally(done);
      },
      cancel: done,
    };
  }

  // Parts are added to the chosen region, or make a new one. An arrow that begins in a new region and has none takes it.
  addParts(parts) {
    const name = this.selection.region ?? this.drawing.newName();
    this.drawing.begin();
    this.drawing.live((content) => (content.regions[name] = [...(content.regions[name] ?? []), ...parts]));
    this.drawing.live((content) => {
      for (const arrow of content.arrows) if (arrow.region == null && this.board.regions.holds(name, arrow.path[0])) arrow.region = name;
    });
    this.drawing.commit();
    this.selection.choose({ region: name });
  }

  erase(line, radius) {
    const name = this.selection.region ?? this.board.regions.at(line[0]);
    if (name === null) return this.tell("There is no region here to erase: choose one in the list.", true);
    this.drawing.edit((content) => content.regions[name].push({ erase: line, radius }));
    this.selection.choose({ region: name });
  }

  async grow(line, radius) {
    this.tell("Looking for the thing under the stroke …");
    const photo = this.photo().id, { pins } = this.drawing.content;
    try {
      const { region, share } = await this.busy(api.magic({ photo, brush: line, radius, pins }));
      if (this.photo()?.id !== photo) return;
      this.addParts(region);
      this.tell(`The region holds ${Math.max(0.1, share * 100).toFixed(share < 0.1 ? 1 : 0)} % of the photo. Mend it with brush and eraser.`);
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  corner(point) {
    const stroke = (this.board.stroke ??= { line: [], corners: true });
    const first = stroke.line[0];
    if (stroke.line.length >= 3 && this.near(first, point)) {
      this.close();
      return null;
    }
    stroke.line.push(this.round(point));
    this.board.paint();
    return { up() {}, cancel() {}, move: (to) => {
      if (this.board.stroke !== stroke) return;
      stroke.line[stroke.line.length - 1] = this.round(to);
      this.board.paint();
    } };
  }

  close() {
    const line = this.board.stroke?.line.filter((each, i, all) => i === 0 || each[0] !== all[i - 1][0] || each[1] !== all[i - 1][1]) ?? [];
    this.board.stroke = null;
    if (line.length >= 3) this.addParts([line]);
    else this.tell("A polygon needs three corners.", true);
    this.board.paint();
  }

  doubled(event) {
    if (!this.ready) return;
    if (this.selection.tool === "polygon" && this.board.stroke?.corners) return this.close();
    if (this.selection.tool !== "arrow") return;
    const point = this.view.toPhoto(this.place(event));
    this.drawing.content.arrows.some((arrow, i) => {
      const { distance, part, point: on } = nearestOnPath(arrow.path, point);
      if (distance * this.view.scale > NEAR || arrow.kind === "sway") return false;
      const corner = arrow.path.findIndex((each) => this.near(each, point));
      // On an inner point it takes the point away.
      if (corner > 0 && corner < arrow.path.length - 1) this.drawing.edit((content) => content.arrows[i].path.splice(corner, 1));
      else if (corner < 0) this.drawing.edit((content) => content.arrows[i].path.splice(part + 1, 0, this.drawing.inside(on)));
      this.selection.choose({ arrow: i });
      return true;
    });
  }

  // With the keyboard: arrow keys move a cross, Enter presses and releases.
  key(event) {
    if (!this.ready || event.ctrlKey || event.metaKey || event.altKey) return;
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in ways) {
      const step = (event.shiftKey ? 1 : 12) / this.view.scale, { width, height } = this.drawing;
      const [x, y] = this.board.cross ?? [width / 2, height / 2];
      this.board.cross = this.drawing.inside([x + ways[event.key][0] * step, y + ways[event.key][1] * step]);
      this.action?.move(this.board.cross, this.view.toStage(this.board.cross));
    } else if (event.key === "Enter") {
      if (this.board.cross === null) this.board.cross = this.drawing.inside([this.drawing.width / 2, this.drawing.height / 2]);
      else if (this.selection.tool === "polygon" && event.shiftKey) this.close();
      else if (this.action !== null) {
        const action = this.action;
        this.action = null;
        action.up(this.board.cross, this.view.toStage(this.board.cross));
      } else {
        if (this.selection.tool !== "hand") this.press(this.board.cross);
        if (["polygon", "pin"].includes(this.selection.tool)) {
          this.action?.up(this.board.cross);
          this.action = null;
        }
      }
    } else return;
    event.preventDefault();
    this.board.paint();
  }

  escape() {
    if (this.action !== null) {
      this.action.cancel();
      this.action = null;
    } else if (this.board.stroke !== null) {
      this.board.stroke = null;
    } else this.selection.choose({ arrow: null, pin: null, region: null });
    this.board.paint();
  }

  leave() {
    this.board.cross = null;
    if (this.fingers.size === 0) {
      this.action?.cancel();
      this.action = null;
    }
    this.board.paint();
  }

  remove() {
    const { arrow, pin, region } = this.selection;
    if (this.board.stroke?.corners) {
      this.board.stroke.line.pop();
      if (this.board.stroke.line.length === 0) this.board.stroke = null;
      return this.board.paint();
    }
    this.drawing.edit((content) => {
      if (arrow !== null) content.arrows.splice(arrow, 1);
      else if (pin !== null) content.pins.splice(pin, 1);
      else if (region !== null) removeRegion(content, region);
    });
    this.selection.choose({ arrow: null, pin: null, ...(arrow === null && pin === null ? { region: null } : {}) });
  }
}

export function removeRegion(content, name) {
  delete content.regions[name];
  for (const arrow of content.arrows) if (arrow.region === name) delete arrow.region;
}
