// The playground: a few labelled images of each class, others to label, and what the meta-model makes of them.

import { call, element, Refused, tell } from "./api.js";

const MOST_BYTES = 40 * 2 ** 20; // of all images together; base64 makes them a third larger
const START_NAMES = ["Class A", "Class B"];

const playground = document.getElementById("playground");
const classes = document.getElementById("classes");
const template = document.getElementById("class-template");
const query = document.getElementById("query");
const button = document.getElementById("predict");
const predictions = document.getElementById("predictions");
const images = new Map(); // a thumbnail's <li> -> its File

function addClass(name) {
  const made = template.content.cloneNode(true).firstElementChild;
  made.querySelector(".class-name").value = name;
  made.querySelector(".remove-class").addEventListener("click", () => {
    made.querySelectorAll(".thumbs li").forEach((thumb) => images.delete(thumb));
    made.remove();
    document.getElementById("add-class").focus();
  });
  classes.append(made);
  accept(made);
  return made;
}

/** Let an area take files: chosen, dropped or pasted. */
function accept(area) {
  const input = area.querySelector("input[type=file]");
  input.addEventListener("change", () => {
    addFiles(area, input.files);
    input.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) {
    area.addEventListener(kind, (event) => {
      event.preventDefault();
      area.dataset.over = "";
    });
  }
  area.addEventListener("dragleave", (event) => area.contains(event.relatedTarget) || delete area.dataset.over);
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    delete area.dataset.over;
    addFiles(area, event.dataTransfer.files);
  });
  area.addEventListener("paste", (event) => addFiles(area, event.clipboardData.files));
}

function addFiles(area, files) {
  for (const file of files) {
    const picture = element("img", { alt: file.name, src: URL.createObjectURL(file) });
    const remove = element("button", { type: "button", "aria-label": `Remove ${file.name}` }, "×");
    const thumb = element("li", {}, picture, remove);
    remove.addEventListener("click", () => {
      URL.revokeObjectURL(picture.src);
      images.delete(thumb);
      thumb.remove();
    });
    images.set(thumb, file);
    area.querySelector(".thumbs").append(thumb);
  }
}

const thumbsOf = (area) => [...area.querySelectorAll(".thumbs li")];

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 2 ** 15) text += String.fromCharCode(...bytes.subarray(at, at + 2 ** 15));
  return btoa(text);
}

/** What is missing before anything can be learned, as a sentence; null when nothing is. */
function missing(groups, asked) {
  const names = groups.map(({ name }) => name);
  if (groups.length < 2) return "Give at least two classes an image each.";
  if (names.some((name) => !name)) return "Give each class a name.";
  if (new Set(names).size < names.length) return "Two classes have the same name: give each its own.";
  if (!asked.length) return "Add at least one image to ask about.";
  const bytes = [...images.values()].reduce((sum, file) => sum + file.size, 0);
  if (bytes > MOST_BYTES) return "These are more than 40 MB of images: use fewer or smaller ones.";
  return null;
}

async function predict() {
  for (const thumb of images.keys()) thumb.removeAttribute("data-fault");
  const groups = [...classes.children]
    .map((area) => ({ name: area.querySelector(".class-name").value.trim(), thumbs: thumbsOf(area) }))
    .filter(({ thumbs }) => thumbs.length);
  const asked = thumbsOf(query);
  const fault = missing(groups, asked);
  if (fault) return tell(fault, true);
  const shown = groups.flatMap(({ name, thumbs }) => thumbs.map((thumb) => ({ name, thumb })));
  button.disabled = true;
  tell("Learning…");
  const began = performance.now();
  try {
    const read = (thumb) => base64(images.get(thumb));
    const answer = await call("POST", `/v1/meta-models/${playground.dataset.model}/predict`, {
      support: { images: await Promise.all(shown.map(({ thumb }) => read(thumb))), labels: shown.map(({ name }) => name) },
      query: await Promise.all(asked.map(read)),
    });
    predictions.replaceChildren(...answer.predictions.map((prediction, at) => card(asked[at], prediction)));
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    tell(`Learned ${groups.length} classes from ${shown.length} images and labelled ${asked.length} in ${seconds} s.`);
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    tell(mark(refused, shown.map(({ thumb }) => thumb), asked), true);
  } finally {
    button.disabled = false;
  }
}

/** Mark the images that were refused; what to say. */
function mark(refused, shown, asked) {
  const faults = Object.entries(refused.faults);
  for (const [field, message] of faults) {
    const [, area, index] = field.match(/^(support\.images|query)\.(\d+)$/) || [];
    const thumb = area && (area === "query" ? asked : shown)[Number(index)];
    if (!thumb) continue;
    thumb.dataset.fault = message;
    thumb.title = message;
  }
  const names = faults.map(([, message]) => message);
  return names.length ? `${refused.message} ${names[0]}` : refused.message;
}

function card(thumb, { label, probabilities }) {
  const source = thumb.querySelector("img");
  const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a).slice(0, 5);
  const list = element("ul", { class: "shares" });
  for (const [name, probability] of rows) {
    const bar = element("progress", { max: 1, value: probability, "aria-hidden": "true" });
    list.append(element("li", {}, element("span", { title: name }, name), bar, element("span", { class: "n" }, `${(100 * probability).toFixed(1)} %`)));
  }
  return element("li", { class: "prediction" }, element("img", { src: source.src, alt: source.alt }), element("div", {}, element("strong", {}, label), list));
}

START_NAMES.forEach(addClass);
accept(query);
document.getElementById("add-class").addEventListener("click", () => {
  const made = addClass(`Class ${String.fromCharCode(65 + classes.childElementCount % 26)}`);
  made.querySelector(".class-name").select();
});
button.addEventListener("click", predict);
