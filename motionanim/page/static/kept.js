// What the browser keeps from visit to visit: the drawing of each photo, the settings of the video, the theme.

import { read } from "./drawing.js";

const PREFIX = "motionanim ";
const DRAWING = `${PREFIX}drawing `;

export function remembered(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key));
  } catch {
    return null;
  }
}

// Returns whether there was room. Old drawings go first.
export function remember(key, value) {
  for (;;) {
    try {
      localStorage.setItem(PREFIX + key, JSON.stringify(value));
      return true;
    } catch {
      const others = Object.keys(localStorage).filter((each) => each.startsWith(DRAWING) && each !== PREFIX + key);
      if (others.length === 0) return false;
      const age = (each) => JSON.parse(localStorage.getItem(each)).time ?? 0;
      localStorage.removeItem(others.reduce((oldest, each) => (age(each) < age(oldest) ? each : oldest)));
    }
  }
}

export const keepDrawing = (id, content) => remember(`drawing ${id}`, { time: Date.now(), content });
export function keptDrawing(id) {
  try {
    return read(JSON.stringify(remembered(`drawing ${id}`).content));
  } catch {
    return null; // none, or of another version of the page
  }
}
