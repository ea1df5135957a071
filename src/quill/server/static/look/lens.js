// What each layer would predict: the logit lens and the tuned lens, as a table of layers × tokens.

import { useAnswer } from "../answers.js";
import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { Job } from "../jobs.js";
import { visible } from "./maps.js";

export function Lens({ model, question, tokens, position, setPosition }) {
  const [tuned, setTuned] = useState(false);
  const [trained, setTrained] = useState(0);
  const { data, error } = useAnswer("/api/look/lens", { ...question, tuned }, trained);
  return html`
    <section class="card wide lens" aria-label="What each layer would predict">
      <div class="row spread">
        <h2>What each layer would predict</h2>
        <label class="check"><input type="checkbox" checked=${tuned} onChange=${(event) => setTuned(event.currentTarget.checked)} /> tuned lens</label>
      </div>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      ${data && !data.trained && html`
        <p>The tuned lens has an affine map for each layer, trained to predict what the model itself predicts. It is trained once.</p>
        <${Job} job="tuned-lens" model=${model} label="Train the tuned lens" done=${() => setTrained(trained + 1)} />`}
      ${data?.trained && data.tokens.length === tokens.length && html`
        <${LensGrid} found=${data} tokens=${tokens} position=${position} setPosition=${setPosition} />
        <p class="soft small">${data.explanation}</p>`}
    </section>`;
}

/** The table, the last layer on top, and what the layers say about the chosen token. */
export function LensGrid({ found, tokens, position, setPosition }) {
  const box = useRef(null);
  const rows = found.readings.map((_, reading) => reading).reverse();
  // The cells depend on the chosen token by one class only, so they are made once for a text.
  const cells = useMemo(() => rows.map((reading) => html`
    <tr key=${reading}>
      <th scope="row">${found.readings[reading]}</th>
      ${found.predicted[reading].map((text, t) => html`
        <td style=${{ "--share": found.probability[reading][t] }} data-token=${t}>${visible(text)}</td>`)}
    </tr>`), [found]);
  useEffect(() => {
    for (const cell of box.current.querySelectorAll(".chosen")) cell.classList.remove("chosen");
    const chosen = box.current.querySelectorAll(`[data-token="${position}"]`);
    for (const cell of chosen) cell.classList.add("chosen");
    const place = chosen[0]?.offsetLeft ?? 0;
    if (place < box.current.scrollLeft + 90 || place > box.current.scrollLeft + box.current.clientWidth - 40) {
      box.current.scrollLeft = place - box.current.clientWidth / 2;
    }
  }, [position, found]);
  const choose = (event) => {
    const token = event.target.closest("[data-token]")?.dataset.token;
    if (token !== undefined) setPosition(Number(token));
  };
  return html`
    <div class="scroll" ref=${box} tabindex="0" role="group" aria-label="Predictions of all layers; scroll with the arrow keys" onClick=${choose}>
      <table class="lens-grid">
        <thead><tr><th scope="col">after</th>${tokens.map((token, t) => html`<th scope="col" data-token=${t}>${visible(token)}</th>`)}</tr></thead>
        <tbody>${cells}</tbody>
      </table>
    </div>
    <table class="numbers">
      <caption>After <b class="token">${visible(tokens[position])}</b>, token ${position}</caption>
      <thead><tr><th scope="col">layer</th><th scope="col">would write</th><th scope="col">probability</th><th scope="col">from the end</th></tr></thead>
      <tbody>
        ${rows.map((reading) => html`
          <tr key=${reading}>
            <th scope="row">${found.readings[reading]}</th>
            <td class="token">${visible(found.predicted[reading][position])}</td>
            <td>${(100 * found.probability[reading][position]).toFixed(1)} %</td>
            <td>${found.kl[reading][position].toFixed(2)} nats</td>
          </tr>`)}
      </tbody>
    </table>`;
}
