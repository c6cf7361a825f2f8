// Keyboard shortcuts of the whole page, and the panel that lists them.

import { element } from "./panel.js";

const $ = (selector) => document.querySelector(selector);
const TOOLS = { a: "arrow", p: "pin", m: "magic", b: "brush", e: "eraser", l: "polygon", h: "hand" };

export const SHORTCUTS = [
  ["A P M B E L H", "arrow, pin, magic brush, brush, eraser, polygon, hand"],
  ["[ ]", "brush smaller, larger"],
  ["N", "the next stroke begins a new region"],
  ["Drag a point", "moves it; a drag of a line moves the whole arrow"],
  ["Double click, D", "on an arrow adds a point, on a point in between takes it away; D at the cross"],
  ["Del", "delete what is chosen, or the last corner"],
  ["Esc", "leave the stroke, or choose nothing"],
  ["Ctrl+Z", "undo; with Shift redo"],
  ["Wheel, + − 0", "zoom in, out, fit; two fingers on a touch screen"],
  ["Space + drag", "move the view; Shift + wheel too"],
  ["← ↑ → ↓", "on the photo: move the cross; with Shift by single pixels"],
  ["Enter", "on the photo: press and release the tool at the cross; closes a polygon, with Shift at the cross"],
  ["1 2 3", "show the drawing, the field, the motion"],
  ["Ctrl+Enter", "animate"],
  ["O, Ctrl+S, G, ?", "open a photo, save the drawing, gallery, this help"],
];

export function listShortcuts() {
  $("#help dl").replaceChildren(...SHORTCUTS.flatMap(([keys, what]) => [
    element("dt", {}, element("kbd", { textContent: keys })),
    element("dd", { textContent: what }),
  ]));
}

export function bindKeys({ selection, view, tools, show, actions }) {
  const plain = { o: actions.open, g: actions.gallery, n: actions.newRegion, "?": actions.help, "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8), 0: () => view.fit(), 1: () => show("drawing"), 2: () => show("field"), 3: () => show("motion") };
  const command = { z: (shift) => (shift ? tools.redo() : tools.undo()), y: () => tools.redo(), s: actions.save, enter: actions.animate };
  const run = (event, act, ...given) => {
    event.preventDefault();
    act(...given);
  };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=radio]):not([type=checkbox]):not([type=range]), select, textarea");
    if (document.querySelector("dialog[open]") !== null || event.isComposing) return;
    const key = event.key.toLowerCase(), onBoard = event.target === tools.canvas || event.target === document.body;
    if (event.ctrlKey || event.metaKey) {
      if (key in command && !(event.repeat && key === "enter") && !(typing && key !== "enter" && key !== "s")) run(event, command[key], event.shiftKey);
      return;
    }
    if (typing || event.altKey) return;
    if (key === "escape") return run(event, () => tools.escape());
    if (key === " " && onBoard) return run(event, () => { tools.spaceHeld = true; tools.toolChanged(); });
    if ((key === "delete" || key === "backspace") && event.target.closest("button:not(.pick)") === null) return run(event, actions.remove);
    if (key === "[" || key === "]") return run(event, actions.resize, key === "]" ? 1 : -1);
    if (key in TOOLS) return run(event, () => selection.choose({ tool: TOOLS[key] }));
    if (key in plain) run(event, plain[key]);
  });
  const released = () => {
    tools.spaceHeld = false;
    tools.toolChanged();
  };
  addEventListener("keyup", (event) => event.key === " " && released());
  addEventListener("blur", released);
}
