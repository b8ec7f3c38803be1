// Calls of the REST interface; the browser sends the session by itself.

/** A refusal: `message` is a sentence, `faults` maps dotted field paths to what to do about each. */
export class Refused extends Error {
  constructor(problem) {
    super(sentence(problem.detail || problem.title));
    this.status = problem.status;
    this.faults = Object.fromEntries((problem.errors || []).map((fault) => [fault.field, sentence(fault.message)]));
  }
}

/** The answer's JSON. Throws `Refused`. */
export async function call(method, path, body, headers = {}) {
  const options = { method, headers: { Accept: "application/json", ...headers } };
  if (body !== undefined) {
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
