// The page: opens photos, keeps the drawing of each photo in the browser, and joins the parts.

import * as api from "./api.js";
import { Board } from "./board.js";
import { Drawing, read } from "./drawing.js";
import { takeDrops } from "./drops.js";
import { Field, Particles } from "./field.js";
import { keepDrawing, keptDrawing, remember, remembered } from "./kept.js";
import { bindKeys, listShortcuts } from "./keys.js";
import { MakePanel, MotionPanel } from "./panel.js";
import { Motion } from "./preview.js";
import { Results } from "./results.js";
import { Selection } from "./selection.js";
import { Shown } from "./shown.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const READ = 8000; // ms that a message stays which is no error

let photo = null; // as the server describes it
let turn = 0; // of the photo that was asked for last; answers to earlier ones come too late
let proposed = null; // the region that the flow refiner proposes, to accept or dismiss

let fading = null;
function tell(text, bad = false) {
  clearTimeout(fading);
  $("#message").textContent = text;
  $("#message").classList.toggle("bad", bad);
  if (text !== "" && !bad) fading = setTimeout(() => tell(""), READ);
}

// A fault at the start would leave the page dead without a word.
const failed = (message) => { if ($("[inert]") !== null) tell(`The page did not start: ${message}`, true); };
addEventListener("error", (event) => failed(event.message));
addEventListener("unhandledrejection", (event) => failed(event.reason?.message ?? event.reason));

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

// Without a choice the page follows the system.
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  remember("theme", name);
}
if (remembered("theme") !== null) setTheme(remembered("theme"));

async function serverState() {
  for (;;) {
    try {
      return await api.state();
    } catch (error) {
      tell(error.message, true);
      await new Promise((done) => setTimeout(done, 1500));
    }
  }
}

// ---- the parts

const state = await serverState();
const drawing = new Drawing();
const selection = new Selection();
const view = new View($("#stage"));
const board = new Board({ stage: $("#stage"), view, drawing, selection });
const make = new MakePanel(state);
const question = () => (photo === null ? null : { photo: photo.id, drawing: drawing.toJSON(), settings: make.settings });
const field = new Field({ question, tell, view });
const particles = new Particles({ canvas: $("#particles"), view, field });
const motion = Motion.make({ canvas: $("#moving"), view, field });
const shown = new Shown({ board, particles, motion, make, tell });
const tools = new Tools({ board, view, drawing, selection, tell, photo: () => photo, busy });
const results = new Results({ tell, again: tried(again), show: () => openTab("results") });
new MotionPanel({ drawing, selection, board, tools, make, span: state.span, travels });

// ---- the photo and its drawing

async function show(next) {
  const asked = ++turn, picture = new Image();
  picture.src = next.url;
  await picture.decode().catch(() => {
    throw new Error(`${next.name} cannot be shown: the server does not answer, or this browser cannot read it.`);
  });
  if (asked !== turn) return;
  tools.stop();
  endProposal();
  photo = next;
  board.picture = picture;
  view.photo = { width: photo.width, height: photo.height };
  $("#welcome").hidden = true;
  selection.choose({ arrow: null, pin: null, region: null });
  field.forget();
  drawing.clear(photo, keptDrawing(photo.id) ?? undefined);
  view.fit();
  sized();
  motion?.setPhoto(picture);
  $("#stage").dataset.photo = `${photo.width}x${photo.height} ${photo.name}`;
  sessionStorage.setItem("photo", JSON.stringify({ id: photo.id, name: photo.name }));
  remember("photo", { id: photo.id, name: photo.name });
  tell(drawing.empty ? `${photo.name}, ${photo.width}×${photo.height}. Drag on what moves.` : "");
  tabs.postMessage({ photo: photo.id, hello: true });
}

const takeFiles = tried(async (files) => {
  const drawn = files.find((file) => file.name.toLowerCase().endsWith(".json")), picture = files.find((file) => file !== drawn);
  if (picture !== undefined) {
    if (picture.size > state.most_bytes) throw new Error(`${picture.name} has more than ${state.most_bytes >> 20} MB: save it smaller, such as a JPEG.`);
    tell(`Reading ${picture.name} …`);
    const asked = ++turn, found = await busy(api.addPhoto(picture, picture.name || "pasted.png"));
    if (asked !== turn) return;
    await show(found);
  }
  if (drawn !== undefined) loadDrawing(await drawn.text());
});

