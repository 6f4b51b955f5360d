// What is known of all levels: the frames of the stream put together, and the last minute of them.

/** How many looks are remembered: a minute. */
const KEPT = 120;

/** A part of a level's tree. */
class Part {
  constructor(said, at, parts) {
    Object.assign(this, said);
    this.at = at;
    this.parent = said.above === null ? null : parts[said.above];
    this.children = [];
    this.parent?.children.push(this);
    this.places = new Map(said.figures.map(([name], index) => [name, at + 1 + index]));
    this.units = new Map(said.figures);
  }

  get title() {
    return this.instance && this.instance !== this.name ? `${this.name} ${this.instance}` : this.name;
  }

  has(name) {
    return this.places.has(name);
  }
}

class Model {
  constructor() {
    this.levels = [];
    this.servers = [];
    this.values = [];
    this.notes = [];
    this.marks = [];
    this.looks = [];
    this.faults = [];
    this.dots = [];
    this.frames = 0;
    this.chosen = null;
    this.listeners = [];
  }

  /** Calls back with "whole", "tick" or "state" after each change. */
  on(listener) {
    this.listeners.push(listener);
  }

  tell(what) {
    for (const listener of this.listeners) listener(what);
  }

  choose(number) {
    this.chosen = this.levels.find((level) => level.level === number) ?? this.levels[0];
    this.tell("whole");
  }

  whole(data) {
    const old = { places: this.places(), looks: this.looks };
    let [at, numbered] = [0, 0];
    const before = this.chosen?.level;
    this.servers = data.about.servers;
    this.marks = data.marks;
    this.values = data.values;
    this.notes = [];
    this.levels = data.about.levels.map((about, index) => {
      const parts = [];
      for (const said of data.parts[index]) {
        const part = new Part(said, at, parts);
        part.number = numbered++;
        parts.push(part);
        this.notes.push(data.notes[part.number] ?? "");
        at += 1 + said.figures.length;
      }
      const traffic = parts.find((part) => part.name === "traffic" && !part.parent);
      const stack = parts.filter((part) => part !== traffic);
      const top = stack.find((part) => part.name === "observe");
      return { ...about, parts: stack, top, traffic };
    });
    this.looks = this.carried(old, data);
    this.remember(data.t);
    this.chosen = this.levels.find((level) => level.level === before) ?? null;
    this.frames += 1;
    this.tell("whole");
  }

  /** Where each figure of each part stands, by a name that lasts. */
  places() {
    const all = new Map();
    for (const level of this.levels) {
      const names = new Map();
      for (const part of [...level.parts, level.traffic ?? []].flat()) {
        const name = `${names.get(part.parent) ?? level.level}/${part.title}`;
        names.set(part, name);
        const again = all.has(name) ? `${name}#${part.number}` : name;
        all.set(again, part.at);
        for (const [figure, place] of part.places) all.set(`${again}.${figure}`, place);
      }
    }
    return all;
  }

  /** What was seen before parts came or went, in the new order; what is new counts from now on. */
  carried(old, data) {
    if (!old.looks.length || old.looks[old.looks.length - 1].t > data.t) return [];
    const from = [];
    for (const [name, place] of this.places()) from[place] = old.places.get(name);
    return old.looks.map(({ t, values }) =>
      ({ t, values: data.values.map((value, place) => (from[place] === undefined ? value : values[from[place]])) }));
  }

  tick(data) {
    this.values = this.values.slice();
    for (let i = 0; i < data.v.length; i += 2) this.values[data.v[i]] = data.v[i + 1];
    for (const [number, note] of Object.entries(data.n ?? {})) this.notes[number] = note;
    this.faults = data.f ?? [];
    this.dots = data.d ?? [];
    this.marks = this.marks.concat(data.m ?? []).slice(-40);
    this.remember(data.t);
    this.frames += 1;
    this.tell("tick");
  }

