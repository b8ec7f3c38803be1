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
};

/** The fields for which `wanted` is true, put into `into`. What is empty, or as it was by default, is left to the server. */
export function read(form, into = {}, wanted = () => true) {
  for (const input of form.elements) {
    if (!input.dataset.kind || !wanted(input)) continue;
    const value = valueOf(input);
    if (value !== undefined) put(into, input.name.split("."), value);
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
