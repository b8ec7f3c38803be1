// The form that builds a job: the same JSON as over REST, and every fault beside its field.

import { call, clearFaults, element, Refused, showFaults } from "./api.js";
import { fill, read, unreadable } from "./form.js";

const form = document.getElementById("job");
const apis = document.getElementById("apis");
const template = document.getElementById("api-template");
const evaluate = document.getElementById("evaluate");
const PAUSE = 400; // milliseconds without typing, after which the estimate is told anew
const sent = crypto.getRandomValues(new Uint32Array(4)).join("-"); // a second click makes no second job

let made = 0;

function addApi(url = "", key = "") {
  const row = template.content.cloneNode(true).firstElementChild;
  made += 1;
  for (const input of row.querySelectorAll("[data-adapter] [name]")) input.dataset.part = input.name;
  for (const attribute of ["id", "for", "aria-describedby"]) {
    for (const each of row.querySelectorAll(`[${attribute}]`)) each.setAttribute(attribute, `${each.getAttribute(attribute)}-${made}`);
  }
  const [address, secret] = row.querySelectorAll("input");
  address.value = url;
  secret.value = key;
  address.addEventListener("paste", (event) => {
    const lines = event.clipboardData.getData("text").split(/[\s,]+/).filter(Boolean);
    if (lines.length < 2) return;
    event.preventDefault();
    address.value = lines.shift();
    lines.forEach((line) => addApi(line, secret.value));
    renew();
  });
  secret.addEventListener("change", () => {
    for (const other of apis.querySelectorAll("[data-part=api_key]")) {
      const near = other.closest("li").querySelector("[data-part=url]").value;
      if (!other.value && sameHost(near, address.value)) other.value = secret.value;
    }
  });
  const more = row.querySelector("[data-more]");
  more.addEventListener("click", () => open(row, row.querySelector(".api-more").hidden));
  const adapter = row.querySelector("[data-part=adapter]");
  adapter.addEventListener("change", () => describe(row, adapter.value));
  row.querySelector("[data-remove]").addEventListener("click", () => {
    row.remove();
    if (!apis.childElementCount) addApi();
    apis.querySelector("input").focus();
    renew();
  });
  apis.append(row);
  renumber();
  return row;
}

function open(row, shown) {
  row.querySelector(".api-more").hidden = !shown;
  row.querySelector("[data-more]").setAttribute("aria-expanded", String(shown));
}

/** Ask for the description that an adapter needs; `oip` needs none. */
function describe(row, adapter) {
  for (const options of row.querySelectorAll("[data-adapter]")) options.hidden = options.dataset.adapter !== adapter;
}

function sameHost(one, other) {
  return URL.canParse(one) && URL.canParse(other) && new URL(one).host === new URL(other).host;
}

function renumber() {
  [...apis.children].forEach((row, at) => {
    for (const input of row.querySelectorAll("[data-part]")) input.name = `apis.${at}.${input.dataset.part}`;
  });
}

/** What the form says, as the body of POST /v1/jobs. What is as it was by default is left to the server. */
function body() {
  const job = { apis: [] };
  for (const row of apis.children) job.apis.push(api(row));
  const method = form.elements["method.name"].value;
  read(form, job, (input) => {
    const options = input.closest("[data-method]");
    if (input.closest(".api-row")) return false;
    return (!options || options.dataset.method === method) && (evaluate.checked || !input.name.startsWith("evaluation."));
  });
  if (takesWeights(job)) for (const each of job.apis) each.access = "weights";
  return job;
}

const takesWeights = (job) => job.method.gradients?.source === "weights";

/** One row. */
function api(row) {
  const told = {};
  for (const input of row.querySelectorAll("[data-part]:not([data-kind])")) {
    const value = input.value.trim();
    if (input.dataset.part === "url" || (value && value !== "oip")) told[input.dataset.part] = value;
  }
  const options = row.querySelector("[data-adapter]:not([hidden])");
  if (options) {
    told[options.dataset.adapter] = {};
    fill(options.querySelectorAll("[data-kind]"), told, (input) => input.dataset.part);
  }
  return told;
}

/** What cannot be sent at all, as faults by the names of its fields. */
function unsendable() {
  const found = [...form.elements].filter((input) => input.dataset.kind && !input.closest("[data-adapter][hidden], [data-method][hidden]"));
  return Object.fromEntries(found.map((input) => [input.name, unreadable(input)]).filter(([, told]) => told));
}

/** Faults beside the fields that a person has been to; of the others nothing is said before the job is sent. */
function showKnown(faults) {
  const been = (path) => [...form.elements].some((input) => "been" in input.dataset && (path === input.name || path.startsWith(`${input.name}.`)));
  clearFaults(form);
  showFaults(form, { message: "", faults: Object.fromEntries(Object.entries(faults).filter(([path]) => been(path))) }, false);
}

function renew() {
  document.getElementById("evaluation").hidden = !evaluate.checked;
  for (const options of form.querySelectorAll("[data-method]")) options.hidden = options.dataset.method !== form.elements["method.name"].value;
  document.getElementById("takes-weights").hidden = !takesWeights(body());
  clearTimeout(waiting);
  waiting = setTimeout(estimate, PAUSE);
}

let waiting = null;
let asked = 0;

