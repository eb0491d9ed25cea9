// The page itself: light and dark, charts drawn when they come into view, tables that sort, copy buttons.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// The reader's own choice of theme outlives the visit where the browser allows it; a file opened from disk may not.
const memory = {
  get() { try { return localStorage.getItem("shiftscope-theme"); } catch { return null; } },
  set(mode) { try { localStorage.setItem("shiftscope-theme", mode); } catch { /* the choice then lasts for this visit */ } },
};

function mode() {
  return document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
}

function setTheme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  for (const chart of document.querySelectorAll(".chart[data-ready]")) draw(chart);
  document.dispatchEvent(new Event("themechange"));
}

async function draw(chart) {
  const drawn = chart.dataset.drawn = mode();
  await vegaEmbed(chart, DATA.charts[chart.dataset.chart], {
    config: DATA.themes[mode()], renderer: "svg", ast: true, tooltip: { theme: mode() === "dark" ? "dark" : "light" },
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  chart.dataset.ready = drawn;
  if (drawn !== mode()) await draw(chart);
}

function say(sentence) {
  document.getElementById("said").textContent = sentence;
}

async function copy(text) {
  if (navigator.clipboard) {
    try { await navigator.clipboard.writeText(text); say("Copied"); return true; } catch { /* not allowed: the old way below */ }
  }
  const field = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  say(done ? "Copied" : "The browser does not allow copying");
  return done;
}

function flash(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1200);
}

function sortTable(head) {
  const column = head.cellIndex, body = head.closest("table").tBodies[0], numeric = head.classList.contains("number");
  const down = head.getAttribute("aria-sort") === (numeric ? "descending" : "ascending") ? -1 : 1;
  const sign = numeric ? -down : down;
  const key = (row) => (numeric ? Number(row.cells[column].dataset.value || "NaN") : row.cells[column].textContent);
  const order = (a, b) => (numeric ? (Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : sign * (a - b)) : sign * a.localeCompare(b));
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
}

document.getElementById("theme").addEventListener("click", () => {
  const chosen = mode() === "dark" ? "light" : "dark";
  memory.set(chosen);
  setTheme(chosen);
});
dark.addEventListener("change", () => setTheme(""));
if (memory.get()) setTheme(memory.get());

document.addEventListener("click", async (event) => {
  const head = event.target.closest("table.sortable th");
  if (head) sortTable(head);
  const button = event.target.closest("[data-copy]");
  if (button && await copy(button.dataset.copy)) flash(button, "Copied");
});

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    inView.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });
for (const chart of document.querySelectorAll(".chart")) inView.observe(chart);
addEventListener("beforeprint", () => document.querySelectorAll(".chart:not([data-drawn])").forEach(draw));
