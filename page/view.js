// Shows a photo before and after its curves: in WebGL2, or in a worker's hands where there is none.

import {BLACK, COLOURED, NOISE, SHARED_FALL, slopes} from "./curves.js";

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1); }`;
const FRAGMENT = `#version 300 es
precision highp float;
const float NOISE = ${NOISE.toFixed(9)}, BLACK = ${BLACK.toFixed(9)}, COLOURED = ${COLOURED.toFixed(9)};
const float SHARED_FALL = ${SHARED_FALL.toFixed(9)};
uniform sampler2D photo, black, white;  // the photo; slopes of its curves at black, and how much less grain; at white
uniform vec4 place;  // of the photo on the canvas: left, top, width, height
uniform float height, split, gain;  // of the canvas; where after begins; that levels the photo
out vec4 colour;
vec3 near(vec4 scale, vec2 uv, int right, int down) {
  return textureGrad(photo, uv + vec2(right, down) / vec2(textureSize(photo, 0)), scale.xy, scale.zw).rgb;
}
vec3 ratio(vec3 t, vec3 s, vec3 w) {
  return (1.0 + (s - 1.0) * (1.0 - t)) / (1.0 + (s + w - 2.0) * t * (1.0 - t));
}
void main() {
  vec2 position = vec2(gl_FragCoord.x, height - gl_FragCoord.y);
  vec2 uv = (position - place.xy) / place.zw;
  vec4 scale = 0.70710678 * vec4(dFdx(uv), dFdy(uv));  // sharp rather than smooth where the photo is reduced
  vec4 x = textureGrad(photo, uv, scale.xy, scale.zw);
  if (any(lessThan(uv, vec2(0))) || any(greaterThan(uv, vec2(1)))) { colour = vec4(0); return; }
  vec3 y = x.rgb;
  if (position.x >= split) {
    vec4 s = texture(black, uv);
    vec3 w = texture(white, uv).rgb;
    if (s.a > 0.0) {
      vec3 mean = 4.0 * y + near(scale, uv, -1, -1) + near(scale, uv, 1, -1) + near(scale, uv, -1, 1) + near(scale, uv, 1, 1);
      mean += 2.0 * (near(scale, uv, 0, -1) + near(scale, uv, -1, 0) + near(scale, uv, 1, 0) + near(scale, uv, 0, 1));
      mean /= 16.0;
      vec3 difference = y - mean, grain = clamp(difference, -NOISE, NOISE);
      vec3 moves = step(BLACK, max(y, mean)) * (1.0 - step(1.0, y));
      y -= moves * s.a * (grain - clamp(difference - grain, -NOISE, NOISE));
      float fading = max(1.0 - max(y.r, max(y.g, y.b)) / COLOURED, 0.0);
      float median = max(min(y.r, y.g), min(max(y.r, y.g), y.b));
      y.rb += s.a * fading * fading / 2.0 * (2.0 * y.g - y.rb - median);
    }
    y *= gain / sqrt(1.0 + (gain * gain - 1.0) * y * y);
    vec3 t = mix(y, vec3(min(y.r, min(y.g, y.b))), SHARED_FALL);
    y *= min(ratio(y, s.rgb, w), ratio(t, s.rgb, w));
  }
  colour = vec4(y * x.a, x.a);
}`;

class GlView {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext("webgl2", {antialias: false, depth: false, alpha: true});
    if (!gl) throw new Error("no WebGL2");
    const program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "no shader");
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(["place", "height", "split", "gain"].map(name => [name, gl.getUniformLocation(program, name)]));
    this.textures = ["photo", "black", "white"].map((name, unit) => {
      gl.uniform1i(gl.getUniformLocation(program, name), unit);
      const texture = gl.createTexture();
      this.bind(unit, texture);
      for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, unit ? gl.LINEAR : gl.LINEAR_MIPMAP_LINEAR);
      return texture;
    });
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.largest = Math.min(gl.getParameter(gl.MAX_TEXTURE_SIZE), 8192);
    this.name = "WebGL2";
  }

  bind(unit, texture) {
    this.gl.activeTexture(this.gl.TEXTURE0 + unit);
    this.gl.bindTexture(this.gl.TEXTURE_2D, texture);
  }

  setPhoto({data, width, height}, space) {
    const {gl} = this;
    if ("drawingBufferColorSpace" in gl) gl.drawingBufferColorSpace = space;
    this.bind(0, this.textures[0]);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(data.buffer));
    gl.generateMipmap(gl.TEXTURE_2D);
  }

  setCurves(maps, strength, exposure) {
    const {gl} = this, {black, white, gain} = slopes(maps, strength, exposure);
    gl.uniform1f(this.uniforms.gain, gain);
    for (const [unit, values] of [[1, black], [2, white]]) {
      this.bind(unit, this.textures[unit]);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA16F, maps.width, maps.height, 0, gl.RGBA, gl.FLOAT, values);
    }
  }

  draw(place, split) {
    const {gl, canvas, uniforms} = this;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.uniform4f(uniforms.place, ...place);
    gl.uniform1f(uniforms.height, canvas.height);
    gl.uniform1f(uniforms.split, split);
    this.bind(0, this.textures[0]);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  clear() {
    this.gl.clearColor(0, 0, 0, 0);
    this.gl.clear(this.gl.COLOR_BUFFER_BIT);
  }
}

class WorkerView {
  constructor(canvas, redraw) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.worker = new Worker(new URL("view-worker.js", import.meta.url), {type: "module"});
    this.worker.onmessage = ({data}) => {
      this.isBusy = false;
      if (data.number === this.number) { this.after = data.bitmap; redraw(); }
      this.send();
    };
    this.number = 0;
    this.largest = 2048;
    this.name = "no WebGL2: a worker draws";
  }

  async setPhoto({data, width, height}, space) {
    this.size = [width, height];
    this.space = space;
    this.number++;
    this.before = this.after = null;
    this.worker.postMessage({photo: {data, width, height}, space});
    const number = this.number, bitmap = await createImageBitmap(new ImageData(data, width, height, {colorSpace: space}));
    if (number === this.number) this.before = bitmap;
  }

  setCurves(maps, strength, exposure) {
    this.wanted = {maps, strength, exposure, number: this.number};
    this.send();
  }

  send() {
    if (this.isBusy || !this.wanted) return;
    this.worker.postMessage(this.wanted);
    this.wanted = null;
    this.isBusy = true;
  }

  draw(place, split) {
    const {context, canvas} = this;
    this.clear();
    for (const [bitmap, left, right] of [[this.before, 0, split], [this.after, split, canvas.width]]) {
      if (!bitmap || right <= left) continue;
      context.save();
      context.beginPath();
      context.rect(left, 0, right - left, canvas.height);
      context.clip();
      context.drawImage(bitmap, ...place);
      context.restore();
    }
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
}

// What shows photos on a canvas: WebGL2, or a worker where there is none or `plain` asks for it.
export const openView = (canvas, redraw, plain) => {
  if (!plain) {
    try {
      return new GlView(canvas);
    } catch (error) {
      console.info("no WebGL2: a worker draws", error);
      const other = canvas.cloneNode();  // one that failed gives no other context
      canvas.replaceWith(other);
      canvas = other;
    }
  }
  return new WorkerView(canvas, redraw);
};
