"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const trialOf = new Map([...study.trials, ...study.always].map((trial) => [trial.id, trial]));
const find = (id) => document.getElementById(id);
const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const now = () => new Date().toISOString();
const draw = (count) => [...crypto.getRandomValues(new Uint32Array(count))];
const place = new URLSearchParams(location.search).get("p");
const shelf = `study ${study.study} ${place ?? ""}`;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Some browsers forbid storage for pages opened as files. The page then says so and goes on.
function keep() {
  try {
    localStorage.setItem(shelf, JSON.stringify(sheet));
  } catch {
    find("storage").hidden = false;
  }
}

function kept() {
  try {
    return logic.restore(study, localStorage.getItem(shelf));
  } catch {
    return null;
  }
}

let sheet = kept();
let current = 0;
let videos = [];
let playing = true;

// Starts all videos together. When the last one has ended, they start again.
function replay() {
  playing = true;
  find("pause").textContent = "Pause";
  for (const video of videos) {
    video.currentTime = 0;
    video.play().catch(() => {}); // the browser wants a click first, or another comparison was opened
  }
}

function pause() {
  playing = !playing;
  if (playing && videos.every((video) => video.ended)) replay();
  find("pause").textContent = playing ? "Pause" : "Play";
  for (const video of videos) {
    if (!playing) video.pause();
    else if (!video.ended) video.play().catch(() => {});
  }
}

function makeVideo(id, letter) {
  const video = element("video", { src: `media/${id}.mp4`, muted: true, playsInline: true, preload: "auto" });
  video.setAttribute("aria-label", `Video ${letter}`);
  video.addEventListener("ended", () => {
    if (playing && videos.every((other) => other.ended)) setTimeout(() => playing && replay(), 400);
  });
  video.addEventListener("error", () => {
    find("problem").textContent = `Video ${letter} cannot be played in this browser. Please tell who sent you the study.`;
  });
  return video;
}

function makeQuestion(question, entry) {
  const options = element("div", { className: "options" });
  const choices = entry.shown.map((id, index) => [id, letters[index]]);
  for (const [value, label] of [...choices, ["tie", "No difference"]]) {
    const input = element("input", { type: "radio", name: question.id, value });
    input.checked = entry.answers[question.id] === value;
    input.addEventListener("change", () => {
      entry.answers[question.id] = value;
      entry.answered = now();
      keep();
      refresh();
    });
    options.append(element("label", {}, input, ` ${label}`));
  }
  return element("fieldset", {}, element("legend", { textContent: question.text }), options);
}

function refresh() {
  const count = sheet.trials.filter(logic.done).length;
  find("progress").max = sheet.trials.length;
  find("progress").value = count;
  find("count").textContent = `${count} of ${sheet.trials.length} answered`;
  if (current < sheet.trials.length) find("next").disabled = !logic.done(sheet.trials[current]);
  find("back").disabled = current === 0;
}

function open(index) {
  current = index;
  for (const video of videos) {
    video.removeAttribute("src");
    video.load(); // releases the file and the decoder
  }
  find("start").hidden = true;
  find("problem").textContent = "";
  const over = index === sheet.trials.length;
  find("trial").hidden = over;
  find("end").hidden = !over;
  find("bar").hidden = false;
  find("leave").hidden = over;
  refresh();
  if (over) {
    videos = [];
    find("end-title").focus();
    return;
  }
  const entry = sheet.trials[index], trial = trialOf.get(entry.trial);
  entry.opened ??= now();
  keep();
  find("trial-title").textContent = `Comparison ${index + 1} of ${sheet.trials.length}`;
  videos = entry.shown.map((id, number) => makeVideo(id, letters[number]));
  find("videos").replaceChildren(
    ...videos.map((video, number) =>
      element("figure", {}, video, element("figcaption", { textContent: `Video ${letters[number]}` })),
    ),
  );
  find("videos").classList.toggle("many", videos.length > 2);
  find("photo").hidden = trial.image === null;
  if (trial.image !== null) find("photo-image").src = `media/${trial.image}.png`;
  find("questions").replaceChildren(...study.questions.map((question) => makeQuestion(question, entry)));
  find("trial-title").focus();
  // The videos start together once all can play, because a late start would influence the answers.
  const mine = videos;
  Promise.all(
    mine.map((video) => new Promise((ready) => video.addEventListener("canplaythrough", ready, { once: true }))),
  ).then(() => mine === videos && replay());
}

function votes() {
  return JSON.stringify({ ...sheet, saved: now() }, null, 1) + "\n";
}

function save() {
  const address = URL.createObjectURL(new Blob([votes()], { type: "application/json" }));
  const link = element("a", { href: address, download: `votes-${study.study}-${sheet.participant}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  for (const id of ["saved", "saved-early"]) find(id).hidden = false;
}

function begin() {
  if (sheet === null) {
    const slot = logic.slot(location.search, () => draw(1)[0]);
    const participant = draw(2).map((number) => number.toString(16).padStart(8, "0")).join("");
    sheet = logic.start(study, participant, slot, now());
    keep();
  }
  open(logic.next(sheet));
}

find("begin").addEventListener("click", begin);
find("replay").addEventListener("click", replay);
find("pause").addEventListener("click", pause);
find("next").addEventListener("click", () => open(current + 1));
find("back").addEventListener("click", () => open(current - 1));
for (const id of ["save", "save-early"]) find(id).addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("trial").hidden) return;
  if (event.key === "r") replay();
  if (event.key === "p") pause();
});

find("length").textContent = String(study.perParticipant + study.always.length);
if (logic.slot(location.search, () => 0) === null) {
  find("begin").disabled = true;
  find("problem").textContent = "The address of this page is wrong: after ?p= there must be a number.";
} else if (sheet !== null) {
  begin();
}
