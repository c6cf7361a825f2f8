// The page: opens photos, keeps the drawing of each photo in the browser, and joins the parts.

import * as api from "./api.js";
import { Board } from "./board.js";
import { Drawing, read } from "./drawing.js";
import { Field, Particles } from "./field.js";
import { bindKeys, listShortcuts } from "./keys.js";
import { Motion } from "./motion.js";
import { MakePanel, MotionPanel } from "./panel.js";
import { Results } from "./results.js";
import { Selection } from "./selection.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const stage = $("#stage");
const stored = (key) => `motionanim ${key}`;

let photo = null; // as the server describes it
let proposed = null; // { region } of T, to accept or dismiss

const drawing = new Drawing();
const selection = new Selection();
const view = new View(stage);
const board = new Board({ stage, view, drawing, selection });

function tell(text, bad = false) {
  $("#message").textContent = text;
  $("#message").classList.toggle("bad", bad);
}

// Runs an action of the user; its error becomes the message under the photo.
const tried = (act) => async (...given) => {
  try {
    await act(...given);
  } catch (error) {
    tell(error.message, true);
  }
};

async function busy(work) {
  document.body.setAttribute("aria-busy", "true");
  return work.finally(() => document.body.removeAttribute("aria-busy"));
}

// ---- what the browser keeps

function remember(key, value) {
  try {
    localStorage.setItem(stored(key), JSON.stringify(value));
  } catch {
    tell("The browser has no room to keep this drawing: save it as a file.", true);
  }
}

function remembered(key) {
  try {
    return JSON.parse(localStorage.getItem(stored(key)));
  } catch {
    return null;
  }
}

// Without a choice the page follows the system.
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  remember("theme", name);
}
if (remembered("theme") !== null) setTheme(remembered("theme"));

// ---- the photo and its drawing

async function show(next, content = null) {
  const picture = new Image();
  picture.src = next.url;
  await picture.decode().catch(() => {
    throw new Error(`${next.name} cannot be shown by this browser.`);
  });
  photo = next;
  board.picture = picture;
  board.proposal = board.stroke = null;
  view.photo = { width: photo.width, height: photo.height };
  $("#welcome").hidden = true;
  selection.choose({ arrow: null, pin: null, region: null });
  drawing.clear(photo, content ?? remembered(`drawing ${photo.id}`) ?? undefined);
  view.fit();
  motion?.setPhoto(picture);
  remember("photo", photo.id);
  tell(drawing.empty ? `${photo.name}, ${photo.width}×${photo.height}. Drag on what moves.` : "");
  tabs.postMessage({ photo: photo.id, hello: true });
}

const takeFiles = tried(async (files) => {
  const drawn = files.find((file) => file.name.toLowerCase().endsWith(".json")), pictures = files.filter((file) => file !== drawn);
  if (pictures.length > 0) {
    if (pictures[0].size > state.most_bytes) throw new Error(`${pictures[0].name} has more than ${state.most_bytes >> 20} MB: save it smaller, such as a JPEG.`);
    tell(`Reading ${pictures[0].name} …`);
    await show(await busy(api.addPhoto(pictures[0], pictures[0].name || "pasted.png")));
  }
  if (drawn !== undefined) await loadDrawing(await drawn.text());
});

async function loadDrawing(text) {
  if (photo === null) throw new Error("Open the photo first: a drawing belongs to a photo.");
  const content = read(text);
  const outside = content.arrows.flatMap((arrow) => arrow.path).concat(content.pins).some(([x, y]) => x < 0 || y < 0 || x > photo.width - 1 || y > photo.height - 1);
  if (outside) throw new Error(`This drawing is for another photo: it has points outside ${photo.width}×${photo.height}.`);
  drawing.edit((now) => Object.assign(now, content));
  tell("The drawing is loaded. Undo brings the former one back.");
}

function pick(accept) {
  const input = $("#file");
  input.accept = accept;
  input.value = "";
  input.click();
}

