//! One tree for health, counters and structure.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::Times;

/// How well a part does its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All of it.
    #[default]
    Healthy,
    /// Answers are right, but something that should help does not.
    Degraded,
    /// None of it.
    Down,
}

impl Status {
    /// This status as it looks to a part that can do without: never worse than degraded.
    #[must_use]
    pub fn tolerated(self) -> Self {
        self.min(Self::Degraded)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        })
    }
}

/// What a part is for, whichever engine or layer does it: readers look for this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// A layer of the stack; its name says which.
    #[default]
    Layer,
    /// A store of records.
    Database,
    /// The connections of a database.
    Pool,
    /// A store of copies.
    Cache,
    /// A store of writes that wait.
    Journal,
    /// One of several servers of the same records: it takes the writes.
    Primary,
    /// One of several servers of the same records: it follows.
    Replica,
    /// One of several databases, with a part of the keys.
    Shard,
    /// One of several databases, each with all records.
    Region,
    /// What queries are answered from.
    ReadModel,
    /// A follower of a change log.
    Follower,
}

/// What a figure counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Microseconds.
    Micros,
}

/// Something measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// Its name, `snake_case`, without the unit.
    pub name: &'static str,
    /// What it counts in.
    pub unit: Unit,
    /// What was measured.
    pub measure: Measure,
}

/// How a figure behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Only grows, so that its rate means something.
    Counter(u64),
    /// Goes up and down.
    Gauge(u64),
    /// How a quantity was spread lately.
    Histogram(Spread),
    /// How long calls took since the start.
    Times(Times),
}

/// How a quantity was spread over a window of time that ends now; zeros when nothing happened in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How far back the window reaches, at most.
    pub window: Duration,
    /// How many values.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 99 in 100 are at most this.
    pub p99: u64,
}

/// Something that is so: a setting in force, or what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Fact {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u64),
    /// A length of time.
    Time(Duration),
    /// Numbers by names.
    Numbers(Vec<(String, u64)>),
    /// Words, for people.
    Text(String),
}

impl From<bool> for Fact {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Fact {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Fact {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<Duration> for Fact {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<u32> for Fact {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Time(time) => write!(f, "{time:?}"),
            Self::Numbers(numbers) => {
                let parts = numbers.iter().map(|(name, number)| format!("{name}: {number}"));
                f.write_str(&parts.collect::<Vec<_>>().join(", "))
            }
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What one store, layer or cache says of itself, with all that is below it.
///
/// `/health`, `/stats`, `explain`, the metrics and the dashboard all read this tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// What does the work: `postgres`, `cache-aside`.
    pub name: &'static str,
    /// What it is for.
    pub kind: PartKind,
    /// Which of several: `shard 1`, `replica 2`; empty for the only one.
    pub instance: String,
    /// How well the part and what it needs do their work.
    pub status: Status,
    /// Why it is not healthy and what is done about it; empty when it is.
    pub note: String,
    /// The settings in force, and what was found.
    pub facts: Vec<(&'static str, Fact)>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// The parts below.
    pub children: Vec<Inspection>,
}

impl Inspection {
    /// A healthy layer without figures.
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// A healthy part of this kind without figures.
    pub fn of(kind: PartKind, name: &'static str) -> Self {
        Self { name, kind, ..Self::default() }
    }

    /// Says which of several it is.
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = name.into();
        self
    }

    /// Says how well it does, and why.
    #[must_use]
    pub fn status(mut self, status: Status, note: impl Into<String>) -> Self {
        self.status = status;
        self.note = note.into();
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, name: &'static str, fact: impl Into<Fact>) -> Self {
        self.facts.push((name, fact.into()));
        self
    }

    /// Adds a fact in words.
    #[must_use]
    pub fn text(self, name: &'static str, text: impl fmt::Display) -> Self {
        self.fact(name, Fact::Text(text.to_string()))
    }

    /// Adds a number that only grows, a count of things.
    #[must_use]
    pub fn counter(self, name: &'static str, value: u64) -> Self {
        self.figure(name, Unit::Count, Measure::Counter(value))
    }

    /// Adds a number that goes up and down.
    #[must_use]
    pub fn gauge(self, name: &'static str, value: u64, unit: Unit) -> Self {
        self.figure(name, unit, Measure::Gauge(value))
    }

