// The Write tab: a prompt, the text that continues it, what else each character could have been, and the settings.

import { html, useEffect, useRef, useState } from "./html.js";
import { addStyles } from "./styles.js";
import { Alternatives } from "./write_alternatives.js";
import { cellsOf, textOf } from "./write_document.js";
import { START, Settings, newSeed, settingsOf } from "./write_settings.js";
import { Legend, PlainText, Text } from "./write_text.js";
import { useWriter } from "./write_writer.js";

await addStyles("write.css");

export default function Write({ model, query, setQuery, setText, off, setOff }) {
  const [prompt, setPrompt] = useState("\n");
  const [settings, setSettings] = useState(START);
  const [seed, setSeed] = useState(newSeed);
  const [fresh, setFresh] = useState(true);
  const [active, setActive] = useState(null);
  const [expected, setExpected] = useState("");
  const ownQuery = useRef("");
  const page = useRef(null);

  const writer = useWriter(model, (document) => {
    const link = linkOf(model, document);
    ownQuery.current = String(link);
    setQuery(link);
    setText(textOf(cellsOf(document)));
  });
  const { document, running, error } = writer;
  const cells = document ? cellsOf(document) : [];

  const change = (changed) => setSettings((before) => ({ ...before, ...changed }));
  const start = (run) => {
    const used = fresh && document ? newSeed() : seed;
    setSeed(used);
    setExpected("");
    run(used);
  };
  const write = (event) => {
    event.preventDefault();
    setActive(null);
    start((used) => writer.write(prompt, settings, used, off));
  };
  const branch = (position, alternative) => start((used) => writer.branch(position, alternative, settings, used, off));
  const undo = () => {
    setActive(null);
    writer.undo();
  };

  const enter = () => page.current.querySelector(".alternatives [aria-busy=false] .chosen button")?.focus();
  const close = () => {
    setActive(null);
    page.current.querySelector(".text").focus();
  };

  // An address with a prompt is a link to a text: write it again.
  useEffect(() => {
    const asked = requestOf(query);
    if (!asked || String(query) === ownQuery.current) return;
    ownQuery.current = String(query);
    if (typeof asked.prompt === "string") setPrompt(asked.prompt);
    setSettings(asked.settings);
    setSeed(asked.seed);
    setFresh(false);
    setExpected(asked.weights);
    setActive(null);
    setOff(asked.off);
    writer.write(asked.prompt, asked.settings, asked.seed, asked.off);
  }, [String(query)]);

  return html`
    <div class="write" ref=${page}>
      <form class="card prompt" onSubmit=${write}>
        <label for="prompt">Prompt</label>
        <textarea id="prompt" rows="2" spellcheck="false" value=${prompt}
          onInput=${(event) => setPrompt(event.currentTarget.value)}
          onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && write(event)}></textarea>
        <div class="row">
          ${running
            ? html`<button key="stop" type="button" class="main" onClick=${writer.stop}>Stop</button>`
            : html`<button key="write" class="main" disabled=${!prompt}>Write</button>`}
          <button type="button" disabled=${running || !document} onClick=${() => branch(cells.length, null)}>Continue</button>
          <button type="button" disabled=${!writer.canUndo} onClick=${undo}>Undo</button>
          <${CopyLink} disabled=${running || !document} />
        </div>
        ${off.length > 0 && html`<${SwitchedOff} off=${off} setOff=${setOff} />`}
      </form>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      ${expected && document?.weights && expected !== document.weights && html`<${OtherWeights} expected=${expected} found=${document.weights} />`}
      <section class="card output" aria-label="Text">
        ${document
          ? html`<${Text} ...${{ document, active, setActive, enter, undo, running }} /><${Legend} />`
          : html`<p class="soft empty">The text appears here, one character at a time. Its colour says how much each
            character surprised the model. Choose a character to see what else could have come.</p>`}
        <p class="hidden-text" role="status">${document && !running && !error ? "The text is complete." : ""}</p>
        ${document && html`<${PlainText} document=${document} />`}
      </section>
      <div class="side">
        ${active !== null && active < cells.length && html`
          <${Alternatives} ...${{ model, document, cells, settings, branch }} position=${active} close=${close} />`}
        <${Settings} ...${{ settings, change, seed, setSeed, fresh, setFresh }} />
        <${About} model=${model} />
      </div>
    </div>`;
}

function SwitchedOff({ off, setOff }) {
  return html`<p class="small soft">Switched off in the Look tab: ${off.join(", ")}.
    <button type="button" class="quiet" onClick=${() => setOff([])}>All on</button></p>`;
}

function CopyLink({ disabled }) {
  const [copied, setCopied] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      setCopied("Copied");
    } catch {
      setCopied("The address of this page is the link");
    }
    setTimeout(() => setCopied(""), 3000);
  };
  return html`<button type="button" disabled=${disabled} onClick=${copy}>Copy link</button>
    <span class="small soft" role="status">${copied}</span>`;
}

function OtherWeights({ expected, found }) {
  return html`<p class="notice" role="alert">This link was made with other weights (<code>${expected}</code>) than the model
    has now (<code>${found}</code>). This is not the text of the link.</p>`;
}

function About({ model }) {
  const facts = [
    model.training && "still training",
    model.step !== undefined && `step ${model.step.toLocaleString("en")}`,
    model.val_loss != null && `validation loss ${model.val_loss.toFixed(3)}`,
    model.max_model_len && `context of ${model.max_model_len} tokens`,
    model.vocab_size && `vocabulary of ${model.vocab_size}`,
  ].filter(Boolean);
  return html`<p class="small soft about">${model.id}${facts.map((fact) => html`<span>, ${fact}</span>`)}</p>`;
}

/** Return what an address needs so that this text can be written again. */
function linkOf(model, { prompt, off, settings, seed, weights }) {
  const asked = typeof prompt === "string" ? { prompt } : { tokens: prompt.join(".") };
  const switched = off.length ? { off: off.join(",") } : {};
  return new URLSearchParams({ ...asked, ...settings, ...switched, seed, model: model.id, weights });
}

/** Return the request in an address, or null. */
function requestOf(query) {
  const tokens = query.get("tokens");
  const prompt = tokens ? tokens.split(".").map(Number) : query.get("prompt");
  if (!prompt) return null;
  const off = (query.get("off") ?? "").split(",").filter(Boolean);
  return { prompt, off, settings: settingsOf(query), seed: Number(query.get("seed") ?? 0), weights: query.get("weights") ?? "" };
}
