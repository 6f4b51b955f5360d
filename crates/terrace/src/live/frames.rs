//! Looks as numbered frames: what changed since the one before, and all of it for those who come later.
//!
//! A frame has at most [`CHANGES`] bytes of changed numbers. What does not fit comes with the next one,
//! which begins where this one ended; nothing is lost by that, as a number is sent as it is and not by how
//! much it changed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Mark;
use super::looks::{Look, SeenPart};
use super::traffic::Dots;

/// The most bytes of changed numbers in a frame; with all else two of them are below 10 KiB.
const CHANGES: usize = 3_000;

/// How many frames are kept for those who come back: a minute.
const KEPT: usize = 120;

/// How many marks are kept.
const MARKS: usize = 40;

/// One event of the stream, as it is sent.
#[derive(Debug)]
pub(crate) struct Frame {
    number: u64,
    /// The text of the event.
    pub(crate) text: Bytes,
}

/// What a frame tells beside numbers.
#[derive(Debug)]
pub(super) struct News {
    pub(super) at: u64,
    pub(super) dots: Dots,
    /// Servers that are stopped, each with the milliseconds that are left.
    pub(super) faults: Vec<(usize, u64)>,
}

/// All that was sent, and what everybody knows by that.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Whether somebody makes frames.
    pub(super) looking: bool,
    /// Tells the frames of this process from those of another.
    run: u64,
    number: u64,
    at: u64,
    /// What does not change, and the parts of all levels.
    described: Value,
    parts: Vec<Vec<SeenPart>>,
    values: Vec<u64>,
    notes: Vec<String>,
    /// Where the next frame begins to compare.
    place: usize,
    kept: VecDeque<Arc<Frame>>,
    marks: VecDeque<Mark>,
    /// Those of the next frame.
    new_marks: Vec<Mark>,
    /// How each level was.
    statuses: BTreeMap<u8, u64>,
}

impl Frames {
    pub(super) fn of(run: u64) -> Self {
        Self { run, ..Self::default() }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        self.new_marks.push(mark.clone());
        self.marks.push_back(mark);
        if self.marks.len() > MARKS {
            self.marks.pop_front();
        }
    }

    /// What to tell of a level whose status is another than before.
    pub(super) fn changed_status(&mut self, level: u8, look: &Look) -> Option<String> {
        let now = look.status();
        let before = self.statuses.insert(level, now)?;
        let word = ["healthy again", "degraded", "down"].get(usize::try_from(now).ok()?)?;
        let why = if look.why().is_empty() { "" } else { ": " };
        (before != now).then(|| format!("{word}{why}{}", look.why()))
    }

    /// The frames after the one of this name; none where they are no longer all there.
    pub(super) fn after(&self, name: &str) -> Option<Vec<Arc<Frame>>> {
        let (run, number) = name.split_once('-')?;
        let number = number.parse::<u64>().ok()?;
        if run != format!("{:x}", self.run) {
            return None;
        }
        let first = self.kept.front()?.number;
        let known = (first.saturating_sub(1)..=self.number).contains(&number);
        known.then(|| self.kept.iter().filter(|frame| frame.number > number).cloned().collect())
    }

    /// All that is known, as one frame with the number of the latest one; none before the first.
    pub(super) fn whole(&self) -> Option<Arc<Frame>> {
        (self.number > 0).then(|| self.event("whole", &self.everything()))
    }

