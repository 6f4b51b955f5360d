//! A tree of parts as two lists: what the parts are, which seldom changes, and their numbers.

use serde::Serialize;
use terrace_core::{Inspection, Measure, PartKind, Status, Unit};

/// One look at a level.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// In the order of the tree, each after the one above it.
    pub(super) parts: Vec<SeenPart>,
    /// For each part its status (0 healthy, 1 degraded, 2 down), then its figures.
    pub(super) values: Vec<u64>,
    /// Why each part is not healthy; empty when it is.
    pub(super) notes: Vec<String>,
}

/// What a part is.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct SeenPart {
    name: &'static str,
    kind: PartKind,
    instance: String,
    /// The place of the part above.
    above: Option<usize>,
    /// Name and unit of each figure, in the order of the values.
    figures: Vec<(String, Unit)>,
}

impl Look {
    /// Adds a part with all below it. Texts of facts stay away: they may hold keys, and nobody draws them.
    pub(super) fn add(&mut self, tree: &Inspection) {
        self.visit(tree, None);
    }

    /// How the level is: that of its first part.
    pub(super) fn status(&self) -> u64 {
        self.values.first().copied().unwrap_or_default()
    }

    /// The first reason why it is not healthy.
    pub(super) fn why(&self) -> &str {
        self.notes.iter().map(String::as_str).find(|note| !note.is_empty()).unwrap_or_default()
    }

    fn visit(&mut self, part: &Inspection, above: Option<usize>) {
        let place = self.parts.len();
        let mut figures = Vec::with_capacity(part.figures.len());
        self.values.push(match part.status {
            Status::Healthy => 0,
            Status::Degraded => 1,
            Status::Down => 2,
        });
        for figure in &part.figures {
            let mut add = |name: String, value| {
                figures.push((name, figure.unit));
                self.values.push(value);
            };
            match figure.measure {
                Measure::Counter(value) | Measure::Gauge(value) => add(figure.name.into(), value),
                Measure::Histogram(spread) => {
                    add(format!("{}_p50", figure.name), spread.p50);
                    add(format!("{}_p99", figure.name), spread.p99);
                }
                // No part of a stack has them; the routes of `/metrics` do.
                Measure::Times(_) => {}
            }
        }
        let healthy = part.status == Status::Healthy;
        self.notes.push(if healthy { String::new() } else { part.note.clone() });
        let (name, kind, instance) = (part.name, part.kind, part.instance.clone());
        self.parts.push(SeenPart { name, kind, instance, above, figures });
        part.children.iter().for_each(|child| self.visit(child, Some(place)));
    }
}
