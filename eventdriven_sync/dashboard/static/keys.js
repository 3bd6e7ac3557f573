// Triage by keyboard: j and k choose a row, Enter opens it, r retries, d discards.
import { send } from "./swap.js";

const rows = () => [...document.querySelectorAll("table[data-rows] tbody tr[data-id]")];
const selected = () => document.querySelector('table[data-rows] tr[aria-selected="true"]');

function move(by) {
  const every = rows();
  if (!every.length) return;
  const at = every.indexOf(selected());
  choose(every[Math.min(Math.max(at < 0 ? (by > 0 ? 0 : every.length - 1) : at + by, 0), every.length - 1)]);
}

function choose(row) {
  for (const other of rows()) other.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
  row.scrollIntoView({ block: "nearest" });
  row.querySelector("a")?.focus({ preventScroll: true });
}

// The form of the selected row, or that of the page.
function form(name) {
  return (selected() || document).querySelector(`form[data-action="${name}"]`);
}

function retry() {
  const found = form("retry");
  if (!found) return;
  const next = selected()?.nextElementSibling || selected()?.previousElementSibling;
  send(found).then(() => {
    const again = next && rows().find((row) => row.dataset.id === next.dataset.id);
    if (again) choose(again);
  });
}

function discard() {
  (selected() || document).querySelector("button[data-opens]")?.click();
}

const ACTIONS = {
  j: () => move(1),
  k: () => move(-1),
  r: retry,
  d: discard,
  "/": () => document.querySelector(".filters input, .filters select")?.focus(),
  "?": () => document.getElementById("keys")?.showModal(),
  Escape: () => document.querySelector("a[data-close]")?.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true })),
};

export function prepareKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.matches("input, textarea, select") || document.querySelector("dialog[open]")) return;
    const action = ACTIONS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[data-keys-help]")) document.getElementById("keys")?.showModal();
    const opener = event.target.closest?.("button[data-opens]");
    if (opener) opener.closest("[data-holds]")?.querySelector("dialog")?.showModal();
    if (event.target.closest?.("button[data-closes]")) event.target.closest("dialog")?.close();
    const row = event.target.closest?.("table[data-rows] tbody tr[data-id]");
    if (row && !event.target.closest("a, button, input, summary, dialog")) choose(row);
  });
}
