// Calls of the server. Every failure is an Error whose message is one plain line for the user.

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const lost = new Error("The server does not answer. Is python -m motionanim.page still running? Nothing here is lost.");
    lost.lost = true;
    throw lost;
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try {
    text = (await answer.json()).error ?? text;
  } catch { /* the body is no JSON */ }
  const error = new Error(text);
  error.status = answer.status;
  throw error;
}

const json = async (path, options) => (await call(path, options)).json();
const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const state = () => json("/api/state");
export const photo = (id) => json(`/api/photos/${encodeURIComponent(id)}`);
export const addPhoto = (file, name) =>
  json(`/api/photos?name=${encodeURIComponent(name)}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
export const magic = async (body) => (await post("/api/magic", body)).json();
export const proposal = async (body) => (await post("/api/proposal", body)).json();
export const command = async (body, signal) => (await (await post("/api/command", body, signal)).json()).command;
export const start = async (body) => (await post("/api/jobs", body)).json();
export const jobs = async () => (await json("/api/jobs")).jobs;
export const cancel = async (id) => (await post(`/api/jobs/${encodeURIComponent(id)}/cancel`, {})).json();
export const gallery = async () => (await json("/api/gallery")).videos;
export const fileUrl = (name) => `/files/${encodeURIComponent(name)}`;
export const text = async (url) => (await call(url)).text();

// The motion of a drawing on a grid over the photo: flow and sways as float16, regions as bytes.
export async function field(body, signal) {
  const bytes = await (await post("/api/field", body, signal)).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const start = 4 + length, cells = head.width * head.height;
  const halves = (offset) => new Uint16Array(bytes, start + offset, 2 * cells);
  const mask = (offset) => new Uint8Array(bytes, start + offset, cells);
  return {
    ...head,
    flow: halves(head.flow),
    mask: mask(head.mask),
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
