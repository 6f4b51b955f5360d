// The last minute of the chosen level on one axis: how long requests took, what was stale, lag, and what
// happened.

import { fill, lag, make, model, number, say, time } from "./model.js";

const TOOK = ["to_50us", "to_100us", "to_250us", "to_500us", "to_1ms", "to_2500us", "to_5ms", "to_10ms", "to_25ms",
  "to_50ms", "to_100ms", "to_250ms", "to_500ms", "to_1s", "to_5s", "longer"];
const BOUNDS = ["50 µs", "100 µs", "250 µs", "500 µs", "1 ms", "2.5 ms", "5 ms", "10 ms", "25 ms", "50 ms", "100 ms",
  "250 ms", "500 ms", "1 s", "5 s", "more"];
const SHADES = [0.25, 0.5, 0.75, 1];
const [SECONDS, LEFT, TOP, CELL, LANE] = [60, 58, 20, 8, 34];
const HEAT = TOP + TOOK.length * CELL;
const room = document.getElementById("time");
const list = document.getElementById("marks");
const body = document.querySelector("#time-table tbody");
let drawn = 0;

/** What happened in each of the last seconds, the latest last. */
function seconds(level) {
  const all = [];
  const end = model.looks.length - 1;
  for (let i = end; i >= 2 && all.length < SECONDS; i -= 2) {
    const [from, to] = [model.looks[i - 2], model.looks[i]];
    const grown = (name) => {
      const at = level.traffic?.places.get(name);
      return at === undefined ? 0 : Math.max(0, to.values[at] - from.values[at]);
    };
    all.unshift({ t: to.t, took: TOOK.map(grown), stale: grown("stale"), lag: lag(level, to.values) });
  }
  return all;
}

function draw() {
  const level = model.chosen;
  if (!level) return;
  const all = seconds(level);
  const width = Math.max(room.clientWidth, 280);
  const step = (width - LEFT - 8) / SECONDS;
  const x = (index) => LEFT + (SECONDS - all.length + index) * step;
  const most = Math.max(1, ...all.flatMap((second) => second.took));
  const shades = SHADES.map(() => "");
  let [stale, line] = ["", ""];
  const lags = all.map((second) => second.lag).filter((value) => value !== undefined);
  const worst = Math.max(1000, ...lags);
  all.forEach((second, index) => {
    second.took.forEach((count, bucket) => {
      if (!count) return;
      const shade = Math.min(3, Math.floor((Math.log1p(count) / Math.log1p(most)) * 4));
      shades[shade] += `M${x(index).toFixed(1)} ${HEAT - (bucket + 1) * CELL}h${step.toFixed(1)}v${CELL}h-${step.toFixed(1)}z`;
    });
    if (second.stale) {
      const height = Math.min(12, 3 + 3 * Math.log10(second.stale));
      stale += `M${x(index).toFixed(1)} ${HEAT + 16}v-${height.toFixed(1)}h${step.toFixed(1)}v${height.toFixed(1)}z`;
    }
    if (second.lag !== undefined) {
      const y = HEAT + 20 + LANE - (second.lag / worst) * LANE;
      line += `${line ? "L" : "M"}${x(index).toFixed(1)} ${y.toFixed(1)}`;
    }
  });
  const bottom = HEAT + 20 + LANE;
  const label = "The last minute: latency of the page's requests, stale reads and lag; the table below has its figures";
  const svg = make("svg", { viewBox: `0 0 ${width} ${bottom + 16}`, role: "img", "aria-label": label });
  for (const [bucket, text] of [[2, "250 µs"], [7, "10 ms"], [13, "1 s"]]) {
    svg.append(make("text", { x: 2, y: HEAT - bucket * CELL, class: "quiet" }, text));
  }
  svg.append(make("text", { x: 2, y: HEAT + 14, class: "quiet" }, "stale"));
  svg.append(make("text", { x: 2, y: bottom - 12, class: "quiet" }, lags.length ? "lag, to" : "no lag"));
  if (lags.length) svg.append(make("text", { x: 2, y: bottom, class: "quiet" }, time(worst)));
  for (const y of [HEAT, HEAT + 16, bottom]) {
    svg.append(make("line", { x1: LEFT, x2: width - 8, y1: y, y2: y, class: "axis" }));
  }
  shades.forEach((d, index) => svg.append(make("path", { d, class: "heat", "fill-opacity": SHADES[index] })));
  svg.append(make("path", { d: stale, class: "stale" }), make("path", { d: line, class: "lag" }));
  svg.append(make("text", { x: LEFT, y: bottom + 12, class: "quiet" }, "a minute ago"));
  svg.append(make("text", { x: width - 8, y: bottom + 12, class: "quiet", "text-anchor": "end" }, "now"));
  const marks = mine(level);
  marks.forEach((mark, index) => {
    const ago = (model.now - mark.at) / 1000;
    if (ago > SECONDS) return;
    const at = LEFT + (SECONDS - ago) * step;
    svg.append(make("line", { x1: at, x2: at, y1: 16, y2: bottom, class: "axis" }));
    svg.append(make("circle", { cx: at, cy: 9, r: 8, class: "mark" }));
    svg.append(make("text", { x: at, y: 13, class: "mark-text" }, String(index + 1)));
  });
  room.replaceChildren(svg);
  tell(marks);
  const texts = all.slice(-10).map((second, index, last) => {
    const total = second.took.reduce((sum, count) => sum + count, 0);
    const within = (wanted) => {
      let sum = 0;
      const bucket = second.took.findIndex((count) => (sum += count) >= wanted);
      return total ? BOUNDS[bucket] : "–";
    };
    return [`${last.length - 1 - index} s ago`, number(total), within(total / 2), within(total), number(second.stale), time(second.lag)];
  });
  fill(body, texts);
}

/** The latest marks of this level, and of all of them. */
function mine(level) {
  return model.marks.filter((mark) => mark.level === null || mark.level === level.level).slice(-9);
}

function tell(marks) {
  while (list.children.length > marks.length) list.lastChild.remove();
  marks.forEach((mark, index) => {
    if (!list.children[index]) list.append(make("li"));
    say(list.children[index], `${Math.round((model.now - mark.at) / 1000)} s ago: ${mark.text}`);
  });
}

model.on((what) => {
  if (what === "state") return;
  // Once a second is as fine as the axis is.
  if (what === "tick" && drawn++ % 2) return;
  draw();
});
