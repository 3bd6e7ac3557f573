// Times in the viewer's zone; UTC stands in the title. Countdowns of retries run.

const DAY = 86400;
const STEPS = [[60, 1, "s"], [3600, 60, "min"], [DAY, 3600, "h"], [Infinity, DAY, "d"]];
const full = new Intl.DateTimeFormat("sv-SE", {
  year: "numeric", month: "2-digit", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3,
});
const short = new Intl.DateTimeFormat("sv-SE", {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit",
});
const clock = new Intl.DateTimeFormat("sv-SE", { hour: "2-digit", minute: "2-digit" });

export function distance(seconds) {
  const size = Math.abs(seconds);
  const [, step, unit] = STEPS.find(([limit]) => size < limit);
  const text = `${Math.floor(size / step)} ${unit}`;
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

function shown(moment, form) {
  if (form === "full") return full.format(moment).replace(",", ".");
  if (form === "clock") return clock.format(moment);
  const seconds = (Date.now() - moment) / 1000;
  return Math.abs(seconds) < DAY ? distance(seconds) : short.format(moment);
}

export function prepareTimes() {
  for (const element of document.querySelectorAll("time[datetime]")) {
    const text = shown(new Date(element.dateTime), element.dataset.form);
    if (element.textContent !== text) element.textContent = text;
  }
  for (const element of document.querySelectorAll("[data-due]")) {
    const seconds = (Date.now() - new Date(element.dataset.due)) / 1000;
    const text = seconds < 0 ? `next attempt ${distance(seconds)}` : "next attempt due";
    if (element.textContent !== text) element.textContent = text;
  }
}

setInterval(() => {
  if (!document.hidden) prepareTimes();
}, 1000);
