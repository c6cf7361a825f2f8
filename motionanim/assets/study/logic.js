"use strict";
// The decisions of the study page, without the document, so that tests can run this file alone.
const logic = {
  // Random numbers in [0, 1) seeded by a text: Mulberry32, started from the text's FNV-1a hash.
  random(text) {
    let state = 0x811c9dc5;
    for (const letter of text) state = Math.imul(state ^ letter.codePointAt(0), 0x01000193);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  },

  shuffle(items, random) {
    const list = [...items];
    for (let last = list.length - 1; last > 0; last--) {
      const other = Math.floor(random() * (last + 1));
      [list[last], list[other]] = [list[other], list[last]];
    }
    return list;
  },

  // The sheet of a new participant. Slots 0, 1, 2... take consecutive parts of the comparisons, so that all are shown
  // about equally often. The participant's id seeds the order and the sides.
  start(study, participant, slot, now) {
    const all = study.trials, random = logic.random(participant);
    const first = (slot * study.perParticipant) % all.length;
    const mine = Array.from({ length: study.perParticipant }, (_, k) => all[(first + k) % all.length]);
    const trials = logic.shuffle([...mine, ...study.always], random).map((trial) => ({
      trial: trial.id,
      shown: logic.shuffle(trial.videos, random),
      opened: null,
      answered: null,
      answers: Object.fromEntries(study.questions.map((question) => [question.id, null])),
    }));
    return { schema: study.schema, study: study.study, participant, slot, started: now, saved: null, trials };
  },

  // The kept sheet, or null if there is none of this study.
  restore(study, text) {
    try {
      const sheet = JSON.parse(text);
      const fits = sheet.schema === study.schema && sheet.study === study.study && Array.isArray(sheet.trials);
      return fits ? sheet : null;
    } catch {
      return null;
    }
  },

  done: (entry) => Object.values(entry.answers).every((answer) => answer !== null),

  // The index of the first comparison without all answers; the number of comparisons if there is none.
  next(sheet) {
    const place = sheet.trials.findIndex((entry) => !logic.done(entry));
    return place < 0 ? sheet.trials.length : place;
  },

  // The slot: 3 for ?p=3 in the address, random without p, null if p is no number.
  slot(search, draw) {
    const given = new URLSearchParams(search).get("p");
    if (given === null) return draw();
    return /^\d{1,6}$/.test(given) ? Number(given) : null;
  },
};