/** What the job would come to, once enough of it is said; the server tells it without asking any API. */
async function estimate() {
  const job = body();
  if (!job.apis.every(({ url }) => url) || !(job.budget?.queries > 0)) return summarise({ APIs: "give each a URL", Images: "give a budget" });
  for (const api of job.apis) delete api.api_key;
  const mine = ++asked;
  const first = unsendable();
  try {
    const told = await call("POST", "/v1/jobs/estimate", job);
    if (mine !== asked) return;
    showKnown(first);
    summarise(lines(told), told.accuracy && measured(told.accuracy));
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    if (mine !== asked) return;
    const faults = { ...refused.faults, ...first };
    showKnown(faults);
    summarise({ Estimate: "once the fields are right" }, Object.entries(faults).map(([path, told]) => `${called(path)}: ${told}`)[0] || refused.message);
  }
}

/** What the form calls the field that a fault names. */
function called(path) {
  const input = [...form.elements].find(({ name }) => name && (path === name || path.startsWith(`${name}.`)));
  return input?.labels[0]?.innerText.trim().split("\n")[0] || path;
}

const measured = (accuracy) => `Accuracy is read off our own measurements (${accuracy.measured_on}); your task may be easier or harder.`;

function lines({ queries, cost, currency, per_api: perApi, accuracy, seconds, probe }) {
  const each = Object.values(perApi).map((api) => api.queries);
  const [least, most] = [Math.min(...each), Math.max(...each)].map((count) => count.toLocaleString("en"));
  const rows = { APIs: each.length, Images: `at most ${queries.toLocaleString("en")}`, "Each API": least === most ? least : `${least} to ${most}` };
  if (cost !== null) rows.Cost = `at most ${cost} ${currency}`;
  if (seconds !== null) rows.Asking = `about ${duration(seconds)}, at the rates they state`;
  if (probe) rows["Charged for the probe"] = `${probe.charged}${probe.unconfirmed ? `, ${probe.unconfirmed} more perhaps` : ""}`;
  for (const [shots, low] of Object.entries(accuracy?.low ?? {})) {
    rows[`${shots}-shot accuracy`] = `${low.toFixed(0)} to ${accuracy.high[shots].toFixed(0)} % (untrained ${accuracy.untrained[shots].toFixed(0)} %)`;
  }
  return rows;
}

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`);

/** What one API showed, as a sentence. */
function showed({ classes, input_shape: shape, decimals, top_k: top, deterministic, max_images: most, latency, limits, reason }) {
  const told = [];
  if (classes) told.push(`${classes} classes`);
  if (shape) told.push(`${shape[1]} × ${shape[2]}`);
  if (decimals !== null) told.push(`rounded to ${decimals} decimals`);
  if (top !== null) told.push(top === 1 ? "the likeliest class alone" : `the ${top} likeliest alone`);
  if (deterministic !== null) told.push(deterministic ? "answers the same again" : "answers differ from time to time");
  if (most) told.push(`${most} images a request`);
  if (latency !== null) told.push(`${(latency * 1000).toPrecision(2)} ms`);
  for (const { name, remaining, unit } of limits) if (remaining !== null) told.push(`${name}: ${remaining.toLocaleString("en")} ${unit || ""} left`.trim());
  if (reason) told.push(reason);
  return told.join(" · ");
}

async function probe() {
  const button = document.getElementById("probe");
  button.disabled = true;
  summarise({ Probe: "asking each API…" });
  for (const line of apis.querySelectorAll(".probed")) line.hidden = true;
  clearTimeout(waiting); // an estimate without the probe would come later and hide what it showed
  const mine = ++asked;
  try {
    const told = await call("POST", "/v1/jobs/estimate", { ...body(), probe: true });
    clearFaults(form);
    [...apis.children].forEach((row, at) => {
      const seen = told.probe.per_api[`a${at}`];
      const line = row.querySelector(".probed");
      line.hidden = !seen;
      line.classList.toggle("fault", Boolean(seen?.reason));
      if (seen) line.textContent = showed(seen);
    });
    if (mine === asked) summarise(lines(told), told.accuracy && measured(told.accuracy));
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    summarise({ Probe: "not made" });
    refuse(refused);
  } finally {
    button.disabled = false;
  }
}

function summarise(rows, note = "") {
  const pairs = Object.entries(rows).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  document.getElementById("summary").replaceChildren(...pairs);
  document.getElementById("measured-on").textContent = note || "";
}

form.addEventListener("input", renew);
form.addEventListener("change", ({ target }) => {
  target.dataset.been = "";
  renew();
});
document.getElementById("probe").addEventListener("click", probe);
document.getElementById("add-api").addEventListener("click", () => addApi().querySelector("input").focus());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  renumber();
  for (const input of form.elements) input.dataset.been = "";
  const first = unsendable();
  if (Object.keys(first).length) return refuse({ message: "Nothing was sent: a field cannot be read.", faults: first });
  const start = document.getElementById("start");
  start.disabled = true;
  try {
    const wanted = body();
    const digest = [...JSON.stringify(wanted)].reduce((hash, letter) => (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0, 7);
    const job = await call("POST", "/v1/jobs", wanted, { "Idempotency-Key": `dashboard-${sent}-${digest}` });
    location.assign(`/jobs/${job.id}`);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    refuse(refused);
    start.disabled = false;
  }
});

/** Every fault, where it can be seen. */
function refuse(refused) {
  for (const path of Object.keys(refused.faults)) {
    const [, at, part] = path.split(".");
    if (path.startsWith("apis.") && !["url", "api_key", "price_per_1k"].includes(part)) open(apis.children[at], true);
  }
  showFaults(form, refused);
}

addApi();
renew();
estimate();
