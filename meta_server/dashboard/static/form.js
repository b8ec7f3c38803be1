// What a form says, as the JSON that the server takes: each field by its `data-kind` at the dotted path of its name.

const list = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);
const READ = {
  text: (text) => text,
  secret: (text) => text,
  moment: (text) => new Date(text).toISOString(),
  integer: Number,
  number: Number,
  "text-list": list,
  "integer-list": (text) => list(text).map(Number),
  "line-list": (text) => lines(text),
  pairs: (text) => Object.fromEntries(lines(text).map(pair)),
  json: (text) => JSON.parse(text),
};

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function pair(line) {
  const [name, ...rest] = line.split(":");
  if (!rest.length) throw new SyntaxError(`"${line}" holds no colon`);
  return [name.trim(), rest.join(":").trim()];
}

/** What cannot even be sent, for want of a value that could be: a sentence, or nothing. */
export function unreadable(input) {
  try {
    valueOf(input);
    return "";
  } catch (error) {
    return input.dataset.kind === "json" ? `Is no JSON: ${error.message}. A text stands in quotes.` : `Write each on a line of its own, as Name: value; ${error.message}.`;
  }
}

/** The fields for which `wanted` is true, put into `into`. What is empty, or as it was by default, is left to the server. */
export function read(form, into = {}, wanted = () => true) {
  return fill([...form.elements].filter((input) => input.dataset.kind && wanted(input)), into, (input) => input.name);
}

/** What `inputs` say, put into `into` at the dotted path of each; one that is `unreadable` is left out. */
export function fill(inputs, into, path) {
  for (const input of inputs) {
    if (unreadable(input)) continue;
    const value = valueOf(input);
    if (value !== undefined) put(into, path(input).split("."), value);
  }
  return into;
}

function valueOf(input) {
  if (input.type === "checkbox") return input.checked === (input.dataset.default === "true") ? undefined : input.checked;
  const text = input.value.trim();
  if (input.validity.badInput) return "no such value"; // the server says what is wrong with it
  if (text === "") return "nullable" in input.dataset ? null : undefined;
  return READ[input.dataset.kind](text);
}

function put(into, path, value) {
  const last = path.pop();
  for (const name of path) into = into[name] ??= {};
  into[last] = value;
}
