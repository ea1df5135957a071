// Questions to the routes behind the page.

import { getJson } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";

const NOTHING = { data: null, error: "", waiting: false, asked: null };

/**
 * Return { data, error, waiting, asked }: the answer to a POST of `body`, asked again when it or `again` changes; null asks
 * nothing.
 *
 * The last answer stays while the next one is awaited, so that the page does not flicker; `asked` is its body.
 */
export function useAnswer(path, body, again = 0) {
  const [state, setState] = useState(NOTHING);
  const key = body && JSON.stringify(body);
  useEffect(() => {
    if (!body) return setState(NOTHING);
    const abort = new AbortController();
    setState((before) => ({ ...before, waiting: true }));
    getJson(path, { body, signal: abort.signal }).then(
      (data) => setState({ data, error: "", waiting: false, asked: body }),
      (reason) => reason.name !== "AbortError" && setState({ ...NOTHING, error: reason.message }),
    );
    return () => abort.abort();
  }, [path, key, again]);
  return state;
}

/** Return a value that follows `value` after it has not changed for some milliseconds, and at once when `about` changes. */
export function useSettled(value, milliseconds, about = null) {
  const [settled, setSettled] = useState({ value, about });
  useEffect(() => {
    const timer = setTimeout(() => setSettled({ value, about }), milliseconds);
    return () => clearTimeout(timer);
  }, [value, milliseconds, about]);
  return settled.about === about ? settled.value : value;
}

/** Call `function` every so many milliseconds while `active`, the first time at once. */
export function useEvery(milliseconds, active, action) {
  const latest = useRef(action);
  latest.current = action;
  useEffect(() => {
    if (!active) return;
    latest.current();
    const timer = setInterval(() => latest.current(), milliseconds);
    return () => clearInterval(timer);
  }, [milliseconds, active]);
}
