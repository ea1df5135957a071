// One moment of a film: the losses, a sample, the heads with their roles, and what each layer would predict.

import { html, useLayoutEffect, useRef, useState } from "../html.js";
import { roleClass } from "../look/heads.js";
import { LensGrid } from "../look/lens.js";
import { drawMap, mapOf, visible } from "../look/maps.js";

export function Moment({ film, step }) {
  const [position, setPosition] = useState(0);
  const index = film.frames.findIndex((frame) => frame.step === step);
  const frame = film.frames[index];
  if (!frame) return null;
  const { val_loss: loss, step: measured } = frame.evaluation;
  return html`
    <div class="moment">
      <div role="group" class="card" aria-label="Sample">
        <h2>Step ${step.toLocaleString("en")}</h2>
        <p class="small">Loss on the film's text ${frame.probe_loss.toFixed(3)} nats per token${loss != null && `; validation loss ${loss.toFixed(3)} at step ${measured.toLocaleString("en")}`}.</p>
        <pre class="sample">${frame.sample}</pre>
      </div>
      <${FilmHeads} film=${film} index=${index} frame=${frame} />
      <div role="group" class="card lens" aria-label="What each layer would predict">
        <h2>What each layer would predict</h2>
        <${LensGrid} found=${lensOf(film, frame)} tokens=${film.tokens} position=${position} setPosition=${setPosition} />
      </div>
      <p class="soft small">All of this is about one text, at this moment of the training. A head has a role if enough of its attention
        lies where a head of that role would look. Samples use the same random numbers at every moment.</p>
    </div>`;
}

const lenses = new WeakMap();

/** Return a frame as the lens's table wants it, the same object each time, so that its cells are made once. */
function lensOf(film, frame) {
  if (!lenses.has(frame)) lenses.set(frame, { ...frame, readings: film.readings });
  return lenses.get(frame);
}

/** The attention of all heads at a moment, and the role that each has by then. */
function FilmHeads({ film, index, frame }) {
  const grid = useRef(null);
  useLayoutEffect(() => {
    const bytes = film.bytes.subarray(index * film.size, (index + 1) * film.size);
    const length = film.tokens.length;
    grid.current.querySelectorAll("canvas").forEach((canvas, head) => drawMap(canvas, mapOf(bytes, length, head), length));
  }, [film, index]);
  return html`
    <div role="group" class="card heads" aria-label="Heads">
      <h2>Heads</h2>
      <div class="grid" ref=${grid} style=${{ "--columns": film.heads }} tabindex="0" role="group" aria-label="Attention and roles of all heads">
        ${frame.roles.map((row, layer) => row.map((role, head) => html`
          <div key=${`${layer}.${head}`} class="head still ${roleClass(role)}">
            <canvas aria-hidden="true"></canvas>
            <span class="caption">${layer}.${head} <span class="role">${role === "none" ? "no role" : role}</span></span>
          </div>`))}
      </div>
      <p class="soft small">Attention for the text <span class="token">${film.tokens.map(visible).join("")}</span></p>
    </div>`;
}
