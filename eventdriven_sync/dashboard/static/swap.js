// New versions of parts of the page, fetched as the whole page: one way of rendering, with and without scripts.

const listeners = [];
const sources = new Map(); // part id -> the markup it was made from; scripts have changed its nodes since
let latest = 0;

for (const part of document.querySelectorAll("[data-swap]")) sources.set(part.id, part.outerHTML);

export function onSwap(listener) {
  listeners.push(listener);
}

// Puts every part marked data-swap of a fetched page in the place of ours with the same id. What is in use stays.
export function swap(text, { force = false } = {}) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const parts = [...document.querySelectorAll("[data-swap]")];
  for (const part of parts) {
    const next = fresh.getElementById(part.id);
    if (!next || (!force && busy(part))) continue;
    const source = next.outerHTML;
    if (sources.get(part.id) === source) continue;
    sources.set(part.id, source);
    const kept = memory(part);
    const adopted = document.adoptNode(next);
    part.replaceWith(adopted);
    kept(adopted);
  }
  document.title = fresh.title;
  listeners.forEach((listener) => listener());
}

// Somebody writes in it, or has opened its dialog.
function busy(part) {
  const active = document.activeElement;
  const writes = part.contains(active) && active.matches("input, textarea, select");
  return writes || part.querySelector("dialog[open], [data-busy]") !== null;
}

// What a person did to a part and a new version of it must not undo: focus, selection, what is unfolded, scrolling.
function memory(part) {
  const active = part.contains(document.activeElement) ? document.activeElement : null;
  const place = active?.id || active?.dataset.id;
  const selected = part.querySelector('tr[aria-selected="true"]')?.dataset.id;
  const unfolded = [...part.querySelectorAll("details")].map((each) => each.open);
  const scrolled = part.scrollTop;
  return (next) => {
    const details = [...next.querySelectorAll("details")];
    if (details.length === unfolded.length && next.dataset.of === part.dataset.of) {
      details.forEach((each, index) => { each.open = unfolded[index]; });
      next.scrollTop = scrolled;
    }
    if (selected) next.querySelector(`tr[data-id="${CSS.escape(selected)}"]`)?.setAttribute("aria-selected", "true");
    if (place) {
      const again = next.querySelector(`#${CSS.escape(place)}, [data-id="${CSS.escape(place)}"]`);
      again?.focus({ preventScroll: true });
    }
  };
}

// The page again, or another one of which parts are taken. A later call overtakes an earlier one.
export async function load(address, { force = false } = {}) {
  const mine = ++latest;
  const response = await fetch(address, { headers: { "X-Swap": "1" }, credentials: "same-origin" });
  if (response.redirected && !sameFrame(response.url)) return location.assign(response.url);
  if (mine !== latest) return undefined;
  if (response.ok) swap(await response.text(), { force });
  return response;
}

function sameFrame(address) {
  return new URL(address).pathname === location.pathname;
}

export function tell(text, kind = "good") {
  const note = document.createElement("p");
  note.className = `note is-${kind}`;
  note.dataset.notice = "";
  note.textContent = text;
  document.getElementById("notice")?.replaceChildren(note);
}

// Links marked data-part change parts of the page and its address.
export function prepareLinks() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-part]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    visit(address(link));
  });
  window.addEventListener("popstate", () => load(location.href, { force: true }));
}

export async function visit(href) {
  const begun = href.split("#")[0];
  history.pushState(null, "", begun);
  await load(begun, { force: true });
}

// Of an <a> in an SVG the href is an object.
export function address(link) {
  return new URL(link.getAttribute("href"), location.href).href;
}

// Forms marked data-quiet are sent without leaving the page; what they lead to shows in its parts.
export function prepareForms() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("form[data-quiet]")) return;
    event.preventDefault();
    send(form, event.submitter);
  });
}

export async function send(form, submitter) {
  const button = submitter || form.querySelector("button");
  button?.setAttribute("aria-busy", "true");
  form.closest("dialog")?.close();
  try {
    const response = await fetch(form.action, {
      method: "POST", body: new URLSearchParams(new FormData(form)), credentials: "same-origin",
      headers: { "X-Swap": "1" },
    });
    const text = await response.text();
    latest += 1;
    if (response.ok) {
      swap(text, { force: true });
      const note = new DOMParser().parseFromString(text, "text/html").querySelector("[data-notice]");
      if (note) tell(note.textContent);
    } else tell(problem(text) || `That did not work (${response.status}).`, "bad");
  } catch {
    tell("The server cannot be reached; nothing was changed as far as this page knows.", "bad");
  } finally {
    button?.removeAttribute("aria-busy");
  }
}

function problem(text) {
  return new DOMParser().parseFromString(text, "text/html").querySelector("[data-problem]")?.textContent;
}
