// Keeps the parts of a page marked `data-live` as the server would draw them now: fetches the page, morphs what changed.

const POLL = 2000; // milliseconds

/** Draw the live parts anew. Throws when the server cannot be reached. */
export async function refresh() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (response.redirected && new URL(response.url).pathname === "/sign-in") location.assign(response.url);
  if (!response.ok) return;
  const drawn = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = drawn.getElementById(part.id);
    if (!next || next.isEqualNode(part)) continue;
    if (window.Idiomorph) window.Idiomorph.morph(part, next, { restoreFocus: true });
    else part.replaceWith(next);
  }
}

async function poll() {
  if (document.visibilityState === "visible") await refresh().catch(() => {});
  setTimeout(poll, POLL);
}

if (document.querySelector("[data-live=poll]")) setTimeout(poll, POLL);
