// The pages of a zoo's keys: bars of what was charged, and making, topping up and revoking keys.

import { call, clearFaults, Refused, showFaults, tell } from "./api.js";
import { bars } from "./charts.js";
import { read } from "./form.js";
import { refresh } from "./live.js";

const place = document.getElementById("chart");
const by = document.getElementById("by");

function draw() {
  const table = document.querySelector(`[data-uses="${by?.value ?? "model"}"]`);
  if (!table) return;
  const days = [...table.querySelectorAll("time")].map((day) => day.textContent);
  const series = [...table.tBodies[0].rows].map((row) => [row.cells[0].textContent, [...row.querySelectorAll("[data-count]")].map((cell) => Number(cell.dataset.count))]);
  bars(place, days, series);
}

async function again() {
  await refresh().catch(() => {});
  draw();
}

/** Do what a form asks for; what is refused is said beside its fields. Whether it was done. */
async function submit(form, work) {
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  clearFaults(form);
  try {
    await work();
    form.reset();
    await again();
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    showFaults(form, refused);
  } finally {
    button.disabled = false;
  }
}

const making = document.getElementById("new-key");
const opener = document.getElementById("make");

function show(shown) {
  making.hidden = !shown;
  opener.setAttribute("aria-expanded", String(shown));
}

opener?.addEventListener("click", () => {
  show(making.hidden);
  if (!making.hidden) making.querySelector("input").select();
});
making?.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(making, async () => {
    const key = await call("POST", "/admin/zoo/keys", read(making));
    document.getElementById("secret").textContent = key.secret;
    document.getElementById("made").hidden = false;
    show(false);
    document.getElementById("copy").focus();
  });
});

const copy = document.getElementById("copy");
if (copy) copy.hidden = !navigator.clipboard; // browsers give it to pages over TLS and on loopback alone
copy?.addEventListener("click", async () => {
  await navigator.clipboard.writeText(document.getElementById("secret").textContent);
  copy.textContent = "Copied";
});

document.addEventListener("submit", (event) => {
  if (event.target.id !== "top-up") return; // drawn anew with the rest: the listener is not its own
  event.preventDefault();
  submit(event.target, async () => {
    const key = await call("POST", event.target.dataset.post, read(event.target));
    tell(`The key now has ${key.budget.toLocaleString("en")} images in all.`);
  });
});

document.addEventListener("click", async (click) => {
  const button = click.target.closest("[data-revoke]");
  if (!button) return;
  if (button.dataset.asked !== "yes") {
    button.dataset.asked = "yes";
    button.textContent = "Really revoke?";
    return;
  }
  button.disabled = true;
  try {
    await call("DELETE", button.dataset.revoke);
    tell("The key is revoked: it grants nothing any more.");
    await again();
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    tell(refused.message, true);
    button.disabled = false;
  }
});

by?.addEventListener("change", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
