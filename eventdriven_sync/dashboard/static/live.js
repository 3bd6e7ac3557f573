// Tells when what the page shows has changed: one stream while the tab is seen, or polling where there is none.
import { load } from "./swap.js";

const POLL_EVERY = 3000;
const AT_MOST_EVERY = 700;
const STREAM_AGAIN_AFTER = 60000;

let source = null;
let timer = null;
let waiting = null;
let fresh = 0;
let noStreamUntil = 0;
let topic = "";
const page = Math.random().toString(36).slice(2);
const before = pageBefore();

export function prepareLive() {
  const mark = document.querySelector("[data-live]");
  const wanted = mark?.dataset.live || "";
  if (wanted !== topic) {
    stop();
    topic = wanted;
    start();
  }
  if (!topic) show(mark?.dataset.is || "");
  else if (source || timer) show(source?.readyState === 1 ? "open" : "polling");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return stop();
  if (topic) refresh();
  return start();
});
window.addEventListener("pagehide", stop);
window.addEventListener("pageshow", (event) => event.persisted && start());

function start() {
  if (!topic || document.hidden || source || timer) return;
  if (Date.now() < noStreamUntil || !window.EventSource) return poll();
  source = new EventSource(`${topic}&page=${page}&ends=${before}`);
  source.addEventListener("open", () => show("open"));
  source.addEventListener("changed", refresh);
  source.addEventListener("error", () => {
    // A stream that ended in good order is reconnected by the browser; one that was refused is closed.
    if (source?.readyState !== EventSource.CLOSED) return;
    source = null;
    noStreamUntil = Date.now() + STREAM_AGAIN_AFTER;
    poll();
  });
}

function stop() {
  source?.close();
  source = null;
  clearInterval(timer);
  timer = null;
  show("paused");
}

function poll() {
  show("polling");
  timer = setInterval(() => {
    if (Date.now() > noStreamUntil && window.EventSource) {
      stop();
      start();
    } else {
      refresh();
    }
  }, POLL_EVERY);
}

function refresh() {
  if (waiting) return;
  waiting = setTimeout(async () => {
    fresh = Date.now();
    try {
      await load(location.href);
    } catch {
      show("away");
    } finally {
      waiting = null;
    }
  }, Math.max(0, fresh + AT_MOST_EVERY - Date.now()));
}

const WORDS = { open: "live", polling: "every 3 s", paused: "paused", settled: "settled", away: "server away" };

function show(state) {
  const mark = document.querySelector("[data-live]");
  if (!mark) return;
  mark.dataset.state = state;
  const text = WORDS[state] || "";
  if (mark.textContent !== text) mark.textContent = text;
}

// The page that this tab showed before: its stream ends when ours begins, since servers notice late that it went.
function pageBefore() {
  try {
    const found = sessionStorage.getItem("eventdriven-page") || "";
    sessionStorage.setItem("eventdriven-page", page);
    return found;
  } catch {
    return "";
  }
}
