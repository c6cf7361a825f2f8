"use strict";
// What the study page decides, apart from the document: tests run this file alone.
const logic = {
  // A generator of numbers in [0, 1) from any text: its FNV-1a hash starts Mulberry32.
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

  // The sheet of a new participant. Slots 0, 1, 2... take up the comparisons one stretch after another, so that all are
  // shown about equally often; order and sides are drawn from the participant's id.
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

  // The sheet that was kept, or null if there is none of this very study.
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

  // The first comparison that is not answered in full; their number if all are.
  next(sheet) {
    const place = sheet.trials.findIndex((entry) => !logic.done(entry));
    return place < 0 ? sheet.trials.length : place;
  },

  // ?p=3 in the address is slot 3; without it the slot is drawn. Null is an address that cannot be meant.
  slot(search, draw) {
    const given = new URLSearchParams(search).get("p");
    if (given === null) return draw();
    return /^\d{1,6}$/.test(given) ? Number(given) : null;
  },
};
