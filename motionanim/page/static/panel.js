// The panel beside the photo: lists and settings of the drawing, and settings of the video.

import { setKind } from "./drawing.js";
import { removeRegion } from "./edits.js";

const HINTS = {
  flow: "A steady current for as long as the video lasts: water, clouds, smoke.",
  move: "The region travels along the path and rests at its end.",
  sway: "Every pixel swings to the tip, back, and to the other side: leaves, flags.",
  turn: "The region rotates as the arrow on its rim shows: wheels.",
};

const $ = (selector) => document.querySelector(selector);

// An element with properties and children.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class MotionPanel {
  constructor({ drawing, selection, board, tools, make, span, travels }) {
    Object.assign(this, { drawing, selection, board, make, span, travels });
    this.form = $("#inspector");
    this.form.addEventListener("input", (event) => this.typed(event.target));
    // Not during a drag: when a drag begins, the field loses the focus, and its edit was committed before.
    this.form.addEventListener("change", () => tools.action === null && drawing.commit());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    for (const source of [drawing, selection, make]) source.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    this.selection.check(this.drawing.content);
    this.showArrows();
    this.showRegions();
    this.showInspector();
  }

  showArrows() {
    const { arrows, pins } = this.drawing.content;
    const items = arrows.map((arrow, i) => {
      const name = arrow.kind ?? "flow", at = arrow.path[0].map(Math.round).join(", ");
      return this.item(`${i + 1}. ${name} from ${at}${arrow.region == null ? "" : ` in ${arrow.region}`}`, this.selection.arrow === i, () => this.selection.choose({ arrow: i }), this.swatch(arrow.region));
    });
    pins.forEach((pin, i) => items.push(this.item(`Pin at ${pin.map(Math.round).join(", ")}`, this.selection.pin === i, () => this.selection.choose({ pin: i }))));
    fill($("#arrow-list"), items, "Drag on the photo from what moves to where it goes.");
  }

  showRegions() {
    const items = Object.keys(this.drawing.content.regions).map((name) => {
      const chosen = this.selection.region === name;
      const item = this.item(name, chosen, () => this.selection.choose({ region: chosen ? null : name }), this.swatch(name));
      item.append(element("button", { textContent: "Delete", ariaLabel: `Delete ${name}`, onclick: () => this.drawing.edit((content) => removeRegion(content, name)) }));
      return item;
    });
    fill($("#region-list"), items, "Paint what moves with the magic brush or the brush.");
  }

  swatch(region) {
    const made = element("i", { className: "swatch" });
    if (region != null) made.style.background = `hsl(${this.board.regions.hue(region)} 80% 55%)`;
    return made;
  }

  item(text, chosen, onclick, ...before) {
    const button = element("button", { type: "button", className: "pick", onclick }, ...before, element("span", { textContent: text }));
    button.setAttribute("aria-pressed", chosen);
    return element("li", {}, button);
  }

  get arrow() {
    return this.selection.arrow === null ? null : this.drawing.content.arrows[this.selection.arrow];
  }

  showInspector() {
    const { form, arrow } = this, { elements: fields } = form;
    form.hidden = arrow === null && this.selection.pin === null;
    const kind = arrow?.kind ?? null;
    for (const part of form.children) if (part.id !== "remove") part.hidden = arrow === null || (part.dataset.kinds !== undefined && !part.dataset.kinds.split(" ").includes(kind));
    if (arrow === null) return;
    fields.kind.value = kind;
    const needs = ["move", "turn"].includes(kind) && arrow.region == null;
    const { frames, loop } = this.make.settings, fitted = frames / Math.max(1, Math.round(frames / arrow.period));
    const told = kind === "sway" && loop && fitted !== arrow.period ? ` In a loop of ${frames} frames a swing takes ${Number(fitted.toFixed(1))}.` : "";
    $("#kind-hint").textContent = HINTS[kind] + told + (needs ? " It needs a region: paint one with the magic brush." : "");
    $("#kind-hint").classList.toggle("bad", needs);
    put(fields.speed, Math.log2(arrow.speed ?? 1));
    $("#speed-value").textContent = `${(arrow.speed ?? 1).toFixed(2)}×`;
    put(fields.period, arrow.period ?? "");
    put(fields.phase, Math.round(((arrow.phase ?? 0) * 180) / Math.PI));
    fields.easing.value = arrow.easing ?? "linear";
    put(fields.start, arrow.start ?? 0);
    put(fields.end, arrow.end ?? "");
    const names = Object.keys(this.drawing.content.regions);
    fields.region.replaceChildren(element("option", { value: "", textContent: "none" }), ...names.map((name) => element("option", { value: `=${name}`, textContent: name })));
    fields.region.value = arrow.region == null ? "" : `=${arrow.region}`;
  }

  typed(field) {
    const number = this.selection.arrow, value = field.value === "" ? null : Number(field.value);
    if (number === null) return;
    if (field.name === "kind" && field.value === "move") this.travels();
    this.drawing.begin();
    this.drawing.live(({ arrows }) => {
      const arrow = arrows[number];
      if (field.name === "kind") setKind(arrow, field.value, this.span);
      else if (field.name === "region") arrow.region = field.value === "" ? null : field.value.slice(1);
      else if (field.name === "easing") arrow.easing = field.value;
      else if (field.name === "speed") {
        arrow.speed = Math.round(2 ** value * 100) / 100;
        delete arrow.end; // either decides when it arrives
      } else if (field.name === "phase") arrow.phase = ((value ?? 0) * Math.PI) / 180;
      else if (field.name === "end") {
        arrow.end = value;
        if (value !== null) delete arrow.speed;
      } else if (value !== null) arrow[field.name] = value;
    });
  }
}

