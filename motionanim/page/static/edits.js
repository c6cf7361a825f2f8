// What the tools do to the drawing, from the press on; places are in pixels of the photo.

import * as api from "./api.js";
import { nearestOnPath } from "./drawing.js";

const NEAR = 11; // CSS pixels within which a point or a line is hit
const SHORTEST = 5; // CSS pixels; a shorter drag is a click
const THIN = 1.5; // CSS pixels between two points of a stroke

// Whether a new flow arrow may take a region: a region with an arrow of another kind belongs to that arrow alone.
const open = (arrows, name) => name === null || arrows.every((each) => each.region !== name || (each.kind ?? "flow") === "flow");

export class Edits {
  constructor({ board, view, drawing, selection, tell, photo, busy }) {
    Object.assign(this, { board, view, drawing, selection, tell, photo, busy });
    this.action = null; // the drag under way: { move(point), up(point), cancel() }
    this.later = []; // what waits for the end of that drag
    this.closed = 0; // when a polygon was closed, ms
  }

  // Ends the drag under way, then runs what waited for that.
  end(how) {
    const action = this.action, later = this.later;
    this.action = null;
    this.later = [];
    if (action !== null) how(action);
    for (const act of later) act();
  }

  whenFree(act) {
    if (this.action === null) act();
    else this.later.push(act);
  }

  // Cancels the drag and the stroke under way. Whatever replaces the drawing calls this first.
  stop() {
    this.end((action) => action.cancel());
    this.board.stroke = null;
    this.board.paint();
  }

  undo() {
    // The corners of a polygon under way are undone one by one.
    if (this.action === null && this.board.stroke?.corners) return this.dropCorner();
    this.stop();
    this.drawing.undo();
  }

