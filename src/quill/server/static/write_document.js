// The document of the Write tab: what was asked for, and the characters that came, with their log-probabilities.
//
// A document never changes; each change makes a new one, so that undo is a list of documents. Its cells lie in blocks,
// and a block that is full stays the same object, so that only the last one is drawn again while the text grows.

const BLOCK = 64;

/**
 * Return an empty document for a request.
 *
 * `prompt` is what the server is asked to continue, text or token ids. `cells` are characters that are known already,
 * and `tokens` are their ids. `off` are the parts that are switched off. `settings`, `seed` and `weights` (the hash)
 * complete what decides the text.
 */
export function newDocument({ prompt, off, settings, seed, weights, cells = [] }) {
  return { prompt, off, settings, seed, weights, blocks: inBlocks(cells), promptTokens: cells.flatMap(({ ids }) => ids).length, end: null };
}

function inBlocks(cells) {
  const blocks = [];
  for (let start = 0; start < cells.length; start += BLOCK) blocks.push(cells.slice(start, start + BLOCK));
  return blocks;
}

/** Return a document with more cells at its end. */
export function append(document, cells) {
  const last = document.blocks.at(-1);
  const open = last && last.length < BLOCK;
  const kept = open ? document.blocks.slice(0, -1) : document.blocks;
  return { ...document, blocks: [...kept, ...inBlocks([...(open ? last : []), ...cells])] };
}

export function cellsOf(document) {
  return document.blocks.flat();
}

export function textOf(cells) {
  return cells.map(({ text }) => text).join("");
}

export function tokensOf(cells) {
  return cells.flatMap(({ ids }) => ids);
}

/** Makes cells of the tokens in the order in which they come: a character may need several tokens. */
export class CellReader {
  #bytes = [];
  #ids = [];
  #logprob = 0;

  /** Return the cells that these tokens complete; `generated` says whether they are part of the prompt. */
  read(tokens, ids, logprobs, generated) {
    const cells = [];
    tokens.forEach((token, index) => {
      const bytes = bytesOf(token);
      if (bytes === null) cells.push(...this.flush(generated));
      this.#ids.push(ids[index]);
      this.#logprob = logprobs[index] === null || this.#logprob === null ? null : this.#logprob + logprobs[index];
      if (bytes === null) {
        cells.push(this.#cell(token, generated));
        return;
      }
      this.#bytes.push(...bytes);
      const text = decode(this.#bytes);
      if (text !== null) cells.push(this.#cell(text, generated));
    });
    return cells;
  }

  /** Return a cell for bytes that are no character. */
  flush(generated) {
    return this.#ids.length ? [this.#cell("\ufffd", generated)] : [];
  }

  #cell(text, generated) {
    const cell = { text, ids: this.#ids, logprob: this.#logprob, generated };
    this.#bytes = [];
    this.#ids = [];
    this.#logprob = 0;
    return cell;
  }
}

/** Return the bytes of a token that is no character by itself, "bytes:\xe2\x80"; null for any other token. */
function bytesOf(token) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return null;
  return token.slice("bytes:\\x".length).split("\\x").map((byte) => parseInt(byte, 16));
}

function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** Surprise in bits: the negative base-2 logarithm of the probability. */
export function surprise(logprob) {
  return Math.max(0, -logprob / Math.LN2);
}

/** Upper bounds of the levels of surprise, in bits; the last level has none. */
export const LEVELS = [0.5, 1, 2, 3, 4, 5.5, 7.5];

export function level(logprob) {
  if (logprob === null) return 0;
  const bits = surprise(logprob);
  const found = LEVELS.findIndex((bound) => bits < bound);
  return found < 0 ? LEVELS.length : found;
}

const NAMES = { "\n": "line break", " ": "space", "\t": "tab", "\r": "carriage return", "\u00a0": "no-break space" };
const MARKS = { "\n": "↵", " ": "␣", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };

/** The name of a character for a screen reader. */
export function nameOf(text) {
  return NAMES[text] ?? text;
}

/** A visible mark for a character. */
export function markOf(text) {
  return MARKS[text] ?? text;
}

/** A probability for people: 42 %, 0.3 %, < 0.1 %. */
export function percent(probability) {
  if (probability === 0) return "0";
  const value = probability * 100;
  if (value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}
