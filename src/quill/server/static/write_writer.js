// Writing: requests to the server, the document that grows with the answer, and the documents before it for undo.

import { events, getJson, switchedId } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";
import { asFields } from "./write_settings.js";
import { CellReader, append, cellsOf, newDocument, textOf, tokensOf } from "./write_document.js";

/**
 * Return the state { document, running, error, canUndo } and what changes it.
 *
 * `ended` is called with each document that is complete.
 */
export function useWriter(model, ended) {
  const [state, setState] = useState({ document: null, running: false, error: "" });
  const current = useRef(null);
  const past = useRef([]);
  const abort = useRef(null);
  useEffect(() => () => abort.current?.abort(), []);

  /** Show the answer to a request as it comes. */
  const run = async (document, mine) => {
    if (current.current) past.current = [...past.current, current.current];
    const draw = inFrames((changed) => mine === abort.current && setState(changed));
    const show = (changed) => {
      if (mine === abort.current) current.current = changed.document;
      draw(changed);
    };
    show({ document, running: true, error: "" });
    let error = "";
    try {
      for await (const next of answers(model, document, mine.signal)) {
        document = next;
        show({ document, running: true, error });
      }
    } catch (reason) {
      if (reason.name !== "AbortError") error = reason.message;
    }
    show({ document, running: false, error });
    if (mine === abort.current && !error) ended(document);
  };

  /** Show that a request is on its way: its prompt becomes tokens first. */
  const start = () => {
    abort.current?.abort();
    setState((before) => ({ ...before, running: true, error: "" }));
    return (abort.current = new AbortController());
  };
  const fail = (mine, reason) => {
    const error = reason.name === "AbortError" ? "" : reason.message;
    if (mine === abort.current) setState((before) => ({ ...before, running: false, error }));
  };

  return {
    ...state,
    canUndo: past.current.length > 0,
    stop: () => abort.current?.abort(),
    /** Write a new text, without the parts in `off`. */
    write: async (prompt, settings, seed, off) => {
      const mine = start();
      let cells = [];
      try {
        cells = await promptCells(model, prompt, mine.signal);
        mine.signal.throwIfAborted();
      } catch (reason) {
        fail(mine, reason);
        return;
      }
      await run(newDocument({ prompt, off, settings, seed, cells }), mine);
    },
    /** Continue after the cell before `position`, with an alternative or none, as a new request. */
    branch: async (position, alternative, settings, seed, off) => {
      const cells = cellsOf(current.current).slice(0, position);
      if (alternative) cells.push({ text: alternative.text, ids: [alternative.id], logprob: Math.log(alternative.before), generated: true });
      const text = textOf(cells);
      const tokens = tokensOf(cells);
      const mine = start();
      let sameTokens = false;
      try {
        sameTokens = String((await tokenize(model, text, mine.signal)).tokens) === String(tokens);
        mine.signal.throwIfAborted();
      } catch (reason) {
        fail(mine, reason);
        return;
      }
      await run(newDocument({ prompt: sameTokens ? text : tokens, off, settings, seed, cells }), mine);
    },
    undo: () => {
      if (!past.current.length) return;
      abort.current?.abort();
      abort.current = null;
      const document = past.current.at(-1);
      past.current = past.current.slice(0, -1);
      current.current = document;
      setState({ document, running: false, error: "" });
      ended(document);
    },
  };
}

/** Yield the document after each event of its answer. */
async function* answers(model, document, signal) {
  const body = {
    model: switchedId(model, document.off),
    prompt: document.prompt,
    ...asFields(document.settings),
    seed: document.seed,
    logprobs: 0,
    return_token_ids: true,
    stream: true,
  };
  const reader = new CellReader();
  for await (const event of events("/v1/completions", { body, signal })) {
    const weights = /-([0-9a-f]{16})-/.exec(event.system_fingerprint ?? "")?.[1] ?? "";
    if (weights !== document.weights) document = { ...document, weights };
    for (const { logprobs, token_ids: ids } of event.choices) {
      if (logprobs) document = append(document, reader.read(logprobs.tokens, ids, logprobs.token_logprobs, true));
    }
    yield document;
  }
  yield append(document, reader.flush(true));
}

/** Return the tokens of a text, with the text of each in `token_strs`; characters that the vocabulary lacks are left out. */
function tokenize(model, prompt, signal) {
  return getJson("/tokenize", { body: { model: model.id, prompt, return_token_strs: true }, signal });
}

/** Return the cells of a prompt: text, or tokens that are no text, such as a part of a character. */
async function promptCells(model, prompt, signal) {
  if (typeof prompt !== "string") return prompt.map((id) => ({ text: "\ufffd", ids: [id], logprob: null, generated: false }));
  const { tokens, token_strs: texts } = await tokenize(model, prompt, signal);
  return new CellReader().read(texts, tokens, tokens.map(() => null), false);
}

/** Return a function that calls `set` with the last value given to it, once a frame. */
function inFrames(set) {
  let latest;
  let waiting = false;
  return (value) => {
    latest = value;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      set(latest);
    });
  };
}
