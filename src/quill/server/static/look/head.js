// One head, large: its attention as a picture, and as a table for one token.

import { useAnswer, useSettled } from "../answers.js";
import { html, useLayoutEffect, useRef, useState } from "../html.js";
import { drawMap, mapOf, visible } from "./maps.js";

const MOST_ROWS = 12;

export function Head({ question, found, bytes, head, setKind, tokens, position, setPosition }) {
  const canvas = useRef(null);
  const [pointed, setPointed] = useState(null);
  const [layer, index] = head.split(".").map(Number);
  const length = tokens.length;

  useLayoutEffect(() => {
    drawMap(canvas.current, mapOf(bytes, length, layer * found.heads + index), length);
  }, [bytes, head]);

  const point = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const s = Math.floor(((event.clientX - box.left) / box.width) * length);
    const t = Math.floor(((event.clientY - box.top) / box.height) * length);
    setPointed(t >= 0 && t < length && s >= 0 && s <= t ? { t, s } : null);
  };
  const row = { top: `${(100 * position) / length}%`, height: `${100 / length}%` };
  return html`
    <section class="card one-head" aria-label="Head ${head}">
      <h2>Head ${head}</h2>
      <div class="map" onPointerMove=${point} onPointerLeave=${() => setPointed(null)}
        onClick=${() => pointed && setPosition(pointed.t)}>
        <canvas ref=${canvas} role="img" aria-label="Attention of head ${head}: row t shows where token t looks. The table has the numbers of one token."></canvas>
        <span class="row-mark" style=${row}></span>
      </div>
      <p class="soft small pointed" aria-hidden="true">${pointed
        ? html`${pointed.t} <b>${visible(tokens[pointed.t])}</b> looks at ${pointed.s} <b>${visible(tokens[pointed.s])}</b>`
        : "A row is a token, a column a token that it looks at. Brighter is more."}</p>
      <${Row} question=${question} layer=${layer} head=${index} tokens=${tokens} position=${position} />
      <label class="small">Show
        <select value=${question.kind} onChange=${(event) => setKind(event.currentTarget.value)}>
          <option value="weights">attention</option>
          <option value="value-weighted">attention × size of what is read</option>
        </select>
      </label>
    </section>`;
}

/** Where one token looks, exactly: the tokens with the most of its attention. */
function Row({ question, layer, head, tokens, position }) {
  const settled = useSettled(position, 120, question.text);
  const { data } = useAnswer("/api/look/row", { ...question, layer, head, position: Math.min(settled, tokens.length - 1) });
  const weights = data?.attends_to ?? [];
  const order = weights.map((weight, s) => ({ weight, s })).sort((a, b) => b.weight - a.weight).slice(0, MOST_ROWS);
  const at = data?.position ?? position;
  return html`
    <table class="numbers">
      <caption>Token ${at}, <b class="token">${visible(tokens[at] ?? "")}</b>, looks at</caption>
      <thead><tr><th scope="col">token</th><th scope="col">back</th><th scope="col">attention</th></tr></thead>
      <tbody>
        ${order.map(({ weight, s }) => html`
          <tr key=${s}>
            <th scope="row"><span class="token">${visible(tokens[s] ?? "")}</span> <span class="soft">${s}</span></th>
            <td>${at - s}</td>
            <td>${(100 * weight).toFixed(2)} %</td>
          </tr>`)}
      </tbody>
    </table>`;
}
