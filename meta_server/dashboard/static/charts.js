// Curves of a job's metrics, by Plotly.

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
    const inks = ["accent", "good", "warn", "muted"].map(colour);
    const traces = series.map(([name, { x, y }], at) => ({
      x, y, name, type: "scatter", mode: x.length === 1 ? "markers" : "lines", line: { color: inks[at % inks.length], width: 2 },
      hovertemplate: "%{y:.4g}",
    }));
    const axis = { gridcolor: colour("line"), zeroline: false, tickfont: { color: colour("muted") }, linecolor: colour("line"), automargin: true };
    const layout = {
      margin: { l: 44, r: 8, t: 8, b: 32 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
      xaxis: { ...axis, title: { text: "step", font: { color: colour("muted") } }, fixedrange: true, rangemode: "tozero" },
      yaxis: { ...axis, fixedrange: true, rangemode: "tozero" },
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
      hovermode: "x unified", hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line") }, showlegend: true,
    };
    window.Plotly.react(place, traces, layout, CONFIG);
  }
}
