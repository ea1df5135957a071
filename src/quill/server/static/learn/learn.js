// The Learn tab: eight lessons, each with the experiments that check it, run here.

import { getJson } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { addStyles } from "../styles.js";
import { Experiment } from "./experiment.js";

await addStyles("learn/learn.css");

export default function Learn({ model, query, setQuery }) {
  const [lessons, setLessons] = useState(null);
  const [error, setError] = useState("");
  const [chosen, setChosen] = useState(Number(query.get("lesson")) || 1);
  const [ended, setEnded] = useState(0); // the number of jobs that have ended since the tab was opened

  useEffect(() => {
    getJson("/api/learn").then(setLessons, (reason) => setError(reason.message));
  }, [ended]);
  useEffect(() => setQuery(new URLSearchParams({ model: model.id, lesson: chosen })), [chosen]);

  if (!lessons) return error ? html`<p class="notice" role="alert">${error}</p>` : html`<p class="soft">Loading the lessons …</p>`;
  const number = lessons[chosen - 1] ? chosen : 1;
  const lesson = lessons[number - 1];
  return html`
    <div class="learn">
      <nav class="card lessons" aria-label="Lessons">
        <ol>
          ${lessons.map(({ title, experiments }, index) => html`
            <li key=${title}>
              <button type="button" aria-current=${index + 1 === number ? "true" : null} onClick=${() => setChosen(index + 1)}>
                ${title} <span class="soft small">${stateOf(experiments)}</span>
              </button>
            </li>`)}
        </ol>
      </nav>
      <div class="lesson">
        <h2>${number}. ${lesson.title}</h2>
        ${lesson.experiments.map((experiment) => html`
          <${Experiment} key=${experiment.name} experiment=${experiment} model=${model} ended=${ended} done=${() => setEnded((before) => before + 1)} />`)}
      </div>
    </div>`;
}

/** Return the verdicts of a lesson in words. */
function stateOf(experiments) {
  return experiments.map(({ verdict }) => verdict ?? "not run yet").join(", ");
}
