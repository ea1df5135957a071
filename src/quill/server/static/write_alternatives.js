// The panel of alternatives: what else could have come at a position, before and after the sampling rules.

import { getJson, switchedId } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { asFields } from "./write_settings.js";
import { markOf, nameOf, percent, surprise, tokensOf } from "./write_document.js";

const SHOWN = 12;

/**
 * Return { answer, error, waiting }: the alternatives at a position, from the server, with the settings of now.
 *
 * The last answer stays while the next one is awaited, so that the page does not flicker; null before the first.
 */
function useAlternatives(model, document, cells, position, settings) {
  const [found, setFound] = useState({ answer: null, error: "", key: "" });
  const { max_tokens, ...rules } = settings;
  const key = JSON.stringify([position, rules, document.off, document.seed, document.promptTokens, cells[position].ids]);
  useEffect(() => {
    const abort = new AbortController();
    const tokens = tokensOf(cells.slice(0, position));
    const body = {
      model: switchedId(model, document.off),
      prompt: tokens.slice(0, document.promptTokens),
      generated: tokens.slice(document.promptTokens),
      ...asFields(rules),
    };
    getJson("/api/alternatives", { body, signal: abort.signal }).then(
      (answer) => abort.signal.aborted || setFound({ answer, error: "", key }),
      (error) => error.name === "AbortError" || setFound({ answer: null, error: error.message, key }),
    );
    return () => abort.abort();
  }, [key]);
  return { ...found, waiting: found.key !== key };
}

export function Alternatives({ model, document, cells, position, settings, branch, close }) {
  const cell = cells[position];
  return html`
    <section class="card alternatives" aria-label="Alternatives" onKeyDown=${(event) => event.key === "Escape" && close()}>
      <div class="row spread">
        <h2>Instead of <kbd>${markOf(cell.text)}</kbd></h2>
        <button type="button" class="quiet" onClick=${close} aria-label="Close the alternatives">✕</button>
      </div>
      ${position === 0
        ? html`<p class="soft">Nothing comes before the first character, so the model has no prediction for it.</p>`
        : html`<${Table} ...${{ model, document, cells, position, settings, branch }} />`}
    </section>`;
}

function Table({ model, document, cells, position, settings, branch }) {
  const { answer, error, waiting } = useAlternatives(model, document, cells, position, settings);
  const [all, setAll] = useState(false);
  if (error) return html`<p class="notice" role="alert">${error}</p>`;
  if (!answer) return html`<p class="soft">…</p>`;
  const chosen = answer.alternatives.findIndex(({ id }) => id === cells[position].ids[0]);
  const shown = answer.alternatives.filter((_, index) => all || index < SHOWN || index === chosen);
  const hidden = answer.alternatives.length - shown.length;
  // The rows have their numbers as keys: a row that is removed while others come would take the focus with it.
  return html`
    <p class="small soft" role="status">${waiting ? "…" : summary(answer.alternatives[chosen], chosen)} Choose another to continue from there.</p>
    ${answer.cropped && html`<p class="small soft">The model reads ${answer.read} tokens at once, so these values are
      computed from the ${answer.read} before this one. While it wrote, it had seen more.</p>`}
    <table aria-busy=${waiting}>
      <thead>
        <tr><th scope="col">Character</th><th scope="col">Model</th><th scope="col">With rules</th></tr>
      </thead>
      <tbody>
        ${shown.map((each, row) => html`
          <tr key=${row} class=${[each.after === 0 && "removed", each === answer.alternatives[chosen] && "chosen"].filter(Boolean).join(" ")}>
            <th scope="row">
              <button type="button" onClick=${() => waiting || branch(position, each)}
                aria-label=${`Continue with ${nameOf(each.text)}${each === answer.alternatives[chosen] ? ", the one in the text" : ""}`}>${markOf(each.text)}</button>
              <span class="bars" aria-hidden="true">
                <span class="bar" style=${{ width: `${each.before * 100}%` }}></span>
                <span class="bar after" style=${{ width: `${each.after * 100}%` }}></span>
              </span>
            </th>
            <td>${percent(each.before)}</td>
            <td>${each.after === 0 ? html`<span title="removed by the rules">–<span class="hidden-text">removed</span></span>` : percent(each.after)}</td>
          </tr>`)}
      </tbody>
    </table>
    ${hidden > 0 && html`<button type="button" class="quiet" onClick=${() => setAll(true)}>Show ${hidden} more</button>`}`;
}

function summary(chosen, rank) {
  if (!chosen) return "";
  const bits = surprise(Math.log(chosen.before)).toFixed(1);
  return `The model gave it ${percent(chosen.before)}: place ${rank + 1}, ${bits} bits of surprise.`;
}
