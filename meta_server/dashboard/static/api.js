// Calls of the REST interface; the browser sends the session by itself.

/** A refusal: `message` is a sentence, `faults` maps dotted field paths to what to do about each. */
export class Refused extends Error {
  constructor(problem) {
    super(sentence(problem.detail || problem.title));
    this.status = problem.status;
    this.faults = Object.fromEntries((problem.errors || []).map((fault) => [fault.field, sentence(fault.message)]));
  }
}

/** The answer's JSON; `body` is sent as JSON, or as it is if it is a form. Throws `Refused`. */
export async function call(method, path, body, headers = {}) {
  const options = { method, headers: { Accept: "application/json", ...headers } };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused({ detail: "the server cannot be reached: try again", status: 0 });
  }
  if (response.status === 401) location.assign(`/sign-in?to=${encodeURIComponent(location.pathname)}`);
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({ detail: `the server answered ${response.status}`, status: response.status }));
  if (!response.ok) throw new Refused(answer);
  return answer;
}

/** First letter large, a full stop at the end. */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}

/** Say something where screen readers hear it. */
export function tell(text, bad = false) {
  const told = document.getElementById("told");
  told.textContent = text;
  told.dataset.kind = bad ? "bad" : "";
}

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Every fault beside its field; those of no field of the form in a sentence. Focus goes to the first, unless it is to stay. */
export function showFaults(form, { message, faults }, moves = true) {
  clearFaults(form);
  const homeless = [];
  for (const [path, text] of Object.entries(faults)) {
    const shown = [...form.elements].filter((input) => input.name && !input.closest("[hidden]:not(.api-more)"));
    const input = shown.find(({ name }) => name === path || path.startsWith(`${name}.`));
    if (!input) {
      homeless.push(`${path}: ${text}`);
      continue;
    }
    const id = `fault-${path.replaceAll(".", "-")}`;
    input.setAttribute("aria-invalid", "true");
    input.dataset.described = input.getAttribute("aria-describedby") || "";
    input.setAttribute("aria-describedby", `${id} ${input.dataset.described}`.trim());
    input.closest(".field").append(element("p", { class: "fault", id }, text));
    for (let around = input.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  }
  tell([message, ...homeless].join(" "), true);
  if (moves) form.querySelector("[aria-invalid]")?.focus();
}

/** As if nothing had been refused. */
export function clearFaults(form) {
  for (const fault of form.querySelectorAll(".field .fault")) fault.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    if (input.dataset.described) input.setAttribute("aria-describedby", input.dataset.described);
    else input.removeAttribute("aria-describedby");
  }
  tell("");
}
