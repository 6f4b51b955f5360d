// All levels, one row each.

import { claim, lag, make, model, number, observed, percent, say, time } from "./model.js";

const NAMES = ["Status", "Reads/s", "Writes/s", "p99", "Hits", "Lag", "Claimed", "Observed"];
const ORIGINS = ["near", "far", "primary", "replica", "shard", "journal", "read_model"].map((name) => `from_${name}`);
const rows = document.getElementById("rows");

function build() {
  const focus = document.activeElement?.dataset?.level;
  rows.replaceChildren(...model.levels.map((level) => {
    const button = make("button", { type: "button", "data-level": level.level }, `L${level.level} ${level.title}`);
    button.addEventListener("click", () => model.choose(level.level));
    const row = make("tr", {}, make("th", { scope: "row" }, button));
    for (const name of NAMES) row.append(make("td", { "data-name": name }));
    if (level === model.chosen) row.setAttribute("aria-current", "true");
    return row;
  }));
  if (focus) rows.querySelector(`[data-level="${focus}"]`)?.focus();
}

function update() {
  model.levels.forEach((level, index) => {
    const [cells, top] = [rows.rows[index].cells, level.top];
    const status = level.parts.length ? model.status(level.parts[0]) : "down";
    cells[1].className = status;
    const texts = [
      status,
      number(model.rate(top, "reads")),
      number(model.rate(top, "writes")),
      time(model.value(top, "read_time_p99") || undefined),
      percent(top && model.share(top, ["from_near", "from_far"], ORIGINS)),
      time(lag(level)),
      claim(level),
      observed(level),
    ];
    texts.forEach((text, column) => say(cells[column + 1], text));
    cells[8].className = model.value(level.traffic, "violations") ? "broken" : "";
  });
}

model.on((what) => {
  if (what === "whole") build();
  if (what !== "state") update();
});