function save() {
  if (photo === null) return;
  const url = URL.createObjectURL(new Blob([JSON.stringify(drawing.toJSON(), null, 2) + "\n"], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: "arrows.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const question = () => (photo === null ? null : { photo: photo.id, drawing: drawing.toJSON(), settings: make.settings });

// ---- start

const state = await api.state().catch((error) => {
  tell(error.message, true);
  throw error;
});
const make = new MakePanel(state);
const field = new Field({ question, tell, view });
const particles = new Particles({ canvas: $("#particles"), view, field });
const motion = Motion.make({ canvas: $("#moving"), view, field });
const tools = new Tools({ board, view, drawing, selection, tell, photo: () => photo, busy });
new MotionPanel({ drawing, selection, board, span: state.span });
const results = new Results({ tell, again: tried(again), show: () => openTab("results") });

// ---- the preview: what the photo shows while one draws

let shown = "drawing";
let last = null, clock = 0; // time of the last frame of the screen, ms; place in the video, frames

function setView(name) {
  shown = name;
  remember("view", name);
  for (const button of all("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === name);
  // Without WebGL the particles stand in for the moving photo.
  const moving = name === "motion" && motion !== null;
  $("#moving").hidden = !moving;
  $("#particles").hidden = name === "drawing" || moving;
  board.faint = name === "motion";
  board.paint();
  if (name === "drawing" || last !== null) return;
  last = performance.now();
  requestAnimationFrame(tick);
}

function tick(now) {
  if (shown === "drawing") {
    last = null;
    return;
  }
  const seconds = Math.min(Math.max(now - last, 0) / 1000, 0.1), { frames, fps, loop } = make.settings;
  last = now;
  clock = (clock + seconds * fps) % Math.max(frames, 2);
  if ($("#moving").hidden) particles.paint(seconds, clock, fps);
  else motion.paint(clock, frames, loop);
  requestAnimationFrame(tick);
}

let waiting = null;
function changed() {
  if (photo === null) return;
  if (drawing.before === null) remember(`drawing ${photo.id}`, drawing.toJSON());
  $("#undo").disabled = drawing.past.length === 0;
  $("#redo").disabled = drawing.future.length === 0;
  field.ask();
  clearTimeout(waiting);
  waiting = setTimeout(tried(showCommand), 300);
}

async function showCommand() {
  if (photo !== null) $("#command").textContent = await api.command(question());
}

drawing.addEventListener("change", changed);
make.addEventListener("change", changed);
view.addEventListener("change", () => ($("#zoom-fit").textContent = `${Math.round(view.scale * 100)} %`));

// ---- making videos

const animate = tried(async () => {
  if (photo === null) throw new Error("Open a photo first.");
  if (!$("#settings").reportValidity()) return openTab("make");
  await results.start(question());
});

// The photo, drawing and settings of a job or of a video of the gallery.
async function again(entry) {
  const id = entry.photo;
  if (id == null) throw new Error(`The photo of ${entry.name} (${entry.image}) is no longer in this folder.`);
  const content = entry.arrows ?? JSON.parse(await api.text(api.fileUrl(entry.files.arrows)));
  const known = photo?.id === id ? photo : await api.photo(id);
  const drawn = read(JSON.stringify(content));
  if (photo?.id === id) drawing.edit((now) => Object.assign(now, drawn));
  else await show(known, drawn);
  make.put(entry.settings);
  $("#gallery").close();
  openTab("make");
  tell(`Drawing and settings of ${entry.name}.`);
}

const propose = tried(async () => {
  if (photo === null) throw new Error("Open a photo first.");
  tell("T looks at the arrows …");
  const { region, share } = await busy(api.proposal(question()));
  proposed = region;
  board.proposal = region;
  board.paint();
  $("#proposal span").textContent = `T proposes that ${Math.round(share * 100)} % of the photo move.`;
  $("#proposal").hidden = false;
  tell("");
});

function endProposal() {
  proposed = board.proposal = null;
  $("#proposal").hidden = true;
  board.paint();
}

// ---- buttons, tabs, keys

function openTab(name) {
  for (const tab of all('[role="tab"]')) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
  }
}

const radiusOf = (value) => Math.max(1, (0.25 * Math.max(view.photo.width, view.photo.height) * (value / 100) ** 2));
const slider = $("#radius");
const sized = () => selection.choose({ radius: radiusOf(slider.value) });
function resize(way) {
  slider.value = Number(slider.value) + 5 * way;
  sized();
}

function showTool() {
  for (const button of all("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === selection.tool);
}

const actions = {
  open: () => pick("image/*,.heic,.heif"), save, animate, resize, gallery: () => results.gallery(), help: () => $("#help").showModal(),
  newRegion: () => selection.choose({ region: null, tool: ["brush", "polygon"].includes(selection.tool) ? selection.tool : "magic" }),
};
for (const [id, act] of Object.entries({
  open: actions.open, "open-here": actions.open, load: () => pick(".json"), save, undo: () => drawing.undo(), redo: () => drawing.redo(),
  "zoom-in": () => view.zoom(1.25), "zoom-out": () => view.zoom(0.8), "zoom-fit": () => view.fit(), "show-gallery": actions.gallery,
  "show-help": actions.help, "new-region": actions.newRegion, remove: () => tools.remove(), propose, reject: endProposal,
  accept: () => { tools.addParts(proposed); endProposal(); },
  copy: tried(async () => { await navigator.clipboard.writeText($("#command").textContent); tell("The command is copied."); }),
  theme: () => setTheme(dark() ? "light" : "dark"),
})) $(`#${id}`).addEventListener("click", act);
$("#help .close").addEventListener("click", () => $("#help").close());
$("#settings").addEventListener("submit", (event) => { event.preventDefault(); animate(); });
$("#file").addEventListener("change", (event) => takeFiles([...event.target.files]));
for (const button of all("[data-tool]")) button.addEventListener("click", () => selection.choose({ tool: button.dataset.tool }));
for (const button of all("[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
for (const tab of all('[role="tab"]')) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], tabs = all('[role="tab"]');
    if (way === undefined) return;
    const next = tabs[(tabs.indexOf(tab) + way + tabs.length) % tabs.length];
    openTab(next.getAttribute("aria-controls"));
    next.focus();
  });
}
slider.addEventListener("input", sized);
selection.addEventListener("change", showTool);

addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length > 0) takeFiles(files);
});
let over = 0; // elements of the page that a dragged file is over
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carriesFiles(event)) { over++; $("#drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (carriesFiles(event) && --over <= 0) { over = 0; $("#drop").hidden = true; } });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  $("#drop").hidden = true;
  takeFiles([...event.dataTransfer.files]);
});

// Another tab with this photo keeps its drawing in the same place: the last edit would win without a word.
const tabs = new BroadcastChannel("motionanim");
tabs.addEventListener("message", ({ data }) => {
  if (photo === null || data.photo !== photo.id) return;
  tell("This photo is open in another tab too: the tab that draws last decides which drawing is kept.");
  if (data.hello) tabs.postMessage({ photo: photo.id });
});

listShortcuts();
bindKeys({ drawing, selection, view, tools, show: setView, actions });
openTab("motions");
showTool();
setView(remembered("view") ?? "drawing");
drawing.clear({ width: 1, height: 1 });
const former = remembered("photo");
const first = state.photo ?? (former === null ? null : await api.photo(former).catch(() => null));
tell("");
if (first !== null) await tried(show)(first);
sized();
