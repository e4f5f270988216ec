"use strict";
const specs = JSON.parse(document.getElementById("specs").textContent);
const views = {};

// Settings that the controls below choose, kept so that a chart drawn later starts with them.
const set = (chart, signal, value) => views[chart]?.signal(signal, value).runAsync();

const hidden = () => [...document.querySelectorAll("[data-method]")].filter((b) => !b.checked).map((b) => b.value);
const hide = () => Object.keys(specs).filter((c) => c.startsWith("dose_")).forEach((c) => set(c, "hidden", hidden()));

for (const box of document.querySelectorAll("[data-method]")) box.addEventListener("change", hide);
for (const pick of document.querySelectorAll("[data-pick]")) {
  pick.addEventListener("change", () => set(pick.dataset.pick, "method", pick.value));
}

for (const place of document.querySelectorAll("[data-chart]")) {
  const name = place.dataset.chart;
  const actions = { export: true, source: false, compiled: false, editor: false };
  vegaEmbed(place, specs[name], { mode: "vega-lite", renderer: "svg", actions, downloadFileName: name }).then((drawn) => {
    views[name] = drawn.view;
    const pick = document.querySelector(`[data-pick="${name}"]`);
    if (pick) set(name, "method", pick.value);
    if (name.startsWith("dose_")) set(name, "hidden", hidden());
  });
}

for (const button of document.querySelectorAll(".heat th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const now = head.getAttribute("aria-sort");
    // Numbers begin with the highest, names with A.
    const up = head.cellIndex ? now === "descending" : now !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = (row) => row.cells[head.cellIndex].textContent.trim();
    const value = (row) => (isNaN(parseFloat(text(row))) ? -1 : parseFloat(text(row)));
    const order = head.cellIndex ? (a, b) => value(b) - value(a) : (a, b) => text(b).localeCompare(text(a));
    body.append(...[...body.rows].sort((a, b) => (up ? -order(a, b) : order(a, b))));
  });
}

const picked = document.getElementById("concept");
if (picked) {
  const show = () => {
    for (const example of document.querySelectorAll(".example")) {
      const id = example.dataset.concept;
      example.hidden = picked.value ? picked.value !== id : !example.dataset.role;
    }
  };
  picked.addEventListener("change", show);
  show();
}
