// The playground: a few labelled images of each class, others to label, and what the meta-model makes of them.

import { call, element, Refused, tell } from "./api.js";
import { refresh } from "./live.js";

const BATCH = 16; // images asked about at once
const TTL = 3600; // seconds for which the adapted model is served
const MOST_BYTES = 40 * 2 ** 20; // of all images together; base64 makes them a third larger
const START_NAMES = ["Class A", "Class B"];

const playground = document.getElementById("playground");
const classes = document.getElementById("classes");
const template = document.getElementById("class-template");
const query = document.getElementById("query");
const method = document.getElementById("method");
const button = document.getElementById("adapt");
const predictions = document.getElementById("predictions");
const images = new Map(); // a thumbnail's <li> -> its File
let adapted = null; // the adapted model that answers

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
  const added = [];
  for (const file of files) {
    const picture = element("img", { alt: file.name, src: URL.createObjectURL(file) });
    const remove = element("button", { type: "button", "aria-label": `Remove ${file.name}` }, "×");
    const thumb = element("li", {}, picture, remove);
    remove.addEventListener("click", () => {
      images.delete(thumb);
      thumb.remove();
    });
    images.set(thumb, file);
    area.querySelector(".thumbs").append(thumb);
    added.push(thumb);
  }
  if (area === query) ask(added);
  else if (adapted) tell("The examples changed: adapt again to use them.");
}

const thumbsOf = (area) => [...area.querySelectorAll(".thumbs li")];

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 2 ** 15) text += String.fromCharCode(...bytes.subarray(at, at + 2 ** 15));
  return btoa(text);
}

/** What is missing before anything can be learned, as a sentence; null when nothing is. */
function missing(groups) {
  const names = groups.map(({ name }) => name);
  if (groups.length < 2) return "Give at least two classes an image each.";
  if (names.some((name) => !name)) return "Give each class a name.";
  if (new Set(names).size < names.length) return "Two classes have the same name: give each its own.";
  const bytes = groups.flatMap(({ thumbs }) => thumbs).reduce((sum, thumb) => sum + images.get(thumb).size, 0);
  if (bytes > MOST_BYTES) return "These are more than 40 MB of images: use fewer or smaller ones.";
  return null;
}

async function adapt() {
  const groups = [...classes.children]
    .map((area) => ({ name: area.querySelector(".class-name").value.trim(), thumbs: thumbsOf(area) }))
    .filter(({ thumbs }) => thumbs.length);
  const fault = missing(groups);
  if (fault) return tell(fault, true);
  const shown = groups.flatMap(({ name, thumbs }) => thumbs.map((thumb) => ({ name, thumb })));
  const support = { images: await Promise.all(shown.map(({ thumb }) => base64(images.get(thumb)))), labels: shown.map(({ name }) => name) };
  tell("Adapting…");
  const began = performance.now();
  try {
    adapted = await call("POST", `/v1/meta-models/${playground.dataset.model}/adapt`, { support, method: method.value, ttl: TTL });
  } catch (refused) {
    return refuse(refused, "support.images", shown.map(({ thumb }) => thumb));
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  tell(`Learned ${groups.length} classes from ${shown.length} image${shown.length === 1 ? "" : "s"} in ${seconds} s. ${thumbsOf(query).length ? "" : "Now ask it about others."}`.trim());
  predictions.replaceChildren();
  await ask(thumbsOf(query));
  await refresh().catch(() => {});
}

/** Have the adapted model label images, a few at a time. */
async function ask(thumbs) {
  for (let at = 0; adapted && at < thumbs.length; at += BATCH) {
    const some = thumbs.slice(at, at + BATCH);
    const form = new FormData();
    for (const thumb of some) form.append("files", images.get(thumb));
    try {
      const answers = await call("POST", `/v1/models/${adapted.id}/classify`, form);
      predictions.append(...answers.map((scores, index) => card(some[index], scores)));
    } catch (refused) {
      return refuse(refused, "files", some);
    }
  }
}

/** Say why, and mark the images that are at fault. */
function refuse(refused, area, thumbs) {
  if (!(refused instanceof Refused)) throw refused;
  for (const [field, message] of Object.entries(refused.faults)) {
    const thumb = field.startsWith(`${area}.`) ? thumbs[Number(field.slice(area.length + 1))] : null;
    if (!thumb) continue;
    thumb.dataset.fault = message;
    thumb.title = message;
  }
  const [[field, message] = []] = Object.entries(refused.faults);
  const file = field?.startsWith(`${area}.`) ? images.get(thumbs[Number(field.slice(area.length + 1))])?.name : null;
  tell(message ? `${file || field}: ${message}` : refused.message, true);
}

function card(thumb, scores) {
  const source = thumb.querySelector("img");
  const list = element("ul", { class: "shares" });
  for (const { label, score } of scores.slice(0, 5)) {
    const bar = element("progress", { max: 1, value: score, "aria-hidden": "true" });
    list.append(element("li", {}, element("span", { title: label }, label), bar, element("span", { class: "n" }, `${(100 * score).toFixed(1)} %`)));
  }
  return element("li", { class: "prediction" }, element("img", { src: source.src, alt: source.alt }), element("div", {}, element("strong", {}, scores[0].label), list));
}

async function busy(control, work) {
  control.disabled = true;
  try {
    await work();
  } finally {
    control.disabled = false;
  }
}

const compare = document.getElementById("compare");
compare?.addEventListener("submit", (event) => {
  event.preventDefault();
  const told = document.getElementById("compared");
  told.textContent = "Measuring both…";
  busy(compare.querySelector("button"), async () => {
    try {
      const evaluation = { shots: [1, 5], episodes: 100 };
      const pair = { first: compare.elements.second.value, second: playground.dataset.model, evaluation };
      const { difference } = await call("POST", "/v1/meta-models/compare", pair);
      const parts = Object.entries(difference.accuracy).map(([shots, points]) => `${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)} ± ${difference.interval[shots].toFixed(1)} points with ${shots} shot${shots === "1" ? "" : "s"}`);
      told.textContent = `This model against the other: ${parts.join(", ")} (100 episodes of glyphs val, 95 % interval of the paired differences).`;
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      told.textContent = [refused.message, ...Object.values(refused.faults)].join(" ");
    }
  });
});
const remove = document.getElementById("delete");
remove.addEventListener("click", () => {
  if (remove.dataset.asked !== "yes") {
    remove.dataset.asked = "yes";
    remove.textContent = "Really delete?";
    return;
  }
  busy(remove, async () => {
    try {
      await call("DELETE", remove.dataset.modelDelete);
      location.assign("/meta-models");
    } catch (refused) {
      refuse(refused, "", []);
    }
  });
});
START_NAMES.forEach(addClass);
accept(query);
document.getElementById("add-class").addEventListener("click", () => {
  const made = addClass(`Class ${String.fromCharCode(65 + (classes.childElementCount % 26))}`);
  made.querySelector(".class-name").select();
});
button.addEventListener("click", () => busy(button, adapt));
document.addEventListener("click", (click) => {
  const end = click.target.closest("[data-delete]");
  if (!end) return;
  busy(end, async () => {
    try {
      await call("DELETE", end.dataset.delete);
      if (adapted && end.dataset.delete.endsWith(adapted.id)) adapted = null;
      tell("It has ended and answers no more.");
    } catch (refused) {
      refuse(refused, "", []);
    }
    await refresh().catch(() => {});
  });
});
