// What the page can be told to do: traffic, one request, faults; and what the oracle says of the traffic.

import { claim, fill, make, model, number, observed, say, time } from "./model.js";
import { light } from "./stack.js";

const token = location.hash.slice(1);
const $ = (selector) => document.querySelector(selector);
const [traffic, request, faults] = [$("#traffic"), $("#request"), $("#faults")];

/** What the headers of an answer mean. */
const MEANINGS = {
  "terrace-origin": "where the answer came from",
  "terrace-token": "what you have seen by this answer; send it back and no answer is older",
  "terrace-durability": "how safe the write is",
  "terrace-region": "the region that answered",
  "etag": "the version of the record; send it as If-Match to write only over this one",
  "age": "for how long a cache has had the answer, in seconds",
  "cache-control": "what caches on the way may do with the answer",
  "x-request-id": "names this request in the log",
  "content-type": "what the body is",
  "content-length": "how many bytes the body has",
  "location": "where the record is",
  "date": "when it was answered",
  "retry-after": "when to try again, in seconds",
  "ratelimit": "how many requests are left, and until when",
  "ratelimit-policy": "how many requests are allowed in which time",
  "x-ratelimit-limit": "how many requests are allowed",
  "x-ratelimit-remaining": "how many of them are left",
  "x-ratelimit-reset": "when there are more",
  "www-authenticate": "how to prove who you are",
  "last-modified": "when the record was written",
};

/** Sends what changes something; answers its JSON, or fails with words. */
async function post(path, data) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "terrace-live": token },
    body: JSON.stringify(data),
  }).catch(() => {
    throw new Error("Terrace does not answer; is it still running?");
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail ?? said.title ?? String(answer.status));
  return said;
}

/** Does it, and says what went wrong. */
async function attempt(place, work, done = "") {
  try {
    await work();
    if (done !== null) say(place, done);
  } catch (error) {
    say(place, error.message);
  }
}

function send(rate) {
  const [level, profile] = [model.chosen.level, traffic.profile.value];
  return attempt(traffic.querySelector(".said"), () => post("/traffic", { level, profile, rate }));
}

traffic.addEventListener("submit", (event) => {
  event.preventDefault();
  send(Number(traffic.rate.value));
});
traffic.stop.addEventListener("click", () => send(0));

request.addEventListener("submit", (event) => {
  event.preventDefault();
  const place = request.querySelector(".answer");
  const headers = {};
  if (request.token.value) headers["terrace-token"] = request.token.value.trim();
  if (model.chosen.keyed && request.elements.key.value) headers["x-api-key"] = request.elements.key.value;
  const [method, path] = [request.elements.method.value, request.path.value];
  const asked = { level: model.chosen.level, method, path, headers };
  if (!request.body.disabled) asked.body = request.body.value;
  attempt(place, async () => show(place, await post("/request", asked)), null);
});

function show(place, answer) {
  const list = make("dl");
  let origin = "";
  for (const [name, value] of answer.headers) {
    if (name === "terrace-origin") origin = value;
    list.append(make("dt", {}, `${name}: ${value}`));
    if (MEANINGS[name]) list.append(make("dd", {}, MEANINGS[name]));
  }
  const parts = [make("p", { class: "status" }, `${answer.status} after ${time(answer.us)}`)];
  const way = light(origin);
  if (way.length) parts.push(make("p", { class: "way" }, `Its way: ${way.join(" → ")}`));
  parts.push(list, make("pre", {}, answer.body));
  place.replaceChildren(...parts);
}

request.elements.method.addEventListener("change", bodied);

function bodied() {
  const method = request.elements.method.value;
  request.body.disabled = method !== "PUT" && method !== "POST";
}