function loadDrawing(text) {
  if (photo === null) throw new Error("Open the photo first: a drawing belongs to a photo.");
  const content = read(text);
  const outside = content.arrows.flatMap((arrow) => arrow.path).concat(content.pins).some(([x, y]) => x < 0 || y < 0 || x > photo.width - 1 || y > photo.height - 1);
  if (outside) throw new Error(`This drawing is for another photo: it has points outside ${photo.width}×${photo.height}.`);
  replace(content);
  tell("The drawing is loaded. Undo brings the former one back.");
}

function replace(content) {
  tools.stop();
  drawing.edit((now) => Object.assign(now, content));
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
  Object.assign(document.createElement("a"), { href: url, download: drawingFile }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A moved region does not come back, so it cannot be part of a loop.
function travels() {
  if (!make.settings.loop) return;
  make.put({ ...make.settings, loop: false });
  setTimeout(() => tell("The video is no longer a loop, because a moved region does not come back.")); // after the edit
}

let waiting = null;
let drawingFile = "arrows.json"; // the file that the shown command reads
function changed() {
  if (photo === null) return;
  if (!field.wrong) tell(""); // what was said of the drawing before
  if (drawing.before === null && !keepDrawing(photo.id, drawing.toJSON())) tell("The browser has no room to keep this drawing: save it as a file.", true);
  $("#undo").disabled = drawing.past.length === 0;
  $("#redo").disabled = drawing.future.length === 0;
  field.ask();
  clearTimeout(waiting);
  $("#command").classList.add("muted"); // until the command of this drawing and these settings comes
  waiting = setTimeout(tried(showCommand), 300);
}

async function showCommand() {
  const asked = question();
  if (asked === null) return;
  const command = $("#settings").checkValidity() ? await api.command(asked) : "A setting is out of range.";
  if (asked.photo !== photo?.id) return;
  $("#command").textContent = command;
  $("#command").classList.remove("muted");
  drawingFile = /arrows=['"]*([^'"]+?\.arrows\.json)/.exec(command)?.[1] ?? "arrows.json";
}

drawing.addEventListener("change", changed);
make.addEventListener("change", () => {
  remember("settings", make.settings);
  changed();
});
view.addEventListener("change", () => ($("#zoom-fit").textContent = photo === null ? "100 %" : `${Math.round(view.scale * 100)} %`));

// ---- making videos

const animate = tried(async () => {
  if (photo === null) throw new Error("Open a photo first.");
  if (!$("#settings").checkValidity()) {
    openTab("make");
    $("#settings").reportValidity();
    return;
  }
  const button = $("#animate");
  if (button.disabled) return;
  button.disabled = true;
  await results.start(question()).finally(() => (button.disabled = false));
});

// The photo, drawing and settings of a job or of a video of the gallery.
async function again(entry, drawingOf) {
  $("#gallery").close();
  const id = entry.photo;
  if (id == null) throw new Error(`The photo of ${entry.name} (${entry.image}) is not in this folder.`);
  const content = read(JSON.stringify(await drawingOf()));
  if (photo?.id !== id) await show(await api.photo(id, entry.image));
  replace(content); // of a photo that has a drawing: undo brings that back
  make.put(entry.settings);
  openTab("make");
  const gone = make.missing(entry.settings);
  tell(`Drawing and settings of ${entry.name}.` + (gone.length > 0 ? ` Not in this folder: ${gone.join(", ")}.` : ""), gone.length > 0);
}

const propose = tried(async () => {
  if (photo === null) throw new Error("Open a photo first.");
  tell("The flow refiner looks for what moves …");
  const asked = question(), { region, share } = await busy(api.proposal(asked));
  if (asked.photo !== photo?.id) return;
  proposed = board.proposal = region;
  board.paint();
  $("#proposal span").textContent = `The flow refiner proposes ${Math.round(share * 100)} % of the photo.`;
  $("#proposal").hidden = false;
  tell("");
});

function endProposal() {
  const inside = $("#proposal").contains(document.activeElement);
  proposed = board.proposal = null;
  $("#proposal").hidden = true;
  board.paint();
  if (inside) $("#propose").focus();
}

function accept() {
  tools.addParts(proposed, null);
  endProposal();
}

// ---- buttons, tabs, keys

function openTab(name) {
  for (const tab of all('[role="tab"]')) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
  }
  if (name === "results") results.look();
}

const radiusOf = (value) => Math.max(1, 0.25 * Math.max(view.photo.width, view.photo.height) * (value / 100) ** 2);
const slider = $("#radius");
const sized = () => selection.choose({ radius: radiusOf(slider.value) });
function resize(way) {
  slider.value = Number(slider.value) + 5 * way;
  sized();
}

function remove() {
  const inside = $("#inspector").contains(document.activeElement);
  tools.remove();
  if (inside) board.canvas.focus();
}

// Pages of another machine have no clipboard unless they come by https.
async function copy() {
  const code = $("#command");
  if (navigator.clipboard === undefined) {
    getSelection().selectAllChildren(code);
    throw new Error("This browser lets the page copy nothing: the command is selected, press Ctrl+C.");
  }
  await navigator.clipboard.writeText(code.textContent);
  tell("The command is copied.");
}

const actions = {
  open: () => pick("image/*,.heic,.heif"), save, animate, resize, gallery: () => results.gallery(), help: () => $("#help").showModal(), remove,
  newRegion: () => selection.choose({ region: null, tool: ["brush", "polygon"].includes(selection.tool) ? selection.tool : "magic" }),
};
for (const [id, act] of Object.entries({
  open: actions.open, "open-here": actions.open, load: () => pick(".json"), save, undo: () => tools.undo(), redo: () => tools.redo(),
  "zoom-in": () => view.zoom(1.25), "zoom-out": () => view.zoom(0.8), "zoom-fit": () => view.fit(), "show-gallery": actions.gallery,
  "show-help": actions.help, "new-region": actions.newRegion, remove, propose, reject: endProposal, accept, copy: tried(copy),
  theme: () => setTheme(dark() ? "light" : "dark"),
})) $(`#${id}`).addEventListener("click", act);
$("#help .close").addEventListener("click", () => $("#help").close());
$("#settings").addEventListener("submit", (event) => { event.preventDefault(); animate(); });
$("#file").addEventListener("change", (event) => takeFiles([...event.target.files]));
for (const button of all("[data-tool]")) button.addEventListener("click", () => selection.choose({ tool: button.dataset.tool }));
for (const tab of all('[role="tab"]')) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], others = all('[role="tab"]');
    if (way === undefined) return;
    const next = others[(others.indexOf(tab) + way + others.length) % others.length];
    openTab(next.getAttribute("aria-controls"));
    next.focus();
  });
}
slider.addEventListener("input", sized);
selection.addEventListener("change", () => {
  for (const button of all("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === selection.tool);
});

addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length > 0) takeFiles(files);
});
takeDrops($("#drop"), takeFiles);

// Another tab with this photo keeps its drawing in the same place: the last edit would win without a word.
const tabs = new BroadcastChannel("motionanim");
tabs.addEventListener("message", ({ data }) => {
  if (photo === null || data.photo !== photo.id) return;
  tell("This photo is open in another tab too: the tab that draws last decides which drawing is kept.", true);
  if (data.hello) tabs.postMessage({ photo: photo.id });
});

// ---- start

listShortcuts();
bindKeys({ selection, view, tools, show: (name) => shown.set(name), actions });
if (remembered("settings") !== null) make.put({ ...state.defaults, ...remembered("settings") });
$("#gallery-title").textContent = `Gallery of ${state.folder}`;
openTab("motions");
sized();
shown.set(remembered("view") ?? "drawing");
for (const part of all("[inert]")) part.inert = false; // what is clicked before would be lost
tell("");
// A reload comes back to the photo of this tab; a new tab begins with the photo of the command, or the last one.
const former = JSON.parse(sessionStorage.getItem("photo")) ?? (state.photo === null ? remembered("photo") : null);
const found = former === null ? null : await api.photo(former.id, former.name).catch(() => null);
if (found !== null || state.photo !== null) await tried(show)(found ?? state.photo);
if (state.error !== null) tell(state.error, true);
