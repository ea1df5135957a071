// All heads at once: their attention as small maps, with the role of each and the loss that it is worth.

import { useAnswer } from "../answers.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import { Job } from "../jobs.js";
import { drawMap, mapOf } from "./maps.js";

export function Heads({ model, found, bytes, head, setHead }) {
  const [measured, setMeasured] = useState(0);
  const { data: roles } = useAnswer("/api/look/heads", { model: model.id }, measured);
  const known = roles?.measured ? roles : null;
  const grid = useRef(null);
  const length = found.tokens.length;

  useLayoutEffect(() => {
    grid.current.querySelectorAll("canvas").forEach((canvas, index) => drawMap(canvas, mapOf(bytes, length, index), length));
    performance.mark("heads drawn"); // benchmarks/page.py reads it
  }, [bytes]);

  const rows = Array.from({ length: found.layers }, (_, layer) => layer);
  const columns = Array.from({ length: found.heads }, (_, index) => index);
  const most = known ? Math.max(...known.costs.flat().map(({ mean }) => mean), 1e-9) : 1;
  return html`
    <fieldset class="card heads">
      <legend class="title">Heads</legend>
      <div class="grid" ref=${grid} style=${{ "--columns": found.heads }}>
        ${rows.map((layer) => columns.map((index) => {
          const name = `${layer}.${index}`;
          const role = known?.roles[layer][index];
          const cost = known?.costs[layer][index];
          return html`
            <label key=${name} class="head ${roleClass(role)}">
              <input type="radio" name="head" class="hidden-text" value=${name} checked=${name === head}
                aria-label=${describe(name, role, cost, known, layer, index)} onChange=${() => setHead(name)} />
              <canvas aria-hidden="true"></canvas>
              <span class="caption" aria-hidden="true">${name}${role && html` <span class="role">${named(role, known, layer, index)}</span>`}</span>
              ${cost && html`<span class="bar" aria-hidden="true" style=${{ width: `${100 * Math.max(0, cost.mean / most)}%` }}></span>`}
            </label>`;
        }))}
      </div>
      ${known
        ? html`<p class="soft small">The name says where a head looks, if it has a clear role. The bar is the loss that removing it adds,
            up to ${most.toFixed(3)} nats per token.</p>`
        : roles && html`<${Job} job="heads" model=${model} label="Measure what each head does and is worth" done=${() => setMeasured(measured + 1)} />`}
    </fieldset>`;
}

function named(role, known, layer, head) {
  if (role === "none") return "no role";
  return role === "fixed offset" ? `${known.offset[layer][head]} back` : role;
}

function describe(name, role, cost, known, layer, head) {
  if (!role) return `Head ${name}`;
  const what = role === "none" ? "no role" : `${named(role, known, layer, head)}, strength ${known.strength[layer][head].toFixed(2)}`;
  return `Head ${name}: ${what}; without it the loss changes by ${signed(cost.mean)} nats (${signed(cost.low)} to ${signed(cost.high)})`;
}

export function signed(number, digits = 4) {
  return (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);
}

const POSITIONAL = ["previous token", "induction", "same token", "self", "first token", "fixed offset", "none"];

/** Return the class that colours a role. */
export function roleClass(role) {
  if (!role) return "";
  return "role-" + (POSITIONAL.includes(role) ? role.replaceAll(" ", "-") : "characters");
}
