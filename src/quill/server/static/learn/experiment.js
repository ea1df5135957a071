// One experiment: its result, if it was run here, and a button that runs it.

import { getJson, send } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { Job } from "../jobs.js";

export function Experiment({ experiment, model, ended, done }) {
  const { name, about, own_model: canLookInside, verdict } = experiment;
  const [full, setFull] = useState(false);
  const [own, setOwn] = useState(false);
  const { result, picture, error } = useResult(name, verdict !== null, ended);
  const more = { experiment: name, quick: !full, own_model: own };
  return html`
    <section class="card experiment" aria-label="Experiment ${name}">
      <h3>${about}</h3>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      ${result && html`<${Result} result=${result} picture=${picture} />`}
      <div class="row options">
        <label><input type="checkbox" checked=${full} onChange=${(event) => setFull(event.currentTarget.checked)} /> full size: slower, with narrower intervals</label>
        ${canLookInside && html`
          <label><input type="checkbox" checked=${own} onChange=${(event) => setOwn(event.currentTarget.checked)} /> look into ${model.id} instead of a small model trained for this</label>`}
      </div>
      <${Job} job="experiment" model=${model} label=${result ? "Run the experiment again" : "Run the experiment"} more=${more} done=${done} />
      <p class="soft small">Uses the text of ${model.id}. On the command line: <code>quill experiment ${name}${full ? "" : " --quick"}</code></p>
    </section>`;
}

/** Return { result, picture, error }: a stored result and the address of its picture; asked again when `ended` changes. */
function useResult(name, stored, ended) {
  const [state, setState] = useState({});
  useEffect(() => {
    if (!stored) return setState({});
    const abort = new AbortController();
    const { signal } = abort;
    let picture = null;
    load().then(setState, (error) => error.name !== "AbortError" && setState({ error: error.message }));
    return () => {
      abort.abort();
      if (picture) URL.revokeObjectURL(picture);
    };

    async function load() {
      const result = await getJson(`/api/learn/${name}`, { signal });
      const image = await (await send(`/api/learn/${name}/picture`, { signal })).blob(); // the request has the server's key
      signal.throwIfAborted();
      picture = URL.createObjectURL(image);
      return { result, picture };
    }
  }, [name, stored, ended]);
  return state;
}

function Result({ result, picture }) {
  return html`
    <p><b>Claim:</b> ${result.claim}</p>
    <p class="verdict"><b>Verdict:</b> <span class="word ${result.verdict.replace(" ", "-")}">${result.verdict}</span></p>
    <${Effects} title="Effects, which decide the verdict" effects=${result.effects} />
    <img src=${picture} alt="Picture of the result: ${result.title}. The table has the numbers that decide." />
    <p><b>Measure:</b> ${result.measure}</p>
    <p><b>Control:</b> ${result.control}</p>
    ${result.controls.length > 0 && html`<${Effects} title="Controls, which do not decide" effects=${result.controls} />`}
    <p><b>The opposite would be:</b> ${result.opposite}</p>
    <details>
      <summary>Settings; ${Math.round(result.seconds).toLocaleString("en")} s</summary>
      <dl class="small">${Object.entries(result.settings).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${String(value)}</dd></div>`)}</dl>
    </details>`;
}

/** Differences with their intervals. A number that is not finite arrives as null. */
function Effects({ title, effects }) {
  return html`
    <div class="scroll" tabindex="0" role="group" aria-label=${title}>
      <table>
        <caption>${title}</caption>
        <thead><tr><th scope="col">difference</th><th scope="col">mean</th><th scope="col">95 % interval</th><th scope="col">least that matters</th><th scope="col">verdict</th></tr></thead>
        <tbody>
          ${effects.map(({ name, interval: { mean, low, high }, margin, unit, verdict }) => html`
            <tr key=${name}>
              <th scope="row">${name}</th>
              <td>${signed(mean)} ${unit}</td>
              <td>${signed(low)} to ${signed(high)}</td>
              <td>${margin}</td>
              <td>${verdict}</td>
            </tr>`)}
        </tbody>
      </table>
    </div>`;
}

function signed(number) {
  if (number === null) return "not finite";
  return (number < 0 ? "−" : "+") + Math.abs(number).toFixed(3);
}
