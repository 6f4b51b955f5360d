//! One tree for health, counters and structure.

use std::fmt;

use serde::Serialize;

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

/// One number of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// Its name, `snake_case`, without the unit.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it counts in.
    pub unit: Unit,
    /// Whether it only grows (a counter), so that its rate means something.
    pub grows: bool,
}

/// What one store, layer or cache says of itself, with all that is below it.
///
/// `/health`, `/stats`, `explain`, the metrics and the dashboard all read this tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The part's name: `postgres`, `cache-aside`, `pool`.
    pub name: &'static str,
    /// How well the part and what it needs do their work.
    pub status: Status,
    /// Why it is not healthy and what is done about it; empty when it is.
    pub note: String,
    /// The settings in force, with units.
    pub options: Vec<(&'static str, String)>,
    /// The numbers.
    pub figures: Vec<Figure>,
    /// The parts below.
    pub children: Vec<Inspection>,
}

impl Inspection {
    /// A healthy part without figures.
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// Says how well it does, and why.
    #[must_use]
    pub fn status(mut self, status: Status, note: impl Into<String>) -> Self {
        self.status = status;
        self.note = note.into();
        self
    }

    /// Adds a setting.
    #[must_use]
    pub fn option(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.options.push((name, value.to_string()));
        self
    }

    /// Adds a number that only grows, a count of things.
    #[must_use]
    pub fn counter(mut self, name: &'static str, value: u64) -> Self {
        self.figures.push(Figure { name, value, unit: Unit::Count, grows: true });
        self
    }

    /// Adds a number that goes up and down.
    #[must_use]
    pub fn gauge(mut self, name: &'static str, value: u64, unit: Unit) -> Self {
        self.figures.push(Figure { name, value, unit, grows: false });
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
        let mut level = vec![self];
        while !level.is_empty() {
            if let Some(found) = level.iter().find(|part| part.name == name) {
                return Some(found);
            }
            level = level.iter().flat_map(|part| &part.children).collect();
        }
        None
    }

    /// A number of this part.
    pub fn figure(&self, name: &str) -> Option<u64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
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
        assert_eq!(tree.find("b").and_then(|part| part.figure("n")), Some(2));
        assert!(tree.find("c").is_none());
    }
}
