// The sampling settings of the Write tab: their ranges, their sliders, and their names in an address.

import { html, useId } from "./html.js";

/** Each setting: label, range, value that switches it off, and what it does. `log` sliders move in equal ratios. */
export const SETTINGS = {
  temperature: { label: "Temperature", least: 0, most: 2, step: 0.05, start: 0.8, help: "0 takes the likeliest character, 1 keeps the model's probabilities" },
  top_k: { label: "Top-k", least: 0, most: 50, step: 1, start: 0, off: 0, help: "keeps only the k likeliest characters" },
  top_p: { label: "Top-p", least: 0.05, most: 1, step: 0.05, start: 1, off: 1, help: "keeps the likeliest characters that together have this probability" },
  min_p: { label: "Min-p", least: 0, most: 0.5, step: 0.01, start: 0, off: 0, help: "keeps characters at least this fraction as likely as the likeliest" },
  repetition_penalty: { label: "Repetition", least: 0.8, most: 2, step: 0.05, start: 1, off: 1, help: "above 1, characters of the prompt and the text become less likely" },
  presence_penalty: { label: "Presence", least: -2, most: 2, step: 0.1, start: 0, off: 0, help: "subtracted once a character was written" },
  frequency_penalty: { label: "Frequency", least: -2, most: 2, step: 0.1, start: 0, off: 0, help: "subtracted for each time a character was written" },
  max_tokens: { label: "Length", least: 1, most: 2000, step: 1, start: 400, help: "characters to write at most" },
};
const MAIN = ["temperature", "top_k", "top_p", "min_p", "max_tokens"];
const PENALTIES = ["repetition_penalty", "presence_penalty", "frequency_penalty"];
export const LARGEST_SEED = 2 ** 32 - 1;

export const START = Object.fromEntries(Object.entries(SETTINGS).map(([name, { start }]) => [name, start]));

/** Return these settings as fields of a request; those that are off are left out. */
export function asFields(settings) {
  return Object.fromEntries(Object.entries(settings).filter(([name, value]) => value !== SETTINGS[name].off));
}

/** Return the settings in an address; what is missing or no number has its first value. */
export function settingsOf(query) {
  const read = (name) => {
    const { least, most, start } = SETTINGS[name];
    const value = Number(query.get(name) ?? NaN);
    return Number.isNaN(value) ? start : Math.min(Math.max(value, least), most);
  };
  return Object.fromEntries(Object.keys(SETTINGS).map((name) => [name, read(name)]));
}

/** A random seed. */
export function newSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

export function Settings({ settings, change, seed, setSeed, fresh, setFresh }) {
  const slider = (name) => html`<${Slider} key=${name} name=${name} value=${settings[name]} change=${change} />`;
  const penalised = PENALTIES.some((name) => settings[name] !== SETTINGS[name].off);
  return html`
    <section class="card settings" aria-label="Settings">
      <div class="row spread">
        <h2>Settings</h2>
        <button type="button" class="quiet" onClick=${() => change(START)}>Reset</button>
      </div>
      ${MAIN.map(slider)}
      <details open=${penalised}>
        <summary>Penalties</summary>
        ${PENALTIES.map(slider)}
      </details>
      <div class="seed">
        <label>Seed
          <input type="number" min="0" max=${LARGEST_SEED} step="1" required value=${seed}
            onInput=${(event) => event.currentTarget.validity.valid && setSeed(event.currentTarget.valueAsNumber)} />
        </label>
        <label class="check">
          <input type="checkbox" checked=${fresh} onChange=${(event) => setFresh(event.currentTarget.checked)} />
          new each time
        </label>
      </div>
    </section>`;
}

function Slider({ name, value, change }) {
  const { label, least, most, step, off, help } = SETTINGS[name];
  const id = useId();
  const shown = value === off ? "off" : Number.isInteger(step) ? String(value) : value.toFixed(2);
  return html`
    <div class="slider">
      <label for=${id} title=${help}>${label}</label>
      <output for=${id}>${shown}</output>
      <input id=${id} type="range" min=${least} max=${most} step=${step} value=${value} aria-valuetext=${shown}
        aria-description=${help}
        onInput=${(event) => change({ [name]: Number(event.currentTarget.value) })} />
    </div>`;
}
