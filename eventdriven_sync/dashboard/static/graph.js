// Zoom, pan and the keyboard of a drawn chain. Its view survives new versions of the drawing.
import { address, visit } from "./swap.js";

const MOST = 2.5;
const LEAST = 0.08;
const READABLE = 0.72;
const WIDTH = 196; // of a box and from column to column, as layout.py has them
const COLUMN = 272;
const views = new Map();

export function prepareGraph() {
  const svg = document.querySelector("svg.graph");
  if (!svg || svg.dataset.ready) return;
  svg.dataset.ready = "1";
  const size = { width: Number(svg.dataset.width), height: Number(svg.dataset.height) };
  const view = views.get(svg.dataset.of) || begin(svg, size);
  views.set(svg.dataset.of, view);
  apply(svg, view);
  look(svg, view, size);
  drag(svg, view);
  svg.addEventListener("focusin", (event) => {
    const node = event.target.closest?.(".node, .toggle");
    if (node?.matches(":focus-visible")) reveal(svg, view, node);
  });
  svg.addEventListener("wheel", (event) => wheel(event, svg, view), { passive: false });
  svg.addEventListener("keydown", (event) => keys(event, svg, view, size));
  const buttons = { in: 1.3, out: 1 / 1.3 };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      const factor = buttons[button.dataset.zoom];
      if (factor) zoom(svg, view, factor);
      else fit(svg, view, size);
      view.moved = true;
      apply(svg, view);
    });
  }
  new ResizeObserver(() => look(svg, view, size)).observe(svg);
}

// Until somebody moves the drawing it fits the room it has.
function look(svg, view, size) {
  if (!view.moved) Object.assign(view, begin(svg, size));
  apply(svg, view);
  const selected = svg.querySelector(".node.is-selected");
  if (selected) reveal(svg, view, selected);
}

// The whole drawing if it can be read then; else its beginning, or as many columns later as show what is selected.
function begin(svg, size) {
  const view = { x: 0, y: 0, scale: 1 };
  fit(svg, view, size);
  if (view.scale >= READABLE) return view;
  const box = svg.getBoundingClientRect();
  view.scale = READABLE;
  const node = svg.querySelector(".node.is-selected") || svg.querySelector(".node");
  const beyond = Number(node.dataset.x) + WIDTH + 24 - box.width / view.scale;
  view.x = Math.max(Math.ceil(beyond / COLUMN), 0) * COLUMN - 8;
  view.y = Number(node.dataset.y) - box.height / view.scale / 2;
  return view;
}

function fit(svg, view, size) {
  const box = svg.getBoundingClientRect();
  view.scale = Math.max(Math.min(box.width / size.width, box.height / size.height, 1.15), LEAST);
  view.x = (size.width - box.width / view.scale) / 2;
  view.y = (size.height - box.height / view.scale) / 2;
  if (box.width / view.scale > size.width) view.x = Math.max(view.x, -(box.width / view.scale - size.width) / 2);
}

function apply(svg, view) {
  const box = svg.getBoundingClientRect();
  if (!box.width) return;
  svg.setAttribute("viewBox", `${view.x} ${view.y} ${box.width / view.scale} ${box.height / view.scale}`);
}

function zoom(svg, view, factor, at) {
  const box = svg.getBoundingClientRect();
  const point = at || { x: box.width / 2, y: box.height / 2 };
  const scale = Math.min(Math.max(view.scale * factor, LEAST), MOST);
  view.x += point.x / view.scale - point.x / scale;
  view.y += point.y / view.scale - point.y / scale;
  view.scale = scale;
}

function wheel(event, svg, view) {
  // Without Ctrl the wheel scrolls the page, so that nobody is caught in the drawing.
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  view.moved = true;
  const box = svg.getBoundingClientRect();
  zoom(svg, view, Math.exp(-event.deltaY / 300), { x: event.clientX - box.left, y: event.clientY - box.top });
  apply(svg, view);
}

function drag(svg, view) {
  const fingers = new Map();
  let moved = 0;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = 0;
    svg.parentElement.dataset.busy = "";
  });
  window.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const next = { x: event.clientX, y: event.clientY };
    moved += Math.abs(next.x - last.x) + Math.abs(next.y - last.y);
    if (fingers.size === 2) pinch(svg, view, fingers, event.pointerId, next);
    else if (moved > 4) {
      view.moved = true;
      view.x -= (next.x - last.x) / view.scale;
      view.y -= (next.y - last.y) / view.scale;
    }
    fingers.set(event.pointerId, next);
    apply(svg, view);
  });
  const release = (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) delete svg.parentElement?.dataset.busy;
  };
  window.addEventListener("pointerup", release);
  window.addEventListener("pointercancel", release);
  svg.addEventListener("click", (event) => {
    if (moved > 4) {
      event.preventDefault();
      event.stopPropagation();
    }
  }, true);
  svg.addEventListener("dragstart", (event) => event.preventDefault());
}

function pinch(svg, view, fingers, id, next) {
  const [other] = [...fingers].filter(([key]) => key !== id).map(([, place]) => place);
  const last = fingers.get(id);
  const before = Math.hypot(last.x - other.x, last.y - other.y);
  const after = Math.hypot(next.x - other.x, next.y - other.y);
  const box = svg.getBoundingClientRect();
  if (before > 10) zoom(svg, view, after / before, { x: other.x - box.left, y: other.y - box.top });
}

function keys(event, svg, view, size) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const zooms = { "+": 1.3, "=": 1.3, "-": 1 / 1.3 };
  if (zooms[event.key]) {
    view.moved = true;
    zoom(svg, view, zooms[event.key]);
  } else if (event.key === "0") fit(svg, view, size);
  else if (!step(event, svg, view)) return;
  event.preventDefault();
  apply(svg, view);
}

// Left to the parent, right to the first child, up and down in the column.
function step(event, svg, view) {
  const node = document.activeElement?.closest?.(".node");
  if (!node || !svg.contains(node)) return false;
  if (event.key === " ") {
    visit(address(node));
    return true;
  }
  const every = [...svg.querySelectorAll(".node")];
  const column = every.filter((each) => each.dataset.x === node.dataset.x).sort((a, b) => a.dataset.y - b.dataset.y);
  const at = column.indexOf(node);
  const next = {
    ArrowLeft: () => every.find((each) => each.dataset.id === node.dataset.parent),
    ArrowRight: () => every.find((each) => each.dataset.parent === node.dataset.id),
    ArrowUp: () => column[at - 1],
    ArrowDown: () => column[at + 1],
  }[event.key]?.();
  if (!next) return event.key.startsWith("Arrow");
  next.focus({ preventScroll: true });
  return true;
}

function reveal(svg, view, node) {
  const box = svg.getBoundingClientRect();
  const place = node.getBoundingClientRect();
  const margin = 24;
  view.x += (Math.max(place.right + margin - box.right, 0) + Math.min(place.left - margin - box.left, 0)) / view.scale;
  view.y += (Math.max(place.bottom + margin - box.bottom, 0) + Math.min(place.top - margin - box.top, 0)) / view.scale;
  apply(svg, view);
}
