// The form that builds a job: the same JSON as over REST, and every fault beside its field.

import { call, element, Refused, showFaults } from "./api.js";

const form = document.getElementById("job");
const apis = document.getElementById("apis");
const template = document.getElementById("api-template");
const evaluate = document.getElementById("evaluate");
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

const READ = {
  text: (text) => text,
  integer: Number,
  number: Number,
  "text-list": (text) => text.split(",").map((part) => part.trim()).filter(Boolean),
  "integer-list": (text) => text.split(",").map((part) => part.trim()).filter(Boolean).map(Number),
};

/** What the form says, as the body of POST /v1/jobs. What is as it was by default is left to the server. */
function body() {
  const job = { apis: [] };
  for (const row of apis.children) {
    const parts = [...row.querySelectorAll("input")].map((input) => [input.dataset.part, input.value.trim()]);
    job.apis.push(Object.fromEntries(parts.filter(([part, value]) => value || part === "url")));
  }
  const method = form.elements["method.name"].value;
  for (const input of form.querySelectorAll("[data-kind]")) {
    const options = input.closest("[data-method]");
    if (options && options.dataset.method !== method) continue;
    if (input.name.startsWith("evaluation.") && !evaluate.checked) continue;
    const value = valueOf(input);
    if (value !== undefined) put(job, input.name.split("."), value);
  }
  return job;
}

function valueOf(input) {
  if (input.type === "checkbox") return input.checked === (input.dataset.default === "true") ? undefined : input.checked;
  const text = input.value.trim();
  if (input.type === "number" && input.validity.badInput) return "no number";
  return text === "" ? undefined : READ[input.dataset.kind](text);
}

function put(into, path, value) {
  const last = path.pop();
  for (const name of path) into = into[name] ??= {};
  into[last] = value;
}

function renew() {
  const count = [...apis.querySelectorAll("[data-part=url]")].filter(({ value }) => value.trim()).length;
  const queries = Number(form.elements["budget.queries"].value);
  const rows = { APIs: count || "none yet", Images: queries ? `at most ${queries.toLocaleString("en")}` : "–", "Each API": queries && count ? `about ${Math.floor(queries / count).toLocaleString("en")}` : "–" };
  const pairs = Object.entries(rows).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  document.getElementById("summary").replaceChildren(...pairs);
  document.getElementById("evaluation").hidden = !evaluate.checked;
  for (const options of form.querySelectorAll("[data-method]")) options.hidden = options.dataset.method !== form.elements["method.name"].value;
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
