// What the server knows of a run: its events, the losses to compare with, and its film.

import { useAnswer, useEvery } from "../answers.js";
import { getJson, send } from "../api.js";
import { useEffect, useRef, useState } from "../html.js";

const MILLISECONDS = 2000;

/** Return { run, error }: the answers of /api/watch/run put together; asked again while the run trains. */
export function useRun(model) {
  const [state, setState] = useState({ run: null, error: "" });
  const asking = useRef(null); // the question that waits for its answer
  useEffect(() => {
    asking.current = null;
    setState({ run: null, error: "" });
  }, [model?.id]);

  const ask = async () => {
    if (asking.current) return;
    const before = state.run;
    const body = { model: model.id, after: before?.events.length ?? 0, mark: before?.mark ?? null };
    asking.current = body;
    try {
      const found = await getJson("/api/watch/run", { body });
      if (asking.current !== body) return; // another model was chosen
      // Without new events the array stays the same one, so that nothing is drawn again.
      const events = !found.first ? found.events : found.events.length ? before.events.concat(found.events) : before.events;
      setState({ run: { ...found, events }, error: "" });
    } catch (reason) {
      if (asking.current === body) setState({ run: before, error: reason.message });
    } finally {
      if (asking.current === body) asking.current = null;
    }
  };
  useEvery(MILLISECONDS, Boolean(model) && (state.run === null || state.run.training), ask);
  return state;
}

/** Return the losses to compare with, or null. */
export function useLines(model) {
  return useAnswer("/api/watch/lines", model ? { model: model.id } : null).data;
}

/** Return { film, error }; the attention of the film is its `bytes`. `written` changes when the film does. */
export function useFilm(model, written) {
  const [state, setState] = useState({ film: null, error: "" });
  useEffect(() => setState({ film: null, error: "" }), [model?.id]);
  useEffect(() => {
    if (!model || written === undefined) return;
    const abort = new AbortController();
    loadFilm(model, abort.signal).then(
      (film) => setState({ film, error: "" }),
      (reason) => reason.name !== "AbortError" && setState({ film: null, error: reason.message }),
    );
    return () => abort.abort();
  }, [model?.id, written]);
  return state;
}

async function loadFilm(model, signal) {
  const options = { body: { model: model.id }, signal };
  const film = await getJson("/api/watch/film", options);
  if (!film.frames.length) return film;
  const bytes = new Uint8Array(await (await send("/api/watch/attention", options)).arrayBuffer());
  const size = (film.layers * film.heads * film.tokens.length * (film.tokens.length + 1)) / 2;
  // A run that trains may have added a frame between the two answers: only whole frames that both have are shown.
  return { ...film, frames: film.frames.slice(0, bytes.length / size), bytes, size };
}
