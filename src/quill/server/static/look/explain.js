// The prediction at one token: probabilities at a temperature, and what each part of the model adds to one of them.

import { useAnswer, useSettled } from "../answers.js";
import { html, useState } from "../html.js";
import { signed } from "./heads.js";
import { visible } from "./maps.js";

const MOST_BARS = 12;

/** The likeliest next tokens, with bars that follow the temperature. */
export function NextToken({ question, tokens, position }) {
  const [temperature, setTemperature] = useState(1);
  const at = useSettled(position, 120, question.text);
  const prompt = tokens.slice(0, at + 1).join("");
  const { data, error } = useAnswer("/api/alternatives", { model: question.model, prompt, temperature });
  const likeliest = data?.alternatives.slice(0, MOST_BARS) ?? [];
  return html`
    <section class="card next" aria-label="The next token">
      <h2>After <span class="token">${visible(tokens[position])}</span></h2>
      <label>Temperature <span class="value">${temperature.toFixed(2)}</span>
        <input type="range" min="0" max="2" step="0.05" value=${temperature} onInput=${(event) => setTemperature(Number(event.currentTarget.value))} />
      </label>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      <table class="bars">
        <thead><tr><th scope="col">token</th><th scope="col">at temperature 1</th><th scope="col">at ${temperature.toFixed(2)}</th></tr></thead>
        <tbody>
          ${likeliest.map(({ id, text, before, after }) => html`
            <tr key=${id}>
              <th scope="row" class="token">${visible(text)}</th>
              <td>${(100 * before).toFixed(1)} %</td>
              <td class="barred"><span class="bar" style=${{ width: `${100 * after}%` }}></span><span>${(100 * after).toFixed(1)} %</span></td>
            </tr>`)}
        </tbody>
      </table>
    </section>`;
}

/** What each part of the model adds to the logit of a token. */
export function Attribution({ question, tokens, position }) {
  const [named, setNamed] = useState({ token: "", versus: "" });
  const at = useSettled(position, 120, question.text);
  const asked = Object.fromEntries(Object.entries(useSettled(named, 250)).filter(([, text]) => text));
  const { data, error } = useAnswer("/api/look/attribution", { ...question, position: Math.min(at, tokens.length - 1), ...asked });
  const parts = Object.entries(data?.parts ?? {}).sort(([, a], [, b]) => Math.abs(b) - Math.abs(a)).slice(0, MOST_BARS);
  const largest = Math.max(...parts.map(([, value]) => Math.abs(value)), 1e-9);
  const field = (name, label) => html`
    <label class="small">${label}
      <input type="text" class="short" value=${named[name]} onInput=${(event) => setNamed({ ...named, [name]: event.currentTarget.value })} />
    </label>`;
  return html`
    <section class="card attribution" aria-label="What made a token likely">
      <h2>What made it likely</h2>
      <p class="row">${field("token", "Token (else the likeliest)")} ${field("versus", "against (else the mean)")}</p>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      ${data && html`
        <p class="small">${data.title}: ${signed(data.total, 2)} logits, probability ${(100 * data.probability).toFixed(1)} %.</p>
        <table class="bars">
          <thead><tr><th scope="col">part</th><th scope="col">adds</th></tr></thead>
          <tbody>
            ${parts.map(([name, value]) => html`
              <tr key=${name}>
                <th scope="row">${name.replace("_", "-")}</th>
                <td class="barred signed">
                  <span class=${value < 0 ? "bar less" : "bar"} style=${{ width: `${(50 * Math.abs(value)) / largest}%` }}></span>
                  <span>${signed(value, 2)}</span>
                </td>
              </tr>`)}
          </tbody>
        </table>
        <p class="soft small">${data.explanation}</p>`}
    </section>`;
}
