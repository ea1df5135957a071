// The Look tab: what the model computes for a text, head by head and layer by layer, and what happens without a part.

import { useAnswer, useSettled } from "../answers.js";
import { switchedId } from "../api.js";
import { html, useEffect, useMemo, useState } from "../html.js";
import { Attribution, NextToken } from "./explain.js";
import { Arcs } from "./arcs.js";
import { Head } from "./head.js";
import { Heads } from "./heads.js";
import { Lens } from "./lens.js";
import { Switches } from "./switches.js";
import { bytesOf } from "./maps.js";
import { addStyles } from "../styles.js";

await addStyles("look/look.css");

export default function Look({ model, text: written, query, setQuery, off, setOff }) {
  const about = useAnswer("/api/look/model", { model: model.id });
  const [typed, setTyped] = useState(query.get("text") ?? written);
  const [head, setHead] = useState(query.get("head") ?? "0.0");
  const [kind, setKind] = useState("weights");
  const [token, setToken] = useState(Infinity);

  useEffect(() => {
    const asked = query.get("off");
    if (asked) setOff(asked.split(","));
  }, []);
  useEffect(() => {
    if (written) setTyped(written);
  }, [written]);
  useEffect(() => {
    if (about.data && !typed) setTyped(about.data.example);
  }, [about.data]);
  useEffect(() => {
    const parameters = new URLSearchParams({ head });
    if (off.length) parameters.set("off", off.join(","));
    setQuery(parameters);
  }, [head, String(off)]);

  const text = useSettled(typed, 250);
  const question = text && { model: switchedId(model, off), text };
  const attention = useAnswer("/api/look/attention", question && { ...question, kind });
  const found = attention.data;
  // While a new text is awaited, all views still ask about the shown one, whose positions they name.
  const shown = attention.asked && { model: attention.asked.model, text: attention.asked.text };
  const bytes = useMemo(() => found && bytesOf(found.packed), [found]);
  const length = found?.tokens.length ?? 0;
  const position = Math.max(0, Math.min(token, length - 1));
  const cursor = found && { tokens: found.tokens, position, setPosition: setToken };
  const error = about.error || attention.error;

  return html`
    <div class="look">
      <section class="card wide">
        <label class="title">Text to look at
          <textarea rows="2" value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)}></textarea>
        </label>
        ${error && html`<p class="notice" role="alert">${error}</p>`}
        ${found?.left_out > 0 && html`<p class="soft small">The model sees the last ${length} of ${length + found.left_out} tokens.</p>`}
        ${cursor && html`<${Cursor} ...${cursor} />`}
      </section>
      ${cursor && html`
        <${Heads} model=${model} found=${found} bytes=${bytes} head=${head} setHead=${setHead} />
        <${Head} question=${attention.asked} found=${found} bytes=${bytes} head=${head} setKind=${setKind} ...${cursor} />
        <${Arcs} found=${found} bytes=${bytes} head=${head} ...${cursor} />
        <${Lens} model=${model} question=${shown} ...${cursor} />
        <${NextToken} question=${shown} ...${cursor} />
        <${Attribution} question=${shown} ...${cursor} />`}
      ${about.data && html`<${Switches} model=${model} about=${about.data} off=${off} setOff=${setOff} text=${text} />`}
    </div>`;
}

/** The token that all views look at, as a slider. */
function Cursor({ tokens, position, setPosition }) {
  const before = tokens.slice(Math.max(0, position - 12), position).join("");
  const after = tokens.slice(position + 1, position + 13).join("");
  return html`
    <label class="cursor">Token
      <input type="range" min="0" max=${tokens.length - 1} value=${position} aria-valuetext=${`${position}: ${tokens[position]}`}
        onInput=${(event) => setPosition(Number(event.currentTarget.value))} />
      <span class="context"><span class="soft">${before}</span><mark>${tokens[position]}</mark><span class="soft">${after}</span></span>
    </label>`;
}