  redo() {
    this.stop();
    this.drawing.redo();
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

  // A drag of a point of an arrow, or of a pin. A press alone chooses it and moves nothing; the grip keeps its offset.
  grabbed(point) {
    const { arrows, pins } = this.drawing.content, last = arrows.length - 1;
    const drag = (chosen, held, move) => {
      let far = false;
      this.selection.choose(chosen);
      this.drawing.begin();
      return {
        move: (to) => {
          far ||= Math.hypot(to[0] - point[0], to[1] - point[1]) * this.view.scale >= SHORTEST;
          if (far) this.drawing.live((content) => move(content, this.drawing.inside([held[0] + to[0] - point[0], held[1] + to[1] - point[1]])));
        },
        up: () => this.drawing.commit(),
        cancel: () => this.drawing.cancel(),
      };
    };
    const order = [this.selection.arrow, ...arrows.map((_, i) => last - i)].filter((i) => i !== null && i <= last);
    for (const i of order) {
      const corner = arrows[i].path.findIndex((each) => this.near(each, point));
      if (corner >= 0) return drag({ arrow: i }, arrows[i].path[corner], (content, to) => {
        const path = content.arrows[i].path;
        if ([path[corner - 1], path[corner + 1]].every((each) => each === undefined || each[0] !== to[0] || each[1] !== to[1])) path[corner] = to;
      });
    }
    const pin = pins.findIndex((each) => this.near(each, point));
    if (pin >= 0) return drag({ pin }, pins[pin], (content, to) => (content.pins[pin] = to));
    if (this.selection.tool !== "arrow") return null;
    const line = order.find((i) => nearestOnPath(arrows[i].path, point).distance * this.view.scale <= NEAR);
    if (line === undefined) return null;
    // A press on a line chooses its arrow; a drag moves it as a whole.
    const from = structuredClone(arrows[line].path);
    const start = this.drawing.inside(point);
    return drag({ arrow: line }, start, (content, to) => {
      const way = [0, 1].map((axis) => {
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

  // A new arrow. It takes the region that it begins in, if that is open to it.
  pulling(point) {
    const start = this.drawing.inside(point), number = this.drawing.content.arrows.length;
    this.drawing.begin();
    return {
      move: (to) => {
        const end = this.drawing.inside(to), long = Math.hypot(end[0] - start[0], end[1] - start[1]) * this.view.scale >= SHORTEST;
        this.drawing.live((content) => {
          content.arrows.length = number;
          const region = this.board.regions.at(start);
          if (long) content.arrows.push({ kind: "flow", path: [start, end], region: open(content.arrows, region) ? region : null });
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

  // One decimal is enough, and a point of a region may lie outside the photo, by as much as its size.
  round([x, y]) {
    const { width, height } = this.drawing, place = (value, side) => Math.round(Math.min(Math.max(value, 1 - side), 2 * side - 2) * 10) / 10;
    return [place(x, width), place(y, height)];
  }

  painting(point, tool) {
    const radius = Math.round(this.selection.radius * 10) / 10, line = [this.round(point)];
    const stroke = { line, radius, erases: tool === "eraser" }, region = this.selection.region;
    this.board.stroke = stroke;
    this.board.paint();
    const done = () => {
      if (this.board.stroke === stroke) this.board.stroke = null; // not one that was begun meanwhile
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
        } else await this.grow(line, radius, region).finally(done);
      },
      cancel: done,
    };
  }

  // Parts are added to the chosen region, or make a new one. An arrow that begins in a new region and has none takes it.
  addParts(parts, chosen = this.selection.region) {
    const name = chosen !== null && chosen in this.drawing.content.regions ? chosen : this.drawing.newName();
    this.drawing.begin();
    this.drawing.live((content) => (content.regions[name] = [...(content.regions[name] ?? []), ...parts]));
    this.drawing.live((content) => {
      for (const arrow of content.arrows) if (arrow.region == null && this.board.regions.holds(name, arrow.path[0])) arrow.region = name;
    });
    this.drawing.commit();
    this.selection.choose({ region: name });
  }

  erase(line, radius) {
    const chosen = this.selection.region, met = line.map((point) => this.board.regions.at(point)).find((name) => name !== null);
    const hit = chosen !== null && line.some((point) => this.board.regions.holds(chosen, point));
    const name = hit ? chosen : met ?? chosen;
    if (name === null) return this.tell("There is no region under the eraser.", true);
    this.drawing.edit((content) => (content.regions[name] = [...content.regions[name], { erase: line, radius }]));
    this.selection.choose({ region: name });
  }

  async grow(line, radius, chosen) {
    this.tell("Looking for the thing under the stroke …");
    const photo = this.photo().id, { pins } = this.drawing.content;
    try {
      const { region, share } = await this.busy(api.magic({ photo, brush: line, radius, pins }));
      if (this.photo()?.id !== photo) return;
      this.whenFree(() => this.addParts(region, chosen));
      this.tell(`The region holds ${Math.max(0.1, share * 100).toFixed(share < 0.1 ? 1 : 0)} % of the photo. Mend it with brush and eraser.`);
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  corner(point) {
    if (performance.now() - this.closed < 400) return null; // the second click of a double click that closed it
    const stroke = this.board.stroke?.corners ? this.board.stroke : (this.board.stroke = { line: [], corners: true });
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
    this.closed = performance.now();
    if (line.length >= 3) this.addParts([line]);
    else this.tell("A polygon needs three corners.", true);
    this.board.paint();
  }

  // A new point of the arrow there; on an inner point it takes the point away.
  bend(point) {
    this.drawing.content.arrows.some((arrow, i) => {
      const { distance, part, point: on } = nearestOnPath(arrow.path, point);
      if (distance * this.view.scale > NEAR || arrow.kind === "sway") return false;
      const corner = arrow.path.findIndex((each) => this.near(each, point));
      if (corner > 0 && corner < arrow.path.length - 1) this.drawing.edit((content) => content.arrows[i].path.splice(corner, 1));
      else if (corner < 0) this.drawing.edit((content) => content.arrows[i].path.splice(part + 1, 0, this.drawing.inside(on)));
      this.selection.choose({ arrow: i });
      return true;
    });
  }

  dropCorner() {
    this.board.stroke.line.pop();
    if (this.board.stroke.line.length === 0) this.board.stroke = null;
    this.board.paint();
  }
}

export function removeRegion(content, name) {
  delete content.regions[name];
  for (const arrow of content.arrows) if (arrow.region === name) delete arrow.region;
}
