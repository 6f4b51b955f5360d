// The stream of frames, open while somebody sees the page.

import { model, say } from "./model.js";
import "./ladder.js";
import "./stack.js";
import "./time.js";
import "./try.js";

const state = document.getElementById("state");
let stream = null;

function open() {
  if (stream || document.hidden) return;
  stream = new EventSource("/frames");
  stream.addEventListener("whole", (event) => {
    model.whole(JSON.parse(event.data));
    if (!model.chosen) model.choose(preferred());
    say(state, "Twice a second");
  });
  stream.addEventListener("tick", (event) => {
    model.tick(JSON.parse(event.data));
    say(state, "Twice a second");
  });
  stream.addEventListener("error", () => {
    say(state, "Terrace does not answer; trying again");
    model.tell("state");
  });
}

/** The level with most to see at the start: the multi-tier cache, or the highest below it. */
function preferred() {
  const numbers = model.levels.map((level) => level.level);
  return numbers.includes(5) ? 5 : numbers[0];
}

function close() {
  stream?.close();
  stream = null;
  say(state, "Stopped while nobody looks");
}

document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
addEventListener("pagehide", close);
open();