    /// Makes a frame of a look at all levels: of all of it when parts came or went, else of what changed.
    pub(super) fn next(
        &mut self,
        news: News,
        looks: Vec<Look>,
        described: impl FnOnce() -> Value,
    ) -> Arc<Frame> {
        self.number += 1;
        self.at = news.at;
        let (mut parts, mut values, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for look in looks {
            parts.push(look.parts);
            values.extend(look.values);
            notes.extend(look.notes);
        }
        let frame = if parts == self.parts {
            let data = self.changes(&news, &values, notes);
            self.event("tick", &data)
        } else {
            if self.described.is_null() {
                self.described = described();
            }
            (self.parts, self.values, self.notes) = (parts, values, notes);
            self.new_marks.clear();
            // Frames before it are of other parts.
            self.kept.clear();
            self.event("whole", &self.everything())
        };
        self.kept.push_back(Arc::clone(&frame));
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        frame
    }

    fn everything(&self) -> String {
        let notes = self.notes.iter().enumerate().filter(|(_, note)| !note.is_empty());
        json!({
            "t": self.at,
            "about": self.described,
            "parts": self.parts,
            "values": self.values,
            "notes": notes.collect::<BTreeMap<_, _>>(),
            "marks": self.marks,
        })
        .to_string()
    }

    /// What changed, as far as it fits.
    fn changes(&mut self, news: &News, values: &[u64], notes: Vec<String>) -> String {
        let (count, mut changed) = (values.len(), String::new());
        let from = self.place;
        for step in 0..count {
            let at = (from + step) % count;
            if self.values[at] == values[at] {
                continue;
            }
            if changed.len() >= CHANGES {
                self.place = at;
                break;
            }
            self.values[at] = values[at];
            let comma = if changed.is_empty() { "" } else { "," };
            // A text takes everything.
            let _ = write!(changed, "{comma}{at},{}", values[at]);
        }
        let mut data = format!("{{\"t\":{},\"v\":[{changed}]", news.at);
        let told = notes.iter().enumerate().filter(|(at, note)| self.notes.get(*at) != Some(*note));
        let told = told.collect::<BTreeMap<_, _>>();
        let more = [
            ("n", (!told.is_empty()).then(|| json!(told))),
            ("d", (!news.dots.is_empty()).then(|| json!(news.dots))),
            ("f", (!news.faults.is_empty()).then(|| json!(news.faults))),
            ("m", (!self.new_marks.is_empty()).then(|| json!(self.new_marks))),
        ];
        for (name, value) in more {
            if let Some(value) = value {
                let _ = write!(data, ",\"{name}\":{value}");
            }
        }
        data.push('}');
        self.new_marks.clear();
        self.notes = notes;
        data
    }

    fn event(&self, kind: &str, data: &str) -> Arc<Frame> {
        let (run, number) = (self.run, self.number);
        let text = format!("id: {run:x}-{number}\nevent: {kind}\ndata: {data}\n\n").into();
        Arc::new(Frame { number, text })
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Inspection;

    use super::*;

    fn look(figures: &[u64]) -> Vec<Look> {
        let names = ["a", "b", "c"];
        let mut tree = Inspection::new("part");
        for at in 0..figures.len() {
            tree = tree.counter(names[at % 3], figures[at]);
        }
        let mut look = Look::default();
        look.add(&tree);
        vec![look]
    }

    fn next(frames: &mut Frames, looks: Vec<Look>) -> (String, Value) {
        let news = News { at: 7, dots: Dots::default(), faults: Vec::new() };
        let frame = frames.next(news, looks, || json!({}));
        let text = String::from_utf8(frame.text.to_vec()).expect("text");
        let (head, data) = text.split_once("data: ").expect("data");
        (head.to_owned(), serde_json::from_str(data).expect("JSON"))
    }

    #[test]
    fn a_frame_has_what_changed_and_the_next_one_what_did_not_fit() {
        let mut frames = Frames::default();
        let many = 2_000;
        let (head, _) = next(&mut frames, look(&vec![0; many]));
        assert_eq!(head, "id: 0-1\nevent: whole\n");
        let wanted = vec![123_456_789; many];
        let mut seen = vec![0; many + 1];
        for number in 2..20 {
            let (head, data) = next(&mut frames, look(&wanted));
            assert_eq!(head, format!("id: 0-{number}\nevent: tick\n"));
            let changed = data["v"].as_array().expect("pairs");
            assert!(data.to_string().len() < 5 * 1024, "{}", data.to_string().len());
            for pair in changed.chunks(2) {
                let at = usize::try_from(pair[0].as_u64().expect("a place")).expect("small");
                seen[at] = pair[1].as_u64().expect("a value");
            }
        }
        assert_eq!(seen[1..], wanted);
        let (_, data) = next(&mut frames, look(&wanted));
        assert_eq!(data, json!({"t": 7, "v": []}));
    }

    #[test]
    fn who_comes_back_gets_what_was_missed_or_all_of_it() {
        let mut frames = Frames::of(10);
        assert!(frames.after("a-0").is_none() && frames.whole().is_none());
        for value in 0..5 {
            next(&mut frames, look(&[value]));
        }
        let missed = frames.after("a-3").expect("they are there");
        assert_eq!(missed.iter().map(|frame| frame.number).collect::<Vec<_>>(), [4, 5]);
        assert!(frames.after("a-5").is_some_and(|missed| missed.is_empty()));
        for odd in ["a-9", "b-3", "3", "", "a-x"] {
            assert!(frames.after(odd).is_none(), "{odd} is of another process");
        }
        for value in 0..200 {
            next(&mut frames, look(&[value]));
        }
        assert!(frames.after("a-5").is_none());
        // Another part: what was before cannot be followed.
        next(&mut frames, look(&[1, 2]));
        assert!(frames.after("a-204").is_none());
    }
}
