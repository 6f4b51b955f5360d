// The chosen level as a drawing: a box for each part, below the one that it works for, and requests on their
// way. The same as a table stands below it.

import { claim, fill, lagOf, make, model, number, percent, say, time } from "./model.js";

const [ROW, BOX, STEP, LEFT] = [38, 28, 22, 14];
const TRIP = 700;
/** A browser that is late does not make up for it. */
const MOST = 60;
const ENGINES = ["database", "pool", "cache", "journal", "primary", "replica", "read_model"];
const WAITS = ["requests_waiting", "waiting", "waiting_writes", "waiting_keys", "queue_length"];
const FLOWS = [["reads", "writes"], ["hits", "misses"], ["changes"], ["requests"], ["admitted"]];
const ORIGINS = ["near", "far", "primary", "replica", "shard", "journal", "read_model"];
const still = matchMedia("(prefers-reduced-motion: reduce)");
const drawing = document.getElementById("drawing");
const body = document.querySelector("#stack-table tbody");

let boxes = [];
let flying = [];
let layer = null;
let lit = [];
let frame = 0;

/** How many requests a second a part has; what passes from above where it does not count them itself. */
function flow(part) {
  for (const names of FLOWS) {
    const known = names.filter((name) => part.has(name));
    if (known.length) return known.reduce((sum, name) => sum + model.rate(part, name), 0);
  }
  const above = part.parent;
  if (!above) return 0;
  return above.has("misses") ? model.rate(above, "misses") : flow(above);
}

function ownFlow(part) {
  return FLOWS.some((names) => names.some((name) => part.has(name))) ? flow(part) : undefined;
}

function waiting(part) {
  const known = WAITS.filter((name) => part.has(name));
  return known.length ? known.reduce((sum, name) => sum + model.value(part, name), 0) : undefined;
}

/** The part that answers what comes from there, such as `shard:1`. */
function target(level, origin) {
  const [kind, which] = origin.split(":");
  const of = (test) => level.parts.find(test);
  const deepest = (part) => {
    const below = part?.children.find((child) => ["database", "primary", "shard", "region", "layer", "replica"].includes(child.kind));
    return below ? deepest(below) : part;
  };
  const caches = (part) => part.kind === "cache" && part.name !== "near-cache";
  const found = {
    near: () => of((part) => part.name === "near-cache"),
    far: () => of(caches),
    journal: () => of((part) => part.kind === "journal") ?? of((part) => part.name === "write-buffer"),
    "read-model": () => of((part) => part.kind === "read_model"),
    replica: () => of((part) => part.instance === `replica ${which}`) ?? of((part) => part.kind === "replica"),
    shard: () => deepest(of((part) => part.kind === "shard" && part.instance === `shard ${which}`)),
    region: () => deepest(of((part) => part.kind === "region" && part.instance.includes(which))),
    primary: () => of((part) => part.kind === "primary") ?? of((part) => part.kind === "database"),
  }[kind]?.();
  return found ?? level.parts[0];
}

/** Of the level's reads of the last ten seconds, the share that this part answered. */
function answers(level, part) {
  if (!level.top) return undefined;
  const origin = ORIGINS.find((name) => {
    if (name === "replica") return part.name === "replica-router";
    if (name === "shard") return part.name === "shard-router";
    const there = level.parts.some((it) => it.name.endsWith("-router"));
    if (name === "primary" && there && part.kind !== "primary") return false;
    return target(level, name.replace("_", "-")) === part && part !== level.parts[0];
  });
  return origin && model.share(level.top, [`from_${origin}`], ORIGINS.map((name) => `from_${name}`));
}

function place(part, depth, next) {
  const box = { part, depth, y: next.y, x: LEFT + depth * STEP };
  next.y += ROW;
  boxes.push(box);
  const inner = part.children.length > 1 ? depth + 1 : depth;
  for (const child of part.children) place(child, inner, next);
}

function build() {
  const level = model.chosen;
  [boxes, flying, layer] = [[], [], null];
  drawing.replaceChildren();
  if (!level?.parts.length) return;
  const next = { y: 22 };
  for (const part of level.parts.filter((part) => !part.parent)) place(part, 0, next);
  const width = Math.max(drawing.clientWidth, 280);
  const label = `Stack of level ${level.level}: ${level.parts.length} parts; the table below has their figures`;
  const svg = make("svg", { viewBox: `0 0 ${width} ${next.y}`, role: "img", "aria-label": label });
  svg.append(make("text", { x: LEFT, y: 13, class: "quiet" }, "requests"));
  const edges = make("g");
  svg.append(edges);
  for (const box of boxes) {
    const above = boxes.find((other) => other.part === box.part.parent);
    const from = above ? [above.x + 8, above.y + BOX] : [box.x + 8, 16];
    box.from = from;
    box.edge = make("path", { class: "edge", d: way([from, ...bend(from, box)]) });
    edges.append(box.edge);
    const engine = ENGINES.includes(box.part.kind) ? " engine" : "";
    box.class = `part${engine}`;
    box.rect = make("rect", { x: box.x, y: box.y, width: width - box.x - 4, height: BOX, rx: engine ? 12 : 4 });
    box.fill = make("rect", { x: box.x, y: box.y + BOX - 5, height: 5, width: 0, class: "full" });
    box.name = make("text", { x: box.x + 16, y: box.y + 18 }, box.part.title);
    box.says = make("text", { x: width - 12, y: box.y + 18, class: "quiet", "text-anchor": "end" });
    box.note = make("title");
    svg.append(make("g", {}, box.note, box.rect, box.fill, box.name, box.says));
  }
  layer = make("g");
  svg.append(layer);
  drawing.append(svg);
  say(document.getElementById("stack-title"), `Stack of level ${level.level}: ${level.title}`);
  say(document.getElementById("promise"), `It promises: ${level.guarantee} A read without a token: ${claim(level)}.`);
}

