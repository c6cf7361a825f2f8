// A preview of the photo in motion, drawn by WebGL: the flow map, and sways, turns and moved regions over it.
// The renderer of the server adds what takes longer: starts spread over time, contrast, filled ground behind moved regions.

const VERTEX = `#version 300 es
uniform vec4 frame;   // the photo on the stage: left, top, width, height in clip space
out vec2 place;       // in the photo, 0 to 1
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  place = corner;
  gl_Position = vec4(frame.xy + corner * frame.zw, 0, 1);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D photo, field, region;
uniform vec2 size;      // of the photo, px
uniform int kind;       // 0 flow, 1 sway, 2 turn, 3 move, 4 the hole behind a move
uniform float time;     // frames
uniform float turn;     // frames between two starts of a layer
uniform float wave, angle;
uniform vec2 center, offset;
in vec2 place;
out vec4 colour;

vec2 flow(vec2 at) { return texture(field, at).xy / size; }

// Where the content of a place was, a number of frames ago: upstream along the field.
vec2 upstream(vec2 at, float frames) {
  for (int i = 0; i < 6; i++) {
    vec2 middle = at - flow(at) * frames / 12.0;
    at -= flow(middle) * frames / 6.0;
  }
  return at;
}

void main() {
  if (kind == 0) {
    float first = fract(time / turn), second = fract(time / turn + 0.5);
    float weight = abs(2.0 * first - 1.0);
    vec4 one = texture(photo, upstream(place, (first - 0.5) * turn)), other = texture(photo, upstream(place, (second - 0.5) * turn));
    colour = mix(one, other, weight);
  } else if (kind == 1) {
    if (flow(place) == vec2(0)) discard;
    vec2 back = -wave * flow(place);
    for (int i = 0; i < 3; i++) back = -wave * flow(place + back);
    colour = texture(photo, place + back);
  } else if (kind == 2) {
    if (texture(region, place).r < 0.5) discard;
    vec2 from = place * size - center - 0.5;
    mat2 turned = mat2(cos(angle), -sin(angle), sin(angle), cos(angle));
    colour = texture(photo, (turned * from + center + 0.5) / size);
  } else if (kind == 3) {
    vec2 from = place - offset / size;
    if (any(lessThan(from, vec2(0))) || any(greaterThan(from, vec2(1))) || texture(region, from).r < 0.5) discard;
    colour = texture(photo, from);
  } else {
    if (texture(region, place).r < 0.5) discard;
    colour = textureLod(photo, place, 5.5);
  }
  colour.a = 1.0;
}`;

const NAMES = ["frame", "photo", "field", "region", "size", "kind", "time", "turn", "wave", "angle", "center", "offset"];
const REACH = 0.08; // share of the photo's height that the texture travels in one turn, as in the server's flow map
const LEAST_TURN = 6; // frames

export class Motion {
  // `null` where the browser has no WebGL 2, or one that does not work.
  static make(parts) {
    const gl = parts.canvas.getContext("webgl2", { premultipliedAlpha: true, preserveDrawingBuffer: true });
    try {
      return gl === null ? null : new Motion({ ...parts, gl });
    } catch (error) {
      console.warn(error);
      return null;
    }
  }

