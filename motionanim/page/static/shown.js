// What the photo shows while one draws: the drawing alone, its field as particles, or the photo in motion.

import { remember } from "./kept.js";

const $ = (selector) => document.querySelector(selector);

export class Shown {
  constructor({ board, particles, motion, make, tell }) {
    Object.assign(this, { board, particles, motion, make, tell, name: "drawing" });
    this.last = null; // time of the last frame of the screen, ms; null while nothing moves
    this.clock = 0; // place in the video, frames
    this.buttons = [...document.querySelectorAll("[data-view]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.set(button.dataset.view));
  }

  set(name) {
    this.name = name;
    remember("view", name);
    for (const button of this.buttons) button.setAttribute("aria-pressed", button.dataset.view === name);
    // Without WebGL the particles stand in for the moving photo.
    const moving = name === "motion" && this.motion !== null;
    if (name === "motion" && !moving) this.tell("This browser has no WebGL 2: particles show the motion instead.");
    $("#moving").hidden = !moving;
    $("#particles").hidden = name === "drawing" || moving;
    this.board.faint = name === "motion";
    this.board.paint();
    if (name === "drawing" || this.last !== null) return;
    this.last = performance.now();
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    if (this.name === "drawing") {
      this.last = null;
      return;
    }
    const seconds = Math.min(Math.max(now - this.last, 0) / 1000, 0.1), { frames, fps, loop } = this.make.settings;
    this.last = now;
    this.clock = (this.clock + seconds * fps) % Math.max(frames, 2);
    if ($("#moving").hidden) this.particles.paint(seconds, this.clock, fps);
    else this.motion.paint(this.clock, frames, loop);
    requestAnimationFrame((next) => this.tick(next));
  }
}
