// The text in a line, with an arc to each token that the chosen one looks at.

import { html, useEffect, useRef } from "../html.js";
import { mapOf, rowOf, visible } from "./maps.js";

const HEIGHT = 110;
const FAINTEST = 0.02; // share of attention without an arc

export function Arcs({ found, bytes, head, tokens, position, setPosition }) {
  const line = useRef(null);
  const [layer, index] = head.split(".").map(Number);
  const longest = Math.max(...tokens.map((token) => visible(token).length));
  const cell = Math.min(96, Math.max(18, 9 * longest + 8));
  const width = cell * tokens.length;
  const weights = rowOf(mapOf(bytes, tokens.length, layer * found.heads + index), position);
  const middle = (s) => (s + 0.5) * cell;

  useEffect(() => {
    const box = line.current;
    const place = middle(position);
    if (place < box.scrollLeft + cell || place > box.scrollLeft + box.clientWidth - cell) box.scrollLeft = place - box.clientWidth / 2;
  }, [position, cell]);

  const arcs = weights.map((weight, s) => ({ weight, s })).filter(({ weight, s }) => weight >= FAINTEST && s < position);
  return html`
    <section class="card wide arcs" aria-label="Where the chosen token looks">
      <h2>Where <span class="token">${visible(tokens[position])}</span> looks, head ${head}</h2>
      <div class="line" ref=${line} tabindex="0" role="group" aria-label="The text in a line; scroll it with the arrow keys">
        <svg width=${width} height=${HEIGHT} aria-hidden="true">
          ${arcs.map(({ weight, s }) => {
            const [from, to] = [middle(position), middle(s)];
            const rise = Math.min(HEIGHT - 6, 12 + Math.abs(from - to) / 2.2);
            return html`<path key=${s} d=${`M ${from} ${HEIGHT} C ${from} ${HEIGHT - rise} ${to} ${HEIGHT - rise} ${to} ${HEIGHT}`}
              stroke-width=${(1 + 6 * weight).toFixed(1)} stroke-opacity=${(0.25 + 0.75 * weight).toFixed(2)} />`;
          })}
        </svg>
        <div class="tokens" aria-hidden="true">
          ${tokens.map((token, t) => html`
            <span key=${t} class=${t === position ? "token chosen" : "token"}
              style=${{ width: `${cell}px`, "--share": t <= position ? Math.sqrt(weights[t]).toFixed(3) : 0 }}
              onPointerEnter=${() => setPosition(t)} onClick=${() => setPosition(t)}>${visible(token)}</span>`)}
        </div>
      </div>
    </section>`;
}