  constructor({ canvas, gl, view, field }) {
    Object.assign(this, { canvas, gl, view, field, textures: null, picture: null });
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.prepare());
    field.addEventListener("change", () => this.upload());
    this.prepare();
  }

  prepare() {
    const { gl } = this, program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(NAMES.map((name) => [name, gl.getUniformLocation(program, name)]));
    NAMES.slice(1, 4).forEach((name, unit) => gl.uniform1i(this.uniforms[name], unit));
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.photo = null;
    this.textures = null;
    if (this.picture !== null) this.setPhoto(this.picture);
    this.upload();
  }

  setPhoto(picture) {
    const { gl } = this;
    this.picture = picture;
    gl.deleteTexture(this.photo);
    this.photo = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.photo);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.generateMipmap(gl.TEXTURE_2D);
    this.wrap(gl.LINEAR_MIPMAP_LINEAR, gl.MIRRORED_REPEAT);
  }

  wrap(small, edge) {
    const { gl } = this;
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, small);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, edge);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, edge);
  }

  texture(internal, format, type, { width, height }, content) {
    const { gl } = this, made = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.texImage2D(gl.TEXTURE_2D, 0, internal, width, height, 0, format, type, content);
    this.wrap(gl.LINEAR, gl.CLAMP_TO_EDGE);
    return made;
  }

  upload() {
    const { gl } = this, field = this.field.current;
    for (const each of this.textures?.all ?? []) gl.deleteTexture(each);
    this.textures = null;
    if (field === null) return;
    const halves = (content) => this.texture(gl.RG16F, gl.RG, gl.HALF_FLOAT, field, content);
    const mask = (content) => this.texture(gl.R8, gl.RED, gl.UNSIGNED_BYTE, field, content);
    const flow = halves(field.flow);
    const sways = field.sways.map((each) => ({ ...each, texture: halves(each.amplitude) }));
    const turns = field.turns.map((each) => ({ ...each, texture: mask(each.region) }));
    const moves = field.moves.map((each) => ({ ...each, texture: mask(each.region) }));
    let peak = 0;
    const sampler = this.field.sampler();
    for (const cell of sampler.moving) peak = Math.max(peak, Math.hypot(...sampler.at(((cell % field.width) + 0.5) / field.width, (Math.floor(cell / field.width) + 0.5) / field.height, 0)));
    this.textures = { flow, sways, turns, moves, peak, all: [flow, ...[...sways, ...turns, ...moves].map((each) => each.texture)] };
  }

  paint(time, frames, loop) {
    const { gl, uniforms, view } = this, ratio = window.devicePixelRatio || 1;
    const width = Math.round(view.width * ratio), height = Math.round(view.height * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (this.textures === null || this.photo === null) return;
    const { photo } = view, { flow, sways, turns, moves, peak } = this.textures;
    const across = (2 * photo.width * view.scale) / view.width, down = (2 * photo.height * view.scale) / view.height;
    gl.uniform4f(uniforms.frame, (2 * view.x) / view.width - 1, 1 - (2 * view.y) / view.height, across, -down);
    gl.uniform2f(uniforms.size, photo.width, photo.height);
    let turn = Math.max(peak > 0 ? (REACH * photo.height) / peak : LEAST_TURN, LEAST_TURN);
    if (loop) turn = frames / Math.max(1, Math.ceil(frames / turn));
    gl.uniform1f(uniforms.turn, turn);
    gl.uniform1f(uniforms.time, time);
    const bind = (unit, texture) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
    };
    const draw = (kind) => {
      gl.uniform1i(uniforms.kind, kind);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    };
    bind(0, this.photo);
    bind(1, flow);
    draw(0);
    for (const { texture } of moves) {
      bind(2, texture);
      draw(4);
    }
    for (const { texture, period, phase } of sways) {
      bind(1, texture);
      gl.uniform1f(uniforms.wave, Math.sin((2 * Math.PI * time) / period + phase) - Math.sin(phase));
      draw(1);
    }
    for (const { texture, center, angle } of turns) {
      bind(2, texture);
      gl.uniform2f(uniforms.center, ...center);
      gl.uniform1f(uniforms.angle, angle * time);
      draw(2);
    }
    for (const { texture, offsets } of moves) {
      bind(2, texture);
      const now = Math.min(time, offsets.length - 1), low = Math.floor(now), high = Math.min(low + 1, offsets.length - 1), share = now - low;
      gl.uniform2f(uniforms.offset, ...[0, 1].map((axis) => offsets[low][axis] * (1 - share) + offsets[high][axis] * share));
      draw(3);
    }
  }
}
