// Curves of a job's metrics and bars of a zoo's use, by Plotly.

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
const MOST = 2000; // points of a curve; thinned when there are more

const colour = (name) => {
  const probe = document.createElement("span");
  probe.className = `ink-${name}`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const INKS = ["accent", "good", "warn", "muted"];

/** What all charts look like; `x` and `y` are titles of the axes. */
function layout(x, y) {
  const axis = { gridcolor: colour("line"), zeroline: false, tickfont: { color: colour("muted") }, linecolor: colour("line"), automargin: true, fixedrange: true };
  const title = (text) => ({ text, font: { color: colour("muted") } });
  return {
    margin: { l: 44, r: 8, t: 8, b: 32 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
    xaxis: { ...axis, title: title(x) }, yaxis: { ...axis, title: title(y), rangemode: "tozero" },
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
    hovermode: "x unified", hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line") }, showlegend: true,
  };
}

const MOST_BARS = 7; // series with a colour of their own; the others are one

/** Stacked bars: `series` are pairs of a name and a number for each of `days`, the largest first. */
export function bars(place, days, series) {
  if (!window.Plotly || !series.length) return;
  place.hidden = false;
  const rest = series.slice(MOST_BARS);
  const shown = series.slice(0, MOST_BARS);
  if (rest.length) shown.push([`${rest.length} others`, days.map((_, at) => rest.reduce((sum, [, counts]) => sum + counts[at], 0))]);
  const shades = ["bar-1", "bar-2", "bar-3", "bar-4", "bar-5", "bar-6", "bar-7", "line-strong"].map(colour);
  const traces = shown.map(([name, y], at) => ({ type: "bar", x: days, y, name, marker: { color: shades[at] }, hovertemplate: "%{y:,}" }));
  const drawn = layout("", "");
  Object.assign(drawn.xaxis, { type: "category", tickangle: 0, nticks: Math.floor(place.clientWidth / 70) });
  drawn.yaxis.tickformat = ",";
  drawn.margin.b = 20;
  drawn.legend.traceorder = "normal";
  window.Plotly.react(place, traces, { ...drawn, barmode: "stack", bargap: days.length < 4 ? 0.8 : 0.3 }, CONFIG);
}

const IS_ACCURACY = /accuracy/;
const NO_CURVE = new Set(["queries", "harder"]); // counts and switches

/** Curves of losses and, where a method tells one, of accuracy: `add` values by step, `draw` what was added. */
export class Curves {
  #losses;
  #accuracy;
  #series = new Map();
  #added = false;

  constructor(losses, accuracy) {
    this.#losses = losses;
    this.#accuracy = accuracy;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(true));
  }

  /** Values of every metric at a step. */
  add({ step, steps, ...values }) {
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number" || NO_CURVE.has(name)) continue;
      if (!this.#series.has(name)) this.#series.set(name, { x: [], y: [] });
      const series = this.#series.get(name);
      if (series.x.length && step <= series.x.at(-1)) series.x.length = series.y.length = 0; // training began anew
      series.x.push(step);
      series.y.push(value);
      if (series.x.length > MOST) for (const axis of ["x", "y"]) series[axis] = series[axis].filter((_, at) => at % 2 === 0 || at === MOST);
    }
    this.#added = true;
    const told = Object.entries(values).map(([name, value]) => `${name} ${value.toPrecision(3)}`);
    document.getElementById("newest-metrics").textContent = `step ${step.toLocaleString("en")} of ${steps.toLocaleString("en")} · ${told.join(" · ")}`;
  }

  /** Nothing happens while there is nothing new, or no library. */
  draw(anyway = false) {
    if (!window.Plotly || !this.#series.size || !(this.#added || anyway)) return;
    this.#added = false;
    const named = [...this.#series];
    this.#plot(this.#losses, named.filter(([name]) => !IS_ACCURACY.test(name)));
    this.#plot(this.#accuracy, named.filter(([name]) => IS_ACCURACY.test(name)));
  }

  #plot(place, series) {
    if (!series.length) return;
    place.hidden = false;
    place.querySelector(".chart-empty")?.remove();
    const inks = INKS.map(colour);
    const traces = series.map(([name, { x, y }], at) => ({
      x, y, name, type: "scatter", mode: x.length === 1 ? "markers" : "lines", line: { color: inks[at % inks.length], width: 2 },
      hovertemplate: "%{y:.4g}",
    }));
    const drawn = layout("step", "");
    drawn.xaxis.rangemode = "tozero";
    window.Plotly.react(place, traces, drawn, CONFIG);
  }
}
