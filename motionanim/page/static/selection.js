// What is chosen: an arrow or a pin by its number, and a region by its name; and the tool in hand.

export class Selection extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { arrow: null, pin: null, region: null, tool: "arrow", radius: 20 });
  }

  choose(given) {
    if ("arrow" in given && given.arrow !== null) this.pin = null;
    if ("pin" in given && given.pin !== null) this.arrow = null;
    Object.assign(this, given);
    this.dispatchEvent(new Event("change"));
  }

  // Undo, redo and deletion may take away what is chosen.
  check(content) {
    if (this.arrow !== null && this.arrow >= content.arrows.length) this.arrow = null;
    if (this.pin !== null && this.pin >= content.pins.length) this.pin = null;
    if (this.region !== null && !(this.region in content.regions)) this.region = null;
  }
}
