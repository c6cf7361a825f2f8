// Jobs and their videos, the comparison side by side, and the gallery of this folder.

import * as api from "./api.js";
import { element } from "./panel.js";

const $ = (selector) => document.querySelector(selector);
const EVERY = 400; // ms between two looks at running jobs
const ACTIVE = ["waiting", "running"];
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export class Results {
  constructor({ tell, again, show }) {
    Object.assign(this, { tell, again, show, jobs: [], cards: new Map(), ticked: new Set(), timer: null, lost: false });
    this.started = new Map(); // drawings of the jobs of this page, by id
    $("#compare").addEventListener("click", () => this.compare());
    $("#gallery .close").addEventListener("click", () => $("#gallery").close());
    $("#gallery").addEventListener("close", () => release($("#gallery .cards")));
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    $("#player .close").addEventListener("click", () => $("#player").close());
    $("#player").addEventListener("close", () => release($("#player .side-by-side")));
    this.look();
  }

  // Reads the jobs. They run on without the page, and are found again when the server answers.
  async look() {
    clearTimeout(this.timer);
    try {
      const before = new Map(this.jobs.map((job) => [job.id, job.state]));
      const now = await api.jobs(), gone = this.jobs.filter((job) => !now.some((each) => each.id === job.id));
      // A server that was started again knows nothing of its former jobs.
      for (const job of gone) if (ACTIVE.includes(job.state)) Object.assign(job, { state: "failed", error: "The server ended before this video was made." });
      this.jobs = [...now, ...gone];
      if (this.lost) this.tell("The server answers again.");
      this.lost = false;
      this.draw();
      for (const job of this.jobs) if (before.has(job.id) && before.get(job.id) !== job.state) this.finished(job);
    } catch (error) {
      if (!this.lost) this.tell(error.message, true);
      this.lost = true;
    }
    const busy = this.lost || this.jobs.some((job) => ACTIVE.includes(job.state));
    if (busy) this.timer = setTimeout(() => this.look(), this.lost ? 3 * EVERY : EVERY);
  }

  finished(job) {
    if (job.state === "done") this.tell(`${job.files.mp4} is made in ${job.seconds.toFixed(0)} s.`);
    if (job.state === "failed") this.tell(job.error, true);
  }

  async start(body) {
    const job = await api.start(body);
    this.started.set(job.id, body.drawing);
    this.show();
    await this.look();
    return job;
  }

  draw() {
    const list = $("#job-list");
    $("#no-jobs").hidden = this.jobs.length > 0;
    const cards = this.jobs.map((job) => {
      const key = JSON.stringify([job.state, job.error, job.notes]);
      let card = this.cards.get(job.id);
      // A card with a playing video is made once, so that nothing jumps.
      if (card?.dataset.key !== key) {
        card = this.card(job);
        card.dataset.key = key;
        this.cards.set(job.id, card);
      }
      this.progress(card, job);
      return card;
    });
    if (cards.some((card, i) => list.children[i] !== card) || list.children.length !== cards.length) list.replaceChildren(...cards);
    this.countTicked();
  }

  card(job) {
    const about = element("div", { className: "about" });
    const title = element("h3", {}, job.name, element("small", { className: "muted", textContent: new Date(1000 * job.created).toLocaleTimeString() }));
    about.append(title);
    if (ACTIVE.includes(job.state)) {
      about.append(element("progress", { max: 1, ariaLabel: `Progress of ${job.name}` }), element("p", { className: "stage muted" }));
      about.append(element("button", { textContent: "Cancel", ariaLabel: `Cancel ${job.name}`, onclick: ({ target }) => {
        Object.assign(target, { disabled: true, textContent: "Cancelling …" });
        api.cancel(job.id).then(() => this.look(), (error) => this.tell(error.message, true));
      } }));
      return element("li", {}, about);
    }
    if (job.state !== "done") {
      about.append(element("p", { className: job.state === "failed" ? "bad" : "muted", textContent: job.error ?? "Cancelled; nothing was written." }));
      about.append(this.links(job));
      return element("li", {}, about);
    }
    const tick = element("input", { type: "checkbox", ariaLabel: `Compare ${job.name}`, checked: this.ticked.has(job.id) });
    tick.addEventListener("change", () => {
      if (tick.checked) this.ticked.add(job.id);
      else this.ticked.delete(job.id);
      this.countTicked();
    });
    title.prepend(tick);
    about.append(element("p", { className: "muted", textContent: `${described(job.settings)}, made in ${job.seconds.toFixed(0)} s` }));
    for (const note of job.notes) about.append(element("p", { className: "muted", textContent: note }));
    about.append(this.links(job));
    return element("li", {}, video(job.files.mp4), about);
  }

  links(entry) {
    const links = element("div", { className: "links" });
    if (entry.state === undefined || entry.state === "done")
      for (const [kind, name] of Object.entries(entry.files))
        if (kind !== "png") links.append(element("a", { href: `${api.fileUrl(name)}?download`, download: name, textContent: kind.toUpperCase(), ariaLabel: `Download ${name}` }));
    links.append(element("button", { textContent: "Again with this", ariaLabel: `Again with the drawing and settings of ${entry.name}`, onclick: () => this.again(entry, () => this.drawing(entry)) }));
    return links;
  }

  // The drawing of a job, or of a video of the gallery, which its record holds.
  async drawing({ id, files }) {
    if (this.started.has(id)) return this.started.get(id);
    if (id !== undefined) return api.drawingOf(id);
    const { arrows } = (await api.record(files.json)).command;
    return arrows ?? [];
  }

  progress(card, job) {
    const bar = card.querySelector("progress");
    if (bar === null) return;
    if (job.state === "running" && job.share > 0) bar.value = job.share;
    else bar.removeAttribute("value");
    const left = job.left == null ? "" : `, ${Math.ceil(job.left)} s left`;
    card.querySelector(".stage").textContent = job.state === "waiting" ? `waiting, number ${job.place} in the queue` : `${job.stage ?? "preparing"}${left}`;
  }

  countTicked() {
    const known = this.jobs.filter((job) => job.state === "done" && this.ticked.has(job.id)).length;
    $("#compare").disabled = known < 2;
    $("#compare").textContent = known < 2 ? "Compare (tick two)" : `Compare ${known}`;
  }

  compare() {
    this.play(this.jobs.filter((job) => job.state === "done" && this.ticked.has(job.id)));
  }

  // Side by side, started together.
  play(entries) {
    const videos = entries.map((entry) => video(entry.files.mp4, entry.name));
    const figures = entries.map((entry, i) => element("figure", {}, videos[i], element("figcaption", {}, element("strong", { textContent: entry.name }), ` ${described(entry.settings)}`)));
    $("#player .side-by-side").replaceChildren(...figures);
    $("#player").showModal();
    const ready = videos.map((each) => new Promise((done) => each.addEventListener("canplay", done, { once: true })));
    Promise.all(ready).then(() => videos.forEach((each) => ((each.currentTime = 0), still() || each.play())));
  }

  async gallery() {
    const list = $("#gallery .cards");
    $("#gallery").showModal();
    try {
      const entries = await api.gallery();
      $("#gallery .none").hidden = entries.length > 0;
      list.replaceChildren(...entries.map((entry) => {
        const about = element("div", { className: "about" }, element("h3", { textContent: entry.name }), element("p", { className: "muted", textContent: described(entry.settings) }), this.links(entry));
        return element("li", {}, lazy(video(entry.files.mp4, entry.name)), about);
      }));
    } catch (error) {
      this.tell(error.message, true);
      $("#gallery").close();
    }
  }
}

