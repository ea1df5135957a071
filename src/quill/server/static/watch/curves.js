// The curves of a run: loss, learning rate and speed over the steps, with its state in words.

import { html, useEffect, useMemo, useRef } from "../html.js";
import UPlot from "../vendor/uplot.js";

const LINES = { uniform: "ln V: all tokens alike", unigram: "single tokens counted", bigram: "pairs counted" };

export function Curves({ run, lines, film, step }) {
  const found = useMemo(() => seriesOf(run.events), [run.events]);
  const last = run.events.length ? run.step : null;
  const constants = Object.keys(LINES).filter((name) => lines?.[name] != null);
  const probe = new Map((film?.frames ?? []).map((frame) => [frame.step, frame.probe_loss]));
  const loss = [
    { name: "training", values: found.training, color: "--soft" },
    { name: "validation", values: found.validation, color: "--accent", width: 2 },
    ...(probe.size ? [{ name: "the film's text", values: probe, color: "--film", dash: [5, 3] }] : []),
    ...constants.map((name) => ({ name: LINES[name], constant: lines[name], color: "--strong-line", dash: [2, 4] })),
  ];
  const sample = run.events.findLast(({ event }) => event === "sample");
  return html`
    <div class="card curves">
      <p role="status" class="state">${stateOf(run, found)}</p>
      <${Chart} title="Loss, nats per token" series=${loss} step=${step} last=${last} height=${260} />
      <div class="small-charts">
        <${Chart} title="Learning rate" series=${[{ name: "learning rate", values: found.rate, color: "--accent" }]} step=${step} last=${last} height=${120} />
        <${Chart} title="Tokens per second" series=${[{ name: "tokens per second", values: found.speed, color: "--accent" }]} step=${step} last=${last} height=${120} />
      </div>
      ${lines?.reason && html`<p class="soft small">Without the losses of counting: ${lines.reason}.</p>`}
      ${sample && html`<details><summary>Newest sample, step ${sample.step.toLocaleString("en")}</summary><pre class="sample">${sample.text}</pre></details>`}
    </div>`;
}

/** Return step → value of each curve. A run that was resumed from an earlier step replaces what came after it. */
function seriesOf(events) {
  const found = { training: new Map(), validation: new Map(), rate: new Map(), speed: new Map() };
  for (const event of events) {
    if (event.event === "start") {
      for (const values of Object.values(found)) for (const step of [...values.keys()]) if (step > event.step) values.delete(step);
    } else if (event.event === "step") {
      found.training.set(event.step, event.train_loss);
      found.rate.set(event.step, event.learning_rate);
      found.speed.set(event.step, event.tokens_per_second);
    } else if (event.event === "evaluation") {
      found.validation.set(event.step, event.val_loss);
    }
  }
  return found;
}

function stateOf(run, { validation, speed }) {
  if (!run.events.length) return "This run has no record of its training.";
  const of = run.max_iters ? ` of ${run.max_iters.toLocaleString("en")}` : "";
  const parts = [`${run.training ? "Training" : "Ended"}: step ${run.step.toLocaleString("en")}${of}`];
  const loss = [...validation.values()].at(-1);
  if (loss != null) parts.push(`validation loss ${loss.toFixed(4)}`);
  const pace = [...speed.values()].at(-1);
  if (pace != null) parts.push(`${Math.round(pace).toLocaleString("en")} tokens per second`);
  if (run.seconds_left != null) parts.push(`${duration(run.seconds_left)} left`);
  return parts.join(", ") + ".";
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Curves over the steps; a vertical line marks the moment that is shown. The key has the values there. */
function Chart({ title, series, step, last, height }) {
  const box = useRef(null);
  const plot = useRef(null);
  const latest = useRef({});
  const steps = [...new Set([0, last ?? 0, ...series.flatMap(({ values }) => (values ? [...values.keys()] : []))])].sort((a, b) => a - b);
  const data = [steps, ...series.map(({ values, constant }) => steps.map((at) => (values ? values.get(at) ?? null : constant)))];
  latest.current = { step, data };

  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const draw = () => {
      plot.current?.destroy();
      plot.current = new UPlot(optionsOf(series, box.current.clientWidth || 300, height, latest), latest.current.data, box.current);
    };
    const resize = new ResizeObserver(([{ contentRect }]) => contentRect.width && plot.current?.setSize({ width: contentRect.width, height }));
    draw();
    resize.observe(box.current);
    dark.addEventListener("change", draw);
    return () => {
      dark.removeEventListener("change", draw);
      resize.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [series.map(({ name }) => name).join(), height]);
  useEffect(() => plot.current?.setData(data), [JSON.stringify(data)]);
  useEffect(() => plot.current?.redraw(false), [step]);

  return html`
    <figure class="chart">
      <figcaption>${title}</figcaption>
      <div class="plot" ref=${box} role="img" aria-label="${title} over the steps; the list has the values."></div>
      <ul class="key small">
        ${series.map(({ name, values, constant, color }) => html`
          <li><span class="swatch" style=${{ background: `var(${color})` }}></span>${name}: ${shown(values ? valueAt(values, step) : constant)}</li>`)}
      </ul>
    </figure>`;
}

/** Return the value at the last step up to `step`; the newest one if it is null. */
function valueAt(values, step) {
  let found = null;
  for (const [at, value] of values) if (step === null || at <= step) found = value;
  return found;
}

function shown(value) {
  if (value == null) return "not yet";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value >= 0.01 ? value.toFixed(4) : value.toPrecision(3);
}

function optionsOf(series, width, height, latest) {
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 } };
  const mark = (plot) => {
    if (latest.current.step === null) return;
    const x = Math.round(plot.valToPos(latest.current.step, "x", true));
    const { ctx: context, bbox } = plot;
    context.save();
    context.strokeStyle = color("--accent");
    context.lineWidth = devicePixelRatio;
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(x, bbox.top);
    context.lineTo(x, bbox.top + bbox.height);
    context.stroke();
    context.restore();
  };
  return {
    width, height,
    scales: { x: { time: false } },
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    axes: [axis, { ...axis, size: 64, space: 24 }],
    series: [{}, ...series.map(({ name, color: variable, width = 1.25, dash }) => ({
      label: name, stroke: color(variable) || color("--accent"), width, dash, spanGaps: true, points: { show: false },
    }))],
    hooks: { draw: [mark] },
  };
}
