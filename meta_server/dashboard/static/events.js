// Events of a job as sentences.

import { element } from "./api.js";

const PHASES = {
  probe: "Probing the APIs",
  acquire: "Asking the APIs",
  meta_train: "Training the meta-model",
  evaluate: "Measuring its accuracy",
  publish: "Publishing the meta-model",
};
const STATES = {
  queued: "The job is queued",
  running: "The job is running",
  pausing: "Pausing: what is under way is settled first",
  paused: "The job is paused",
  cancelling: "Cancelling: what is under way is settled first",
  cancelled: "The job is cancelled; what was paid for is kept",
  succeeded: "The job succeeded",
  failed: "The job failed",
};
const API_STATES = { probing: "is being probed", acquiring: "is being asked", done: "is done", dropped: "was dropped" };

/** The line of an event: a new one, `previous` grown by it (one run of answers is one line), or null when it has none. */
export function describe(event, previous) {
  const { type, data } = event;
  if (type === "budget") return answers(event, previous);
  if (type === "status") return line(event, `${STATES[data.status] || data.status}${data.reason && data.status !== "failed" ? `: ${data.reason}` : ""}`, data.status === "failed" ? "bad" : ""); // why it failed stands above, in words
  if (type === "phase") return line(event, PHASES[data.phase] || data.phase);
  if (type === "api") return line(event, `${name(data.api)} ${API_STATES[data.state] || data.state}${data.reason ? `: ${data.reason}` : ""}`, data.state === "dropped" ? "bad" : "");
  if (type === "warning") return line(event, `${data.api ? `${name(data.api)}: ` : ""}${data.message}`, "warning");
  if (type === "changed") return line(event, `Changed: ${Object.keys(data).join(", ")}`);
  if (type === "published") return line(event, `Published as ${data.meta_model}`);
  return null; // metrics and progress are drawn
}

function answers(event, previous) {
  const { outcome, images } = event.data;
  const counted = previous?.dataset.outcome === outcome ? previous : line(event, "");
  counted.dataset.outcome = outcome;
  counted.dataset.images = Number(counted.dataset.images || 0) + images;
  const words = { confirmed: "answered and stored", released: "given back, unasked", unconfirmed: "sent, outcome unknown: counted as spent" };
  const total = Number(counted.dataset.images);
  counted.lastElementChild.textContent = `${total.toLocaleString("en")} image${total === 1 ? "" : "s"} ${words[outcome] || outcome}`;
  return counted;
}

const name = (api) => document.getElementById(api)?.dataset.name || api;

function line(event, text, kind = "") {
  const when = new Date(event.time);
  const time = element("time", { datetime: event.time, title: when.toString() }, when.toLocaleTimeString("en-GB"));
  return element("li", { "data-kind": kind, "data-type": event.type }, time, element("span", {}, text));
}
