// A job's page: follows its events, draws curves from its metrics, and redraws the rest when something happened.

import { call, clearFaults, Refused, showFaults, tell } from "./api.js";
import { Curves } from "./charts.js";
import { describe } from "./events.js";
import { refresh } from "./live.js";

const AGAIN = 3000; // milliseconds
const MOST_EVENTS = 500; // lines kept in the page
const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);
const TYPES = ["status", "phase", "api", "budget", "progress", "metrics", "changed", "warning", "published"];

const log = document.getElementById("events");
const following = document.getElementById("following");
const path = `/v1/jobs/${log.dataset.job}/events`;
const curves = new Curves(document.getElementById("loss"), document.getElementById("accuracy-curve"));
let last = null;
let over = false;
let source = null;

function add(event) {
  last = event.id;
  if (event.type === "metrics" && !drawn.has(event.id)) curves.add(event.data);
  if (event.type === "status") over = TERMINAL.has(event.data.status);
  const line = describe(event, log.firstElementChild);
  if (line && line !== log.firstElementChild) log.prepend(line);
  while (log.childElementCount > MOST_EVENTS) log.lastElementChild.remove();
}

let due = false;
function redraw() {
  if (due) return;
  due = true;
  setTimeout(async () => {
    due = false;
    curves.draw();
    await refresh().catch(() => {});
  }, 400);
}

const drawn = new Set(); // ids of the metrics that the curves began with: they outlive the events that told them

async function history() {
  for (let after = ""; after !== null; ) {
    const page = await call("GET", `/v1/jobs/${log.dataset.job}/metrics${after && `?after=${after}`}`);
    for (const { id, step, steps, values } of page.items) {
      if (!drawn.has(id)) curves.add({ step, steps, ...values });
      drawn.add(id);
    }
    after = page.last;
  }
  for (;;) {
    const page = await call("GET", `${path}?limit=1000${last ? `&after=${last}` : ""}`);
    page.items.forEach(add);
    if (page.items.length < 1000) break;
  }
  curves.draw();
}

function follow() {
  if (over || source || document.visibilityState === "hidden") return;
  source = new EventSource(last ? `${path}?after=${last}` : path);
  source.onopen = () => (following.textContent = "live");
  source.onerror = () => {
    following.textContent = "connecting again…";
    if (source?.readyState === EventSource.CLOSED) setTimeout(again, AGAIN); // refused: the browser does not try by itself
  };
  for (const type of TYPES) {
    source.addEventListener(type, (message) => {
      if (message.data === undefined) return;
      add(JSON.parse(message.data));
      redraw();
      if (over) rest();
    });
  }
}

/** From the beginning: what came after the last event that we have seen is no longer held, or somebody signed out. */
async function again() {
  rest();
  last = null;
  log.replaceChildren();
  await history().then(follow, (refused) => tell(refused.message, true));
}

function rest() {
  if (source) source.close();
  source = null;
  following.textContent = over ? "" : "paused";
}

// Browsers allow few connections to one server: a page that nobody sees gives its own back, and goes on where it was.
document.addEventListener("visibilitychange", () => (document.visibilityState === "hidden" ? rest() : follow()));

document.addEventListener("click", async (click) => {
  const button = click.target.closest("[data-post], [data-delete]");
  if (!button) return;
  if (button.dataset.confirm && button.dataset.asked !== "yes") {
    button.dataset.asked = "yes";
    button.textContent = `Really ${button.dataset.confirm}?`;
    return;
  }
  button.disabled = true;
  try {
    if (button.dataset.delete) {
      await call("DELETE", button.dataset.delete);
      return location.assign("/");
    }
    const job = await call("POST", button.dataset.post);
    tell(`The job is ${job.status}.`);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    tell(refused.message, true);
  }
  button.disabled = false;
  await refresh().catch(() => {});
  over = false;
  follow();
});

const change = document.getElementById("change");
change?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = change.elements;
  const wanted = {
    name: fields.name.value.trim() || null,
    tags: fields.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    notes: fields.notes.value,
  };
  const queries = fields["budget.queries"];
  if (!queries.disabled && queries.value !== queries.defaultValue) wanted.budget = { queries: Number(queries.value) };
  clearFaults(change);
  try {
    await call("PATCH", change.dataset.patch, wanted);
    queries.defaultValue = queries.value;
    tell("Saved.");
    await refresh();
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    showFaults(change, refused);
  }
});

history().then(follow, (refused) => tell(refused.message, true));
