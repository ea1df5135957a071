// Switches for the parts of the model, the loss that those cost which are off, and a text written without them.

import { events, switchedId } from "../api.js";
import { useAnswer } from "../answers.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { signed } from "./heads.js";

export function Switches({ model, about, off, setOff, text }) {
  const { data: cost } = useAnswer("/api/switches/cost", off.length ? { model: model.id, off } : null);
  const toggle = (part) => setOff(off.includes(part) ? off.filter((other) => other !== part) : [...off, part]);
  const Switch = (part, label) => html`
    <label class="switch"><input type="checkbox" checked=${!off.includes(part)} aria-label=${label} onChange=${() => toggle(part)} /></label>`;
  const { heads, feed_forward: forwards, blocks, ngrams } = about.parts;
  return html`
    <section class="card wide switches" aria-label="Switches">
      <div class="row spread">
        <h2>Switch parts off</h2>
        <button type="button" class="quiet" disabled=${!off.length} onClick=${() => setOff([])}>All on</button>
      </div>
      <div class="columns">
        <div class="scroll" tabindex="0" role="group" aria-label="Switches of all parts">
          <table>
            <thead><tr><th scope="col">layer</th>${heads[0].map((_, index) => html`<th scope="col">head ${index}</th>`)}
              <th scope="col">feed-forward</th><th scope="col">block</th></tr></thead>
            <tbody>
              ${heads.map((row, layer) => html`
                <tr key=${layer}>
                  <th scope="row">${layer}</th>
                  ${row.map((part, index) => html`<td>${Switch(part, `Head ${layer}.${index}`)}</td>`)}
                  <td>${Switch(forwards[layer], `Feed-forward ${layer}`)}</td>
                  <td>${Switch(blocks[layer], `Block ${layer}`)}</td>
                </tr>`)}
            </tbody>
          </table>
          ${ngrams.map((part) => html`<p>${Switch(part, "N-gram tables")} n-gram tables</p>`)}
        </div>
        <${Writing} model=${model} off=${off} text=${text} />
      </div>
      <p class="soft small">The Write tab writes with the same parts.</p>
      <p role="status">${off.length ? (cost ? describe(cost) : "Measuring the loss…") : "All parts are on."}</p>
    </section>`;
}

function describe(cost) {
  if (!cost.measured) return `What this costs is not known: ${cost.reason}.`;
  const { mean, low, high } = cost.cost;
  return `Without ${cost.off.join(", ")} the loss is ${cost.loss_ablated.toFixed(4)} instead of ${cost.loss_intact.toFixed(4)} nats per token: ` +
    `${signed(mean)}, 95 % interval ${signed(low)} to ${signed(high)}, on ${cost.tokens.toLocaleString("en")} tokens of the validation split.`;
}

/** A text that is written with the parts that are on now: a switch acts from the next token on. */
function Writing({ model, off, text }) {
  const [written, setWritten] = useState("");
  const [running, setRunning] = useState(false);
  const [error, setError] = useState("");
  const abort = useRef(null);
  const soFar = useRef("");

  const write = async () => {
    abort.current?.abort();
    const mine = (abort.current = new AbortController());
    setRunning(true);
    setError("");
    try {
      const body = { model: switchedId(model, off), prompt: (text || "\n") + soFar.current, max_tokens: 1000, temperature: 0.8, stream: true };
      for await (const event of events("/v1/completions", { body, signal: mine.signal })) {
        if (mine !== abort.current) return;
        for (const choice of event.choices) soFar.current += choice.text;
        setWritten(soFar.current);
      }
    } catch (reason) {
      if (reason.name !== "AbortError" && mine === abort.current) setError(reason.message);
    }
    if (mine === abort.current) setRunning(false);
  };
  const start = () => {
    soFar.current = "";
    setWritten("");
    write();
  };
  const stop = () => {
    abort.current?.abort();
    setRunning(false);
  };
  useEffect(() => {
    if (running) write();
  }, [String(off)]);
  useEffect(() => () => abort.current?.abort(), []);

  return html`
    <div class="writing">
      <p class="row">
        ${running ? html`<button type="button" onClick=${stop}>Stop</button>` : html`<button type="button" class="main" onClick=${start}>Write on from the text</button>`}
        <span class="soft small">Switches act while it writes.</span>
      </p>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      <div class="scroll written" tabindex="0" role="group" aria-label="Written text">${written}</div>
    </div>`;
}
