// Attention maps: decoding, colours and drawing.
//
// A map of T tokens is the lower triangle of a T × T matrix, row by row: byte 255 · √weight. Row t begins at t (t + 1) / 2.

// Cividis (Nuñez, Anderton & Renslow 2018), which people with any kind of colour vision read alike.
const CIVIDIS =
  "00224e00285b002e6a0533711c396f293f6e33446d3c4a6c45506c4d556c555b6d5c616e6467706b6d72727274787877" +
  "807f78888578908b78979177a09875a89e73b0a571b9ab6dc2b369cbb965d3c05fdcc859e6d051efd748f8df3cfee838";

/** 32-bit pixels of the 256 colours. */
const PIXELS = (() => {
  const stops = CIVIDIS.match(/../g).map((digits) => parseInt(digits, 16));
  const bytes = new Uint8ClampedArray(1024);
  for (let level = 0; level < 256; level++) {
    const place = (level / 255) * 31;
    const [stop, share] = [Math.min(30, Math.floor(place)), place - Math.min(30, Math.floor(place))];
    for (let part = 0; part < 3; part++) {
      bytes[4 * level + part] = stops[3 * stop + part] * (1 - share) + stops[3 * stop + 3 + part] * share;
    }
    bytes[4 * level + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
})();

/** Return the bytes of a base64 text. */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Return the number of bytes of one map. */
export function sizeOf(length) {
  return (length * (length + 1)) / 2;
}

/** Return the bytes of map `index` of several. */
export function mapOf(bytes, length, index) {
  return bytes.subarray(index * sizeOf(length), (index + 1) * sizeOf(length));
}

/** Return the weights of row `t` of a map, as precise as its bytes. */
export function rowOf(map, t) {
  return Array.from(map.subarray(sizeOf(t), sizeOf(t + 1)), (byte) => (byte / 255) ** 2);
}

/** Draw a map into a canvas, a pixel for each pair of tokens; what cannot be attended to stays transparent. */
export function drawMap(canvas, map, length) {
  if (canvas.width !== length || canvas.height !== length) Object.assign(canvas, { width: length, height: length });
  const context = canvas.getContext("2d");
  const image = context.createImageData(length, length);
  const pixels = new Uint32Array(image.data.buffer);
  let at = 0;
  for (let t = 0; t < length; t++) {
    for (let place = t * length, end = place + t; place <= end; place++) pixels[place] = PIXELS[map[at++]];
  }
  context.putImageData(image, 0, 0);
}

/** Return a token as it is shown: line breaks, spaces and control characters become visible. */
export function visible(token) {
  return token
    .replaceAll("\n", "↵")
    .replaceAll(" ", "·")
    .replaceAll("\t", "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "�");
}
