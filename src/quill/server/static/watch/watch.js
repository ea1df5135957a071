// The Watch tab: a run while it trains or afterwards, and one slider over its training time. Two runs fit side by side.

import { html, useEffect, useState } from "../html.js";
import { addStyles } from "../styles.js";
import { Curves } from "./curves.js";
import { Moment } from "./moment.js";
import { useFilm, useLines, useRun } from "./run.js";

await Promise.all([addStyles("vendor/uplot.css"), addStyles("look/look.css"), addStyles("watch/watch.css")]);

const MILLISECONDS = 700; // of each moment while the film plays

export default function Watch({ model, models, query, setQuery }) {
  const [beside, setBeside] = useState(query.get("beside") ?? "");
  const [chosen, setChosen] = useState(/^\d+$/.test(query.get("step")) ? Number(query.get("step")) : null); // null: the newest
  const other = models.find(({ id }) => id === beside && id !== model.id);
  const first = useWatched(model);
  const second = useWatched(other);
  const watched = other ? [first, second] : [first];

  const steps = commonSteps(watched.map(({ film }) => film));
  const index = chosen === null ? steps.length - 1 : lastUpTo(steps, chosen);
  const step = steps[index] ?? null;
  const choose = (next) => setChosen(next === steps.length - 1 ? null : steps[next]);

  useEffect(() => {
    const parameters = new URLSearchParams({ model: model.id });
    if (other) parameters.set("beside", other.id);
    if (chosen !== null) parameters.set("step", chosen);
    setQuery(parameters);
  }, [other, chosen]);

  return html`
    <div class="watch">
      ${models.length > 1 && html`
        <p class="row"><label>Beside it
          <select value=${other?.id ?? ""} onChange=${(event) => setBeside(event.currentTarget.value)}>
            <option value="">no other run</option>
            ${models.filter(({ id }) => id !== model.id).map(({ id }) => html`<option value=${id}>${id}</option>`)}
          </select>
        </label></p>`}
      ${steps.length > 0 && html`<${TimeSlider} steps=${steps} index=${index} choose=${choose} />`}
      <div class=${other ? "runs two" : "runs"}>
        ${watched.map(({ id, run, lines, film, error }) => html`
          <section key=${id} class="one-run" aria-label="Run ${id}">
            ${other && html`<h2>${id}</h2>`}
            ${error && html`<p class="notice" role="alert">${error}</p>`}
            ${run && html`<${Curves} run=${run} lines=${lines} film=${film} step=${step} />`}
            ${film && (film.frames.length
              ? step !== null && html`<${Moment} film=${film} step=${step} />`
              : html`<p class="notice">No film: ${film.reason}. With <code>quill train --film</code> a run keeps one, and this tab shows
                  its samples, heads and predictions at every moment.</p>`)}
          </section>`)}
      </div>
      ${other && first.film?.frames.length > 0 && second.film?.frames.length > 0 && !steps.length && html`
        <p class="notice">The films of these runs have no step in common.</p>`}
    </div>`;
}

/** Return all that is known of a run. */
function useWatched(model) {
  const { run, error } = useRun(model);
  const lines = useLines(model);
  const { film, error: filmError } = useFilm(model, run?.film);
  return { id: model?.id, run, lines, film, error: error || filmError };
}

/** The moments of the training, as a slider that has no other stops; a button plays them. */
function TimeSlider({ steps, index, choose }) {
  const [playing, setPlaying] = useState(false);
  const last = index === steps.length - 1;
  useEffect(() => {
    if (!playing) return;
    if (last) return setPlaying(false);
    const timer = setTimeout(() => choose(index + 1), MILLISECONDS);
    return () => clearTimeout(timer);
  }, [playing, index, last]);
  const play = () => {
    if (!playing && last) choose(0);
    setPlaying(!playing);
  };
  return html`
    <div class="card time">
      <button type="button" onClick=${play}>${playing ? "Pause" : "Play"}</button>
      <label>Training time
        <input type="range" min="0" max=${steps.length - 1} value=${index} aria-valuetext=${`step ${steps[index]}`}
          onInput=${(event) => choose(Number(event.currentTarget.value))} />
      </label>
      <output>step ${steps[index].toLocaleString("en")}</output>
    </div>`;
}

/** Return the steps that all films have. */
function commonSteps(films) {
  const [first, ...others] = films.map((film) => film?.frames.map(({ step }) => step) ?? []);
  return first.filter((step) => others.every((steps) => steps.includes(step)));
}

/** Return the index of the last step up to `step`; 0 if there is none. */
function lastUpTo(steps, step) {
  return Math.max(0, steps.findLastIndex((one) => one <= step));
}
