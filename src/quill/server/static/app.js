// The page: header, tabs, and which model is shown.
//
// A tab is a module whose default export is a Preact component. To add one, add its line to TABS.
// The module is loaded when the tab is opened first; from then on its component stays mounted, hidden while another
// tab is open. Its styles are a file of its own: `await addStyles("<folder>/<name>.css")`. Properties:
//
//   model     the shown model, an entry of /v1/models
//   models    all of them
//   query     the parameters of this tab in the address, URLSearchParams: #write?prompt=Once → prompt=Once
//   setQuery  (URLSearchParams) => void: replace them, without a step in the browser's history
//   off       the parts of the model that are switched off, such as ["head:0.3"]
//   setOff    (parts) => void
//   text      the text that the Write tab shows, for tabs that look at it
//   setText   (string) => void

import { getJson, takeKey } from "./api.js";
import { Component, html, render, useEffect, useState } from "./html.js";

const TABS = [
  ["write", "Write", () => import("./write.js")],
  ["look", "Look", () => import("./look/look.js")],
  ["watch", "Watch", () => import("./watch/watch.js")],
  ["learn", "Learn", () => import("./learn/learn.js")],
];

const NONE = [];

/** Return the tab and its parameters that the address names; the first tab if it names none. */
function readAddress() {
  const [name, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const known = TABS.some(([tab]) => tab === name);
  return { tab: known ? name : TABS[0][0], query: known ? query : "" };
}

function App() {
  const [tab, setTab] = useState(() => readAddress().tab);
  const [queries, setQueries] = useState({});
  const [models, setModels] = useState(null);
  const [chosen, setChosen] = useState("");
  const [tabs, setTabs] = useState({});
  const [switched, setSwitched] = useState({});
  const [text, setText] = useState("");
  const [error, setError] = useState("");

  useEffect(() => {
    const follow = () => {
      const now = readAddress();
      setTab(now.tab);
      if (now.query) setQueries((others) => ({ ...others, [now.tab]: now.query }));
      const named = new URLSearchParams(now.query).get("model");
      if (named) setChosen(named);
    };
    follow();
    addEventListener("hashchange", follow);
    getJson("/v1/models").then((answer) => setModels(answer.data), (reason) => setError(reason.message));
    return () => removeEventListener("hashchange", follow);
  }, []);

  useEffect(() => {
    if (tab in tabs) return;
    const [name, , load] = TABS.find(([name]) => name === tab);
    load().then(
      (module) => setTabs((others) => ({ ...others, [name]: module.default })),
      () => setError("This part of the page could not be loaded. Reload the page."),
    );
  }, [tab]);

  const setQuery = (name) => (query) => {
    if (name === readAddress().tab) history.replaceState(null, "", `#${name}?${query}`);
    setQueries((others) => ({ ...others, [name]: String(query) }));
  };
  const model = models && (models.find(({ id }) => id === chosen) ?? models[0]);
  const setOff = (parts) => setSwitched((others) => ({ ...others, [model.id]: parts }));
  return html`
    <header class="top">
      <h1 class="name">Quill</h1>
      <nav aria-label="Parts of the page">
        ${TABS.map(([name, title]) => html`
          <a href="#${name}${queries[name] ? "?" + queries[name] : ""}" aria-current=${name === tab ? "page" : null}>${title}</a>`)}
      </nav>
      ${model && html`<${ModelChoice} models=${models} model=${model} choose=${setChosen} />`}
    </header>
    ${error && html`<p class="notice" role="alert">${error}</p>`}
    <main>
      ${model && TABS.filter(([name]) => tabs[name]).map(([name, title]) => html`
        <section key=${name + model.id} class="tab" aria-label=${title} hidden=${name !== tab}>
          <${Guarded}>
            <${tabs[name]} model=${model} models=${models} text=${text} setText=${setText}
              off=${switched[model.id] ?? NONE} setOff=${setOff}
              query=${new URLSearchParams(queries[name] ?? "")} setQuery=${setQuery(name)} />
          <//>
        </section>`)}
    </main>`;
}

/** The name of the model; a choice if the server has several. */
function ModelChoice({ models, model, choose }) {
  if (models.length === 1) return html`<span class="model">${model.id}</span>`;
  return html`
    <label class="model">Model
      <select value=${model.id} onChange=${(event) => choose(event.currentTarget.value)}>
        ${models.map(({ id }) => html`<option value=${id}>${id}</option>`)}
      </select>
    </label>`;
}

/** Shows an error in one tab instead of an empty page. */
class Guarded extends Component {
  componentDidCatch(error) {
    this.setState({ error });
    console.error(error);
  }

  render({ children }, { error }) {
    return error ? html`<p class="notice" role="alert">This part of the page failed: ${error.message}</p>` : children;
  }
}

takeKey();
render(html`<${App} />`, document.getElementById("app"));
