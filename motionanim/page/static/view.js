// Where the photo lies on the stage. `scale` is CSS pixels per photo pixel, (x, y) the place of the photo's upper left corner.

const MOST = 32; // CSS pixels per photo pixel

export class View extends EventTarget {
  constructor(stage) {
    super();
    this.stage = stage;
    this.photo = { width: 1, height: 1 };
    Object.assign(this, { scale: 1, x: 0, y: 0, fitted: true });
    new ResizeObserver(() => (this.fitted ? this.fit() : this.moved())).observe(stage);
  }

  get width() {
    return this.stage.clientWidth;
  }

  get height() {
    return this.stage.clientHeight;
  }

  get fitScale() {
    const edge = Math.min(24, this.width / 30);
    return Math.max(Math.min((this.width - 2 * edge) / this.photo.width, (this.height - 2 * edge) / this.photo.height), 1e-3);
  }

  fit() {
    this.scale = this.fitScale;
    this.x = (this.width - this.photo.width * this.scale) / 2;
    this.y = (this.height - this.photo.height * this.scale) / 2;
    this.fitted = true;
    this.moved();
  }

  // Zoom so that the photo stays in place under (x, y) of the stage.
  zoom(factor, [x, y] = [this.width / 2, this.height / 2]) {
    const scale = Math.min(Math.max(this.scale * factor, this.fitScale / 2), Math.max(MOST, this.fitScale));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.moved();
  }

  pan(dx, dy) {
    const seen = 40; // CSS pixels of the photo that stay on the stage
    this.x = Math.min(Math.max(this.x + dx, seen - this.photo.width * this.scale), this.width - seen);
    this.y = Math.min(Math.max(this.y + dy, seen - this.photo.height * this.scale), this.height - seen);
    this.fitted = false;
    this.moved();
  }

  // Points of a drawing count from the centre of the photo's first pixel.
  toPhoto([x, y]) {
    return [(x - this.x) / this.scale - 0.5, (y - this.y) / this.scale - 0.5];
  }

  toStage([x, y]) {
    return [(x + 0.5) * this.scale + this.x, (y + 0.5) * this.scale + this.y];
  }

  moved() {
    Object.assign(this.stage.dataset, { scale: this.scale, x: this.x, y: this.y });
    this.dispatchEvent(new Event("change"));
  }
}
