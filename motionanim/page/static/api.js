// Calls of the server. Every failure is an Error whose message is one plain line for the user.

const names = new Map(); // of the photos' files, by id

// Messages of the server in the words of the page.
function inWords(text) {
  return text
    .replace(/arrows\[(\d+)\]/g, (_, i) => `Arrow ${Number(i) + 1}`)
    .replace(/pins\[(\d+)\]/g, (_, i) => `Pin ${Number(i) + 1}`)
    .replace(/regions\.(region \d+)/g, "$1")
    .replace("use loop=false, or kind=sway", "untick \"Loop without a seam\", or choose Sway")
    .replace(/kind=(\w+)/g, "$1");
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    const lost = new Error("The server does not answer. Is python -m motionanim.page still running? Nothing here is lost.");
    lost.lost = true;
    throw lost;
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try {
    text = (await answer.json()).error ?? text;
  } catch { /* the body is no JSON */ }
  const error = new Error(inWords(text));
  error.status = answer.status;
  throw error;
}

const json = async (path, options) => (await call(path, options)).json();
async function post(path, body) {
  const ask = () => call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  try {
    return await ask();
  } catch (error) {
    // A server that was started again finds the photo by its file's name.
    if (error.status !== 404 || !names.has(body.photo)) throw error;
    await photo(body.photo, names.get(body.photo));
    return ask();
  }
}

export const state = () => json("/api/state");
const known = (found) => {
  names.set(found.id, found.name);
  return found;
};
export const photo = async (id, name = names.get(id) ?? "") => known(await json(`/api/photos/${encodeURIComponent(id)}?name=${encodeURIComponent(name)}`));
export const addPhoto = async (file, name) =>
  known(await json(`/api/photos?name=${encodeURIComponent(name)}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file }));
export const magic = async (body) => (await post("/api/magic", body)).json();
export const proposal = async (body) => (await post("/api/proposal", body)).json();
export const command = async (body) => (await (await post("/api/command", body)).json()).command;
export const start = async (body) => (await post("/api/jobs", body)).json();
export const jobs = async () =>
  (await json("/api/jobs")).jobs.map((job) => ({ ...job, error: job.error && inWords(job.error), notes: job.notes.map(inWords) }));
export const cancel = async (id) => (await post(`/api/jobs/${encodeURIComponent(id)}/cancel`, {})).json();
export const drawingOf = (id) => json(`/api/jobs/${encodeURIComponent(id)}/drawing`);
export const gallery = async () => (await json("/api/gallery")).videos;
export const fileUrl = (name) => `/files/${encodeURIComponent(name)}`;
export const record = (name) => json(fileUrl(name));

// The motion of a drawing on a grid over the photo: flow and sways as float16, regions as bytes.
export async function field(body) {
  const bytes = await (await post("/api/field", body)).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const start = 4 + length, cells = head.width * head.height;
  const halves = (offset) => new Uint16Array(bytes, start + offset, 2 * cells);
  const mask = (offset) => new Uint8Array(bytes, start + offset, cells);
  return {
    ...head,
    notes: head.notes.map(inWords),
    flow: halves(head.flow),
    sways: head.sways.map((each) => ({ ...each, amplitude: halves(each.offset) })),
    turns: head.turns.map((each) => ({ ...each, region: mask(each.offset) })),
    moves: head.moves.map((each) => ({ ...each, region: mask(each.offset) })),
  };
}

export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
