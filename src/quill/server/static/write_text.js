// The written text, one option of a list box for each character: arrow keys move, and the list has one stop for Tab.

import { Component, html, useEffect, useRef } from "./html.js";
import { LEVELS, cellsOf, level, nameOf, percent, textOf } from "./write_document.js";

export function Text({ document: doc, active, setActive, enter, undo, running }) {
  const box = useRef(null);
  const count = doc.blocks.reduce((sum, block) => sum + block.length, 0);
  useEffect(() => {
    if (active !== null) box.current.querySelector(`#cell-${active}`)?.scrollIntoView({ block: "nearest" });
  }, [active]);

  const move = (event) => {
    const key = event.key;
    if (key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else if (key === "Escape") setActive(null);
    else if (key === "Enter" && active !== null) enter();
    else if (key in STEPS && count) setActive(target(STEPS[key], active, doc, count));
    else return;
    event.preventDefault();
  };
  const click = (event) => {
    const cell = event.target.closest("[data-cell]");
    if (cell) setActive(Number(cell.dataset.cell));
  };
  let start = 0;
  return html`
    <div class="text" role="listbox" tabindex="0" ref=${box} aria-label="The text, one option for each character"
      aria-activedescendant=${active === null ? null : `cell-${active}`} aria-busy=${running}
      onKeyDown=${move} onClick=${click}>
      ${doc.blocks.map((block) => {
        const first = start;
        start += block.length;
        const inside = active !== null && active >= first && active < start;
        return html`<${Block} key=${first} block=${block} first=${first} active=${inside ? active : -1} />`;
      })}
    </div>`;
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down", Home: "first", End: "last" };

function target(step, active, doc, count) {
  if (step === "first") return 0;
  if (step === "last") return count - 1;
  if (active === null) return firstGenerated(doc, count);
  if (step === "up" || step === "down") return otherLine(cellsOf(doc), active, step === "up" ? -1 : 1);
  return Math.min(Math.max(active + step, 0), count - 1);
}

function firstGenerated(doc, count) {
  const found = cellsOf(doc).findIndex(({ generated }) => generated);
  return found < 0 ? count - 1 : found;
}

/** Return the same column in the line before or after. */
function otherLine(cells, active, direction) {
  const isEnd = (index) => index < 0 || index >= cells.length || cells[index].text === "\n";
  const startOf = (index) => {
    while (!isEnd(index - 1)) index -= 1;
    return index;
  };
  const start = startOf(active);
  const column = active - start;
  let line = start - 1; // the line break that ends the line before
  if (direction > 0) {
    line = active;
    while (!isEnd(line)) line += 1;
    line += 1; // the first character of the line after
    if (line >= cells.length) return active;
  } else if (line < 0) return active;
  else line = startOf(line);
  let index = line;
  while (index < line + column && !isEnd(index)) index += 1;
  return Math.min(index, cells.length - 1);
}

/** Up to 64 characters. They are drawn again only if they change or the active one is among them. */
class Block extends Component {
  shouldComponentUpdate({ block, active }) {
    return block !== this.props.block || active !== this.props.active;
  }

  render({ block, first, active }) {
    return html`<span role="presentation">${block.map((cell, index) => {
      const number = first + index;
      const name = nameOf(cell.text) + (cell.logprob === null ? "" : `, ${percent(Math.exp(cell.logprob))}`);
      const kind = `cell s${level(cell.logprob)}${cell.generated ? "" : " prompt"}${cell.text === "\n" ? " break" : ""}`;
      return html`<span role="option" id=${`cell-${number}`} data-cell=${number} class=${kind} aria-label=${name}
        aria-selected=${number === active ? "true" : "false"}>${cell.text}</span>`;
    })}</span>`;
  }
}

/** What the colours mean. */
export function Legend() {
  return html`
    <p class="legend small soft" aria-hidden="true">
      expected ${["0", ...LEVELS].map((bits, index) => html`<span class="cell s${index}" title="from ${bits} bits">${bits}</span>`)} surprising, in bits
    </p>`;
}

/** The text as text, for screen readers. */
export function PlainText({ document: doc }) {
  return html`<p class="hidden-text">${textOf(cellsOf(doc))}</p>`;
}