  remember(t) {
    this.now = t;
    this.looks.push({ t, values: this.values });
    if (this.looks.length > KEPT) this.looks.shift();
  }

  /** A figure of a part as it is now. */
  value(part, name) {
    return part && part.has(name) ? this.values[part.places.get(name)] : undefined;
  }

  status(part) {
    return ["healthy", "degraded", "down"][this.values[part.at]];
  }

  note(part) {
    return this.notes[part.number] ?? "";
  }

  /** By how much a counter grew in the last so many milliseconds, and in how many it did. */
  growth(part, name, within) {
    const now = this.looks[this.looks.length - 1];
    let then = now;
    for (let i = this.looks.length - 1; i >= 0 && now.t - this.looks[i].t <= within; i--) then = this.looks[i];
    const place = part.places.get(name);
    return [now.values[place] - then.values[place], now.t - then.t];
  }

  /** How often a second a counter counts, over two seconds. */
  rate(part, name) {
    if (!part?.has(name)) return undefined;
    const [count, time] = this.growth(part, name, 2100);
    return time > 0 ? (count * 1000) / time : 0;
  }

  /** Of the growth of all these counters, the share of the first ones, over ten seconds. */
  share(part, some, all) {
    const sum = (names) => names.reduce((sum, name) => sum + (part.has(name) ? this.growth(part, name, 10100)[0] : 0), 0);
    const total = sum(all);
    return total > 0 ? sum(some) / total : undefined;
  }
}

export const model = new Model();

/** How far a part is behind, in microseconds. */
export function lagOf(part, values = model.values) {
  for (const name of ["lag", "behind", "oldest", "lag_p99"]) {
    const place = part.places.get(name);
    if (place !== undefined) return values[place];
  }
  return undefined;
}

/** The largest lag of a level. */
export function lag(level, values = model.values) {
  const all = level.parts.map((part) => lagOf(part, values)).filter((lag) => lag !== undefined);
  return all.length ? Math.max(...all) : undefined;
}

/** A time of so many microseconds, for people. */
export function time(us) {
  if (us === undefined) return "–";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toPrecision(us < 1e5 ? 2 : 3)} ms`.replace(/^(\d+)\.0+ /, "$1 ");
  return `${(us / 1e6).toFixed(us < 1e7 ? 1 : 0)} s`;
}

/** A rate or a share, for people. */
export function number(value, digits = 0) {
  if (value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: value > 0 && value < 10 ? 1 : digits });
}

export function percent(share) {
  return share === undefined ? "–" : `${Math.round(share * 100)} %`;
}

/** What a level claims of reads without a token. */
export function claim(level) {
  if (!level.traffic) return "–";
  if (!level.traffic.has("allowed")) return "may be behind, without a bound";
  const allowed = model.value(level.traffic, "allowed");
  return allowed === 0 ? "never stale" : `at most ${time(allowed)} stale`;
}

/** What the page's traffic has seen of that. */
export function observed(level) {
  const judged = model.value(level.traffic, "judged");
  if (!judged) return "not tried";
  const [worst, wrong] = ["worst", "violations"].map((name) => model.value(level.traffic, name));
  const seen = worst === 0 ? "never stale" : `worst ${time(worst)}`;
  return `${seen}; ${number(wrong)} violations in ${number(judged)} reads`;
}

/** An element with attributes and children; texts stay texts. */
export function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "path", "circle", "text", "line", "title"].includes(name);
  const it = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) it.setAttribute(key, value);
  it.append(...children);
  return it;
}

/** Sets a text, where it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives a table these rows of texts; rows that are there stay. */
export function fill(body, rows) {
  while (body.rows.length > rows.length) body.lastChild.remove();
  rows.forEach((texts, index) => {
    let row = body.rows[index];
    if (!row) {
      row = make("tr");
      texts.forEach((_, column) => row.append(make(column ? "td" : "th", column ? {} : { scope: "row" })));
      body.append(row);
    }
    texts.forEach((text, column) => say(row.cells[column], text));
  });
}
