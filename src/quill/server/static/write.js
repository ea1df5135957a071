// The Write tab: a prompt, and the text that continues it.

import { getJson } from "./api.js";
import { html, useState } from "./html.js";

export default function Write({ model, setText }) {
  const [prompt, setPrompt] = useState("\n");
  const [text, show] = useState("");
  const [error, setError] = useState("");
  const write = async (event) => {
    event.preventDefault();
    try {
      const body = { model: model.id, prompt, max_tokens: 300, temperature: 0.8 };
      const answer = await getJson("/v1/completions", { body });
      setError("");
      show(answer.choices[0].text);
      setText(prompt + answer.choices[0].text);
    } catch (reason) {
      setError(reason.message);
    }
  };
  return html`
    <form class="card" onSubmit=${write}>
      <label>Prompt
        <textarea rows="3" value=${prompt} onInput=${(event) => setPrompt(event.currentTarget.value)}></textarea>
      </label>
      <p class="row"><button class="main">Write</button></p>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      <pre>${text}</pre>
    </form>`;
}