    /// Adds how a quantity was spread lately.
    #[must_use]
    pub fn histogram(self, name: &'static str, spread: Spread, unit: Unit) -> Self {
        self.figure(name, unit, Measure::Histogram(spread))
    }

    /// Adds how long calls took since the start.
    #[must_use]
    pub fn times(self, name: &'static str, times: Times) -> Self {
        self.figure(name, Unit::Micros, Measure::Times(times))
    }

    fn figure(mut self, name: &'static str, unit: Unit, measure: Measure) -> Self {
        self.figures.push(Figure { name, unit, measure });
        self
    }

    /// Adds a part below, without which this one cannot work: its status counts in full.
    #[must_use]
    pub fn needs(mut self, child: Inspection) -> Self {
        self.status = self.status.max(child.status);
        self.children.push(child);
        self
    }

    /// Adds a part below that this one can do without: it degrades, at the worst.
    #[must_use]
    pub fn helped_by(mut self, child: Inspection) -> Self {
        self.status = self.status.max(child.status.tolerated());
        self.children.push(child);
        self
    }

    /// The notes of the parts that are not healthy, from the top, in one line; empty when all are.
    pub fn reason(&self) -> String {
        let mut notes = Vec::new();
        self.gather_notes(&mut notes);
        notes.join("; ")
    }

    fn gather_notes<'a>(&'a self, notes: &mut Vec<&'a str>) {
        if self.status != Status::Healthy && !self.note.is_empty() && !notes.contains(&&*self.note)
        {
            notes.push(&self.note);
        }
        self.children.iter().for_each(|child| child.gather_notes(notes));
    }

    /// The first part of this name in the tree, itself included, nearest to the top.
    pub fn find(&self, name: &str) -> Option<&Self> {
        self.first(|part| part.name == name)
    }

    /// The first part of this kind in the tree, itself included, nearest to the top.
    pub fn find_kind(&self, kind: PartKind) -> Option<&Self> {
        self.first(|part| part.kind == kind)
    }

    fn first(&self, is: impl Fn(&Self) -> bool) -> Option<&Self> {
        let mut level = vec![self];
        while !level.is_empty() {
            if let Some(found) = level.iter().find(|part| is(part)) {
                return Some(found);
            }
            level = level.iter().flat_map(|part| &part.children).collect();
        }
        None
    }

    /// A counter or gauge of this part.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.measure(name)? {
            Measure::Counter(number) | Measure::Gauge(number) => Some(number),
            Measure::Histogram(_) | Measure::Times(_) => None,
        }
    }

    /// A histogram of this part.
    pub fn spread(&self, name: &str) -> Option<Spread> {
        match self.measure(name)? {
            Measure::Histogram(spread) => Some(spread),
            Measure::Counter(_) | Measure::Gauge(_) | Measure::Times(_) => None,
        }
    }

    /// The times of this part's calls.
    pub fn timed(&self, name: &str) -> Option<Times> {
        match self.measure(name)? {
            Measure::Times(times) => Some(times),
            Measure::Counter(_) | Measure::Gauge(_) | Measure::Histogram(_) => None,
        }
    }

    fn measure(&self, name: &str) -> Option<Measure> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.measure)
    }

    /// A fact of this part.
    pub fn known(&self, name: &str) -> Option<&Fact> {
        self.facts.iter().find(|(known, _)| *known == name).map(|(_, fact)| fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_helper_degrades_and_a_missing_need_takes_down() {
        let down = || Inspection::new("part").status(Status::Down, "gone");
        assert_eq!(Inspection::new("top").helped_by(down()).status, Status::Degraded);
        assert_eq!(Inspection::new("top").needs(down()).status, Status::Down);
    }

    #[test]
    fn parts_are_found_nearest_to_the_top() {
        let deep = Inspection::new("a").needs(Inspection::new("b").counter("n", 1));
        let tree = Inspection::new("top").needs(deep).needs(Inspection::new("b").counter("n", 2));
        assert_eq!(tree.find("b").and_then(|part| part.number("n")), Some(2));
        assert!(tree.find("c").is_none());
    }
}