function bend(from, box) {
  const middle = box.y + BOX / 2;
  return box.x + 8 === from[0] ? [[from[0], box.y]] : [[from[0], middle], [box.x, middle]];
}

function way(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x} ${y}`).join("");
}

function update() {
  const level = model.chosen;
  if (!level) return;
  const room = drawing.clientWidth / 8;
  const rows = boxes.map((box) => {
    const { part } = box;
    const [status, rate, queue, lag, share] =
      [model.status(part), ownFlow(part), waiting(part), lagOf(part), answers(level, part)];
    const breaker = part.name === "breaker" ? (status === "healthy" ? "closed" : "open") : "";
    const word = breaker || (status === "healthy" ? "" : status);
    const says = [
      word,
      share === undefined ? "" : `answers ${percent(share)}`,
      rate === undefined ? "" : `${number(rate)}/s`,
      queue ? `${number(queue)} wait` : "",
      lag === undefined ? "" : `lag ${time(lag)}`,
    ].filter(Boolean);
    // What does not fit beside the name is in the table.
    const space = room - (box.x + 16) / 8 - part.title.length - 2;
    let text = says.join(" · ");
    while (text.length > space && says.length > 1) {
      says.splice(says.length > 1 && word ? 1 : 0, 1);
      text = says.join(" · ");
    }
    say(box.says, text.length > space ? "" : text);
    box.rect.setAttribute("class", `${box.class}${status === "healthy" ? "" : ` ${status}`}${lit.includes(part) ? " lit" : ""}`);
    box.edge.setAttribute("stroke-width", (1 + 2 * Math.log10(1 + flow(part))).toFixed(1));
    box.fill.setAttribute("width", queue ? Math.min(1, queue / 64) * box.rect.getAttribute("width") : 0);
    say(box.note, model.note(part));
    return [
      `${"· ".repeat(box.depth)}${part.title}`, breaker ? `${status}, ${breaker}` : status,
      rate === undefined ? "–" : `${number(rate)}/s`, percent(share), number(queue), time(lag),
    ];
  });
  fill(body, rows);
}

/** The boxes on the way from the top to a part. */
function path(part) {
  const on = [];
  for (let it = part; it; it = it.parent) on.unshift(boxes.find((box) => box.part === it));
  return on.filter(Boolean);
}

function points(part) {
  const boxesOn = path(part);
  const all = [];
  for (const box of boxesOn) all.push(box.from, ...bend(box.from, box));
  const last = boxesOn[boxesOn.length - 1];
  if (last) all.push([last.x + 8, last.y + BOX / 2]);
  return all;
}

/** Lets the requests of the last frame run. */
function fly() {
  const level = model.chosen;
  const said = model.dots.find(([number]) => number === level?.level);
  const each = said ? `One dot is ${said[1] === 1 ? "one request" : `${said[1]} requests`}.` : "";
  say(document.getElementById("scale"), still.matches && said ? `${each} They do not move, as you prefer.` : each);
  if (!said || !layer || still.matches || document.hidden) return;
  const begun = performance.now();
  said[2].slice(0, Math.max(0, MOST - flying.length)).forEach(([write, origin, right], index) => {
    const kind = origin === null ? "failed" : right ? (write ? "write" : "read") : "wrong";
    const line = points(origin === null ? level.top ?? level.parts[0] : target(level, origin));
    if (line.length < 2) return;
    const circle = make(kind === "failed" ? "rect" : "circle", { class: `dot ${kind}`, visibility: "hidden" });
    const size = kind === "wrong" ? 6 : 4;
    for (const name of kind === "failed" ? ["width", "height"] : ["r"]) {
      circle.setAttribute(name, kind === "failed" ? 8 : size);
    }
    layer.append(circle);
    flying.push({ circle, line, begins: begun + (index * 500) / said[2].length });
  });
  if (!frame && flying.length) frame = requestAnimationFrame(move);
}

function move(now) {
  frame = 0;
  flying = flying.filter(({ circle, line, begins }) => {
    const part = (now - begins) / TRIP;
    if (part < 0) return true;
    if (part >= 1) {
      circle.remove();
      return false;
    }
    const [x, y] = along(line, part);
    circle.removeAttribute("visibility");
    circle.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    return true;
  });
  if (flying.length) frame = requestAnimationFrame(move);
}

function along(line, part) {
  const lengths = line.slice(1).map(([x, y], index) => Math.hypot(x - line[index][0], y - line[index][1]));
  let rest = part * lengths.reduce((sum, length) => sum + length, 0);
  for (let i = 0; i < lengths.length; i++) {
    if (rest <= lengths[i] && lengths[i] > 0) {
      const [[x, y], [toX, toY], share] = [line[i], line[i + 1], rest / lengths[i]];
      return [x + (toX - x) * share, y + (toY - y) * share];
    }
    rest -= lengths[i];
  }
  return line[line.length - 1];
}

/** Lights the way of an answer from there; answers the names of its parts. */
export function light(origin) {
  const level = model.chosen;
  lit = origin ? path(target(level, origin)).map((box) => box.part) : [];
  update();
  return lit.map((part) => part.title);
}

let width = 0;
new ResizeObserver(() => {
  if (drawing.clientWidth === width) return;
  width = drawing.clientWidth;
  build();
  update();
}).observe(drawing);

model.on((what) => {
  if (what === "whole") {
    lit = [];
    build();
  }
  if (what === "state") return;
  update();
  if (what === "tick") fly();
});