function video(name, label = name) {
  const made = element("video", { src: api.fileUrl(name), controls: true, loop: true, muted: true, playsInline: true, preload: "metadata", autoplay: !still(), ariaLabel: `Video ${label}` });
  made.addEventListener("loadedmetadata", () => made.style.setProperty("--shape", `${made.videoWidth} / ${made.videoHeight}`), { once: true });
  return made;
}

// Only videos in sight are loaded and play: a folder may hold hundreds.
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) target.src = target.dataset.src;
    else unload(target);
  }
});

function lazy(made) {
  made.dataset.src = made.src;
  made.removeAttribute("src");
  sight.observe(made);
  return made;
}

function unload(made) {
  made.removeAttribute("src");
  made.load();
}

function release(list) {
  for (const made of list.querySelectorAll("video")) {
    sight.unobserve(made);
    unload(made);
  }
  list.replaceChildren();
}

function described({ renderer, method, frames, fps, strength, loop, seed, size, loras }) {
  const parts = [renderer === "eulerian" ? "photo in motion" : loop ? "diffusion, loop" : `diffusion, ${method}`, `${frames} frames at ${fps}`];
  if (loop && renderer === "eulerian") parts.push("loop");
  if (strength != null) parts.push(`strength ${strength}`);
  if (size !== "photo") parts.push(Array.isArray(size) ? `${size[1]}×${size[0]}` : `size of the ${size}`);
  for (const [name, weight] of Object.entries(loras ?? {})) parts.push(`${name} at ${weight}`);
  return [...parts, `seed ${seed}`].join(", ");
}