// A field that is being typed in keeps its text.
function put(field, value) {
  if (document.activeElement !== field) field.value = value;
}

function fill(list, items, none) {
  // Rebuilt when it changes: the focus returns to the same place of the list.
  const key = JSON.stringify([none, items.map((item) => item.outerHTML)]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const buttons = [...list.querySelectorAll("button")], focused = buttons.indexOf(document.activeElement);
  list.replaceChildren(...(items.length > 0 ? items : [element("li", { className: "none-yet", textContent: none })]));
  if (focused >= 0) list.querySelectorAll("button")[Math.min(focused, list.querySelectorAll("button").length - 1)]?.focus();
}

// The settings of a video, as the server takes them.
export class MakePanel extends EventTarget {
  constructor({ defaults, methods, loras }) {
    super();
    this.form = $("#settings");
    const { elements: fields } = this.form;
    fields.method.replaceChildren(...methods.map((name) => element("option", { value: name, textContent: name })));
    this.lorasShown = loras.map((name) => {
      const weight = element("input", { type: "number", min: -2, max: 2, step: "any", value: 0, ariaLabel: `Weight of ${name}` });
      $("#loras").append(element("label", { className: "row" }, element("span", { textContent: name }), weight));
      return [name, weight];
    });
    if (loras.length === 0) $("#loras").append(element("p", { className: "muted", textContent: "none in this folder" }));
    this.form.addEventListener("input", () => this.changed());
    this.put(defaults);
  }

  changed() {
    const { elements: fields } = this.form, { renderer } = this.settings;
    for (const part of this.form.querySelectorAll("[data-renderer]")) part.hidden = part.dataset.renderer !== renderer;
    fields.method.closest("label").hidden = renderer !== "diffusion" || fields.loop.checked; // the loop is a method of its own
    fields.strength.hidden = fields.strength.disabled = fields.own.value === "own";
    // A field that is not shown must not stop the form.
    fields.width.disabled = fields.height.disabled = fields.size.value !== "set";
    for (const [, weight] of this.lorasShown) weight.disabled = renderer !== "diffusion";
    $("#size-set").hidden = fields.size.value !== "set";
    const seconds = Number(fields.frames.value) / Number(fields.fps.value);
    $("#duration").textContent = Number.isFinite(seconds) ? `The video lasts ${seconds.toFixed(1)} s.` : "";
    this.dispatchEvent(new Event("change"));
  }

  put(settings) {
    const { elements: fields } = this.form;
    for (const name of ["renderer", "method", "frames", "fps", "seed"]) if (settings[name] !== undefined) fields[name].value = settings[name];
    for (const name of ["loop", "gif", "webp"]) fields[name].checked = settings[name] ?? false;
    fields.own.value = settings.strength == null ? "own" : "set";
    fields.strength.value = settings.strength ?? 127;
    const sides = Array.isArray(settings.size) ? settings.size : null;
    fields.size.value = sides === null ? settings.size ?? "photo" : "set";
    if (sides !== null) [fields.height.value, fields.width.value] = sides;
    for (const [name, weight] of this.lorasShown) weight.value = settings.loras?.[name] ?? 0;
    this.changed();
  }

  // LoRA files of settings that are not in the folder.
  missing({ loras }) {
    return Object.keys(loras ?? {}).filter((name) => !this.lorasShown.some(([each]) => each === name));
  }

  get settings() {
    const { elements: fields } = this.form, value = (name) => Number(fields[name].value);
    const loras = this.lorasShown.map(([name, weight]) => [name, Number(weight.value)]).filter(([, weight]) => weight !== 0);
    return {
      renderer: fields.renderer.value, method: fields.method.value, frames: value("frames"), fps: value("fps"), loop: fields.loop.checked,
      strength: fields.own.value === "own" ? null : value("strength"), seed: value("seed"), gif: fields.gif.checked, webp: fields.webp.checked,
      size: fields.size.value === "set" ? [value("height"), value("width")] : fields.size.value,
      loras: fields.renderer.value === "diffusion" ? Object.fromEntries(loras) : {},
    };
  }
}