/** The request that a level is offered first: the first write of a record, or its read. */
function offer() {
  const level = model.chosen;
  for (const place of document.querySelectorAll("#tools .level")) say(place, `level ${level.level}`);
  const records = level.documents ? "/v1/documents/user:1" : "/v1/records/user:1";
  request.path.value = records;
  request.body.value = level.documents ? '{"name":"Ada"}' : '{"value":"Ada"}';
  $("#key").hidden = !level.keyed;
  request.querySelector(".answer").replaceChildren();
  light("");
  bodied();
}

/** Those of the level, and those that levels share: only the others' names begin with another level. */
function servers() {
  const mine = (name) => {
    const of = name.match(/\(l(\d+)[-_]/);
    return !of || Number(of[1]) === model.chosen.level;
  };
  const shown = model.servers.map((name, server) => [name, server]).filter(([name]) => mine(name));
  faults.hidden = !shown.length;
  // Buttons that are there stay, with the focus that one of them may have.
  const names = JSON.stringify(shown);
  if (faults.dataset.shown === names) return;
  faults.dataset.shown = names;
  faults.querySelector("ul").replaceChildren(...shown.map(([name, server]) => {
    const button = make("button", { type: "button", "data-server": server }, `Stop ${name}`);
    button.addEventListener("click", () => {
      const seconds = Number(faults.querySelector("select").value);
      attempt(faults.querySelector(".said"), () => post("/faults", { server, seconds }));
    });
    return make("li", {}, button);
  }));
}

function countDown() {
  const left = new Map(model.faults);
  [...faults.querySelectorAll("button")].forEach((button) => {
    const server = Number(button.dataset.server);
    const name = model.servers[server];
    const ms = left.get(server);
    say(button, ms === undefined ? `Stop ${name}` : `${name} goes on in ${Math.ceil(ms / 1000)} s`);
  });
}

function oracle() {
  const level = model.chosen;
  const value = (name) => model.value(level.traffic, name);
  const running = value("running") === 1;
  traffic.stop.disabled = !running;
  const judged = value("judged");
  const more = running ? ` Traffic ends by itself in ${Math.ceil(value("seconds_left") / 60)} min.` : "";
  const failed = value("failed") ? ` ${number(value("failed"))} requests failed.` : "";
  const left = value("left_out") ? ` ${number(value("left_out"))} were not sent: the level is slower than the rate.` : "";
  const text = judged ? `Claimed: ${claim(level)}. Seen: ${observed(level)}.${failed}${left}${more}`
    : "Send traffic, and every read is judged by the writes that were acknowledged.";
  const place = $("#oracle");
  say(place, text);
  place.className = value("violations") ? "broken" : "";
  history(value("violations") > 0);
}

async function history(broken) {
  const box = $("#violation");
  if (!broken || box.dataset.level === String(model.chosen.level)) {
    box.hidden = !broken;
    return;
  }
  const { level } = model.chosen;
  box.dataset.level = level;
  const all = await (await fetch("/violations")).json();
  const one = all.find((violation) => violation.level === level);
  if (!one) return;
  box.hidden = false;
  box.open = true;
  say(box.querySelector("p"), `${one.why}. The level promises: ${one.claim}`);
  const rows = one.history.map((it) =>
    [time(it.sent), time(it.answered), it.what, it.write === null ? "none" : String(it.write), it.how]);
  fill(box.querySelector("tbody"), rows);
}

let offered = null;
/** Levels to which this page has sent traffic of its own accord, once each. */
const begun = new Set();

model.on((what) => {
  if (what === "state" || !model.chosen) return;
  $("#tools").hidden = !token;
  $("#locked").hidden = Boolean(token);
  if (what === "whole") servers();
  if (offered !== model.chosen.level) {
    offered = model.chosen.level;
    offer();
    // The picture is never empty: a level that is chosen gets a little traffic, unless it has some.
    if (token && model.chosen.traffic && !begun.has(offered)) {
      begun.add(offered);
      if (!model.value(model.chosen.traffic, "running")) send(Number(traffic.rate.value));
    }
  }
  countDown();
  oracle();
});
