// The form that builds a job: the same JSON as over REST, and every fault beside its field.

import { call, element, Refused, showFaults } from "./api.js";
import { read } from "./form.js";

const form = document.getElementById("job");
const apis = document.getElementById("apis");
const template = document.getElementById("api-template");
const evaluate = document.getElementById("evaluate");
const PAUSE = 400; // milliseconds without typing, after which the estimate is told anew
const sent = crypto.getRandomValues(new Uint32Array(4)).join("-"); // a second click makes no second job

function addApi(url = "", key = "") {
  const row = template.content.cloneNode(true).firstElementChild;
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
  for (const row of apis.children) {
    const parts = [...row.querySelectorAll("input")].map((input) => [input.dataset.part, input.value.trim()]);
    job.apis.push(Object.fromEntries(parts.filter(([part, value]) => value || part === "url")));
  }
  const method = form.elements["method.name"].value;
  return read(form, job, (input) => {
    const options = input.closest("[data-method]");
    return (!options || options.dataset.method === method) && (evaluate.checked || !input.name.startsWith("evaluation."));
  });
}

function renew() {
  document.getElementById("evaluation").hidden = !evaluate.checked;
  for (const options of form.querySelectorAll("[data-method]")) options.hidden = options.dataset.method !== form.elements["method.name"].value;
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
  try {
    const told = await call("POST", "/v1/jobs/estimate", job);
    if (mine === asked) summarise(lines(told), told.accuracy?.measured_on);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    if (mine === asked) summarise({ Estimate: "once the fields are right" });
  }
}

function lines({ queries, cost, currency, per_api: perApi, accuracy }) {
  const each = Object.values(perApi).map((api) => api.queries);
  const [least, most] = [Math.min(...each), Math.max(...each)].map((count) => count.toLocaleString("en"));
  const rows = { APIs: each.length, Images: `at most ${queries.toLocaleString("en")}`, "Each API": least === most ? least : `${least} to ${most}` };
  if (cost !== null) rows.Cost = `at most ${cost} ${currency}`;
  for (const [shots, low] of Object.entries(accuracy?.low ?? {})) {
    rows[`${shots}-shot accuracy`] = `${low.toFixed(0)} to ${accuracy.high[shots].toFixed(0)} % (untrained ${accuracy.untrained[shots].toFixed(0)} %)`;
  }
  return rows;
}

function summarise(rows, source = "") {
  const pairs = Object.entries(rows).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  document.getElementById("summary").replaceChildren(...pairs);
  document.getElementById("measured-on").textContent = source && `Accuracy is read off our own measurements (${source}); your task may be easier or harder.`;
}

form.addEventListener("input", renew);
document.getElementById("add-api").addEventListener("click", () => addApi().querySelector("input").focus());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  renumber();
  const start = document.getElementById("start");
  start.disabled = true;
  try {
    const wanted = body();
    const digest = [...JSON.stringify(wanted)].reduce((hash, letter) => (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0, 7);
    const job = await call("POST", "/v1/jobs", wanted, { "Idempotency-Key": `dashboard-${sent}-${digest}` });
    location.assign(`/jobs/${job.id}`);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    showFaults(form, refused);
    start.disabled = false;
  }
});

addApi();
renew();
estimate();
