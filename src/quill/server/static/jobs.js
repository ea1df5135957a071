// Work that takes longer than a request: a button that starts it, its progress, and a button that cancels it.

import { getJson } from "./api.js";
import { useEvery } from "./answers.js";
import { html, useEffect, useState } from "./html.js";

const MILLISECONDS = 500;

/** A button for a job; `done` is called when it has ended well. `more` are further fields of the request. */
export function Job({ job, model, label, done, more = {} }) {
  const [status, setStatus] = useState(null);
  const [error, setError] = useState("");
  const mine = (found) => found && found.job === job && found.model === model.id && found.experiment === (more.experiment ?? null);
  const running = mine(status) && status.state === "running";

  const follow = (request) =>
    request.then(
      (found) => {
        if (running && mine(found) && found.state === "done") done();
        if (running && mine(found) && found.state === "failed") setError(found.what);
        setStatus(found);
      },
      (reason) => setError(reason.message),
    );
  useEffect(() => {
    follow(getJson("/api/jobs"));
  }, []);
  useEvery(MILLISECONDS, running, () => follow(getJson("/api/jobs")));

  const start = () => {
    setError("");
    follow(getJson("/api/jobs", { body: { job, model: model.id, ...more } }));
  };
  return html`
    <div class="job">
      ${running
        ? html`<p class="row" role="status">
            <progress max="1" value=${status.share} aria-label=${label}></progress>
            <span>${status.what}, ${Math.round(100 * status.share)} %</span>
            <button type="button" onClick=${() => follow(getJson("/api/jobs/cancel", { body: {} }))}>Cancel</button>
          </p>`
        : html`<button type="button" onClick=${start}>${label}</button>`}
      ${error && html`<p class="notice" role="alert">${error}</p>`}
    </div>`;
}
