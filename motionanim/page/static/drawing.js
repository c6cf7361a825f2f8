// The drawing: arrows, pins and regions exactly as in arrows.json, with undo and redo of every edit.

export const KINDS = ["flow", "move", "sway", "turn"];
// Keys that each kind of arrow may have, besides path, kind and region.
const KEYS = { flow: ["speed"], move: ["speed", "easing", "start", "end"], sway: ["period", "phase"], turn: ["speed", "center"] };
const DEFAULTS = { kind: "flow", speed: 1, easing: "linear", start: 0, phase: 0 };
export const EMPTY = { arrows: [], pins: [], regions: {} };

const MOST_UNDOS = 500;

// Parts of a region are never changed in place, so that all steps of undo share them.
function copy({ arrows, pins, regions }) {
  const lists = Object.entries(regions).map(([name, parts]) => [name, [...parts]]);
  return { arrows: structuredClone(arrows), pins: [...pins], regions: Object.fromEntries(lists) };
}

export class Drawing extends EventTarget {
  constructor() {
    super();
    this.clear({ width: 1, height: 1 });
  }

  clear({ width, height }, content = EMPTY) {
    this.width = width;
    this.height = height;
    this.content = copy(content);
    this.past = [];
    this.future = [];
    this.before = null; // the content before the edit that is under way
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  // Edits change `content` in place. Between begin() and commit() they are one step of undo, such as a drag.
  begin() {
    this.before ??= copy(this.content);
  }

  live(edit) {
    edit(this.content);
    this.changed();
  }

  commit() {
    const before = this.before;
    this.before = null;
    if (before === null || JSON.stringify(before) === JSON.stringify(this.content)) return;
    this.past.push(before);
    if (this.past.length > MOST_UNDOS) this.past.shift();
    this.future = [];
    this.changed();
  }

  cancel() {
    if (this.before === null) return;
    this.content = this.before;
    this.before = null;
    this.changed();
  }

  edit(change) {
    this.begin();
    change(this.content);
    this.commit();
  }

  undo() {
    this.cancel();
    this.step(this.past, this.future);
  }

  redo() {
    this.cancel();
    this.step(this.future, this.past);
  }

  step(from, to) {
    if (from.length === 0) return;
    to.push(this.content);
    this.content = from.pop();
    this.changed();
  }

  // A point inside the photo, in tenths of a pixel.
  inside([x, y]) {
    const place = (value, side) => Math.round(Math.min(Math.max(value, 0), side - 1) * 10) / 10;
    return [place(x, this.width), place(y, this.height)];
  }

  newName() {
    for (let number = 1; ; number++) if (!Object.hasOwn(this.content.regions, `region ${number}`)) return `region ${number}`;
  }

  // What is saved and sent: without keys that have their default value.
  toJSON() {
    const arrows = this.content.arrows.map((arrow) =>
      Object.fromEntries(Object.entries(arrow).filter(([key, value]) => value !== null && value !== DEFAULTS[key])));
    return { arrows, pins: this.content.pins, regions: this.content.regions };
  }

  get empty() {
    const { arrows, pins, regions } = this.content;
    return arrows.length + pins.length + Object.keys(regions).length === 0;
  }
}

// Gives an arrow another kind: removes keys that the new kind does not have, and adds those that it needs.
export function setKind(arrow, kind, span) {
  for (const key of Object.keys(arrow)) if (!["path", "region", ...KEYS[kind]].includes(key)) delete arrow[key];
  arrow.kind = kind;
  if (kind === "sway") {
    arrow.path = [arrow.path[0], arrow.path.at(-1)];
    arrow.period ??= 2 * span;
  }
}

// The content of an arrows.json file in the form that the page edits. Throws an Error that says what is wrong.
export function read(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no arrows.json: ${error.message}`);
  }
  if (Array.isArray(given)) given = { arrows: given };
  if (Array.isArray(given?.command?.arrows)) given = { arrows: given.command.arrows }; // the record of a video
  else if (given?.command?.arrows) given = given.command.arrows;
  if (given === null || typeof given !== "object") throw new Error("This is no arrows.json: it must be a list or an object.");
  if (!["arrows", "pins", "regions"].some((key) => key in given)) throw new Error("This file holds no drawing: it has no arrows, pins or regions.");
  const regions = {};
  for (const [name, region] of Object.entries(given.regions ?? {})) regions[name] = parts(region, `regions.${name}`);
  if (!Array.isArray(given.arrows ?? [])) throw new Error("arrows must be a list.");
  const arrows = (given.arrows ?? []).map((arrow, i) => {
    if (Array.isArray(arrow) && [4, 5].includes(arrow.length) && arrow.every(Number.isFinite)) {
      const [x0, y0, x1, y1, speed] = arrow;
      arrow = { path: [[x0, y0], [x1, y1]], ...(speed === undefined ? {} : { speed }) };
    }
    if (!Array.isArray(arrow?.path) || arrow.path.length < 2 || !arrow.path.every(isPoint))
      throw new Error(`arrows[${i}] has no path of points [x, y].`);
    const made = { kind: "flow", ...arrow };
    if (!KINDS.includes(made.kind)) throw new Error(`arrows[${i}]: its kind must be ${KINDS.join(", ")}.`);
    for (const key of ["speed", "period", "phase", "start", "end"])
      if (made[key] != null && !Number.isFinite(made[key])) throw new Error(`arrows[${i}]: ${key} must be a number.`);
    if (made.center != null && !isPoint(made.center)) throw new Error(`arrows[${i}]: center must be a point [x, y].`);
    if (made.region != null && !Object.hasOwn(regions, made.region)) {
      const own = parts(made.region, `arrows[${i}]: region`);
      const same = Object.keys(regions).find((name) => JSON.stringify(regions[name]) === JSON.stringify(own));
      let number = 1;
      while (Object.hasOwn(regions, `region ${number}`)) number++;
      made.region = same ?? `region ${number}`;
      regions[made.region] = own;
    }
    return made;
  });
  const pins = given.pins ?? [];
  if (!Array.isArray(pins) || !pins.every(isPoint)) throw new Error("pins must be a list of points [x, y].");
  return { arrows, pins, regions };
}

function parts(region, name) {
  if (typeof region === "string") throw new Error(`${name} is the file ${region}: the page takes polygons and strokes only.`);
  const list = Array.isArray(region) ? region : [region];
  for (const part of list) {
    const line = Array.isArray(part) ? part : part?.brush ?? part?.erase;
    const sized = Array.isArray(part) || (part?.radius === undefined ? part?.brush === undefined : Number.isFinite(part.radius));
    if (!Array.isArray(line) || line.length === 0 || !line.every(isPoint) || !sized) throw new Error(`${name} must hold polygons and strokes.`);
  }
  return list;
}

function isPoint(each) {
  return Array.isArray(each) && each.length === 2 && each.every(Number.isFinite);
}

// The place of a path that is nearest to a point, for hit tests.
export function nearestOnPath(path, [x, y]) {
  let best = { distance: Infinity };
  for (let i = 0; i + 1 < path.length; i++) {
    const [[ax, ay], [bx, by]] = [path[i], path[i + 1]];
    const [dx, dy] = [bx - ax, by - ay];
    const share = Math.min(Math.max(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1), 0), 1);
    const point = [ax + share * dx, ay + share * dy];
    const distance = Math.hypot(x - point[0], y - point[1]);
    if (distance < best.distance) best = { distance, part: i, point };
  }
  return best;
}
