//! Terrace's own figures: what each part of a stack says of itself in its [`Inspection`].
//!
//! `terrace_<part>_<figure>`, with the unit and `_total` as Prometheus has them; what follows a change log
//! is `terrace_follower_<figure>`, so that one rule watches all of them. Only counters, gauges and times are
//! shown, never facts or notes: those may hold keys.

use std::collections::HashMap;
use std::time::Duration;

use terrace_core::{Figure, Inspection, Measure, PartKind, Status, Unit};

use super::meanings::meaning;
use super::page::{Labels, Page, Value};

/// Adds the figures of a part and of all below it.
pub(super) fn add(tree: &Inspection, page: &mut Page) {
    Walk { page, seen: HashMap::new() }.visit(tree, "");
}

struct Walk<'a> {
    page: &'a mut Page,
    /// How many parts there were of a name and a place.
    seen: HashMap<(&'static str, String), u32>,
}

impl Walk<'_> {
    fn visit(&mut self, part: &Inspection, above: &str) {
        // What belongs to a shard is told apart by that shard.
        let place = match (above, part.instance.as_str()) {
            (above, "") => above.to_owned(),
            ("", own) => own.to_owned(),
            (above, own) => format!("{above} / {own}"),
        };
        let times = self.seen.entry((part.name, place.clone())).or_default();
        *times += 1;
        let which = match *times {
            1 => place.clone(),
            more => format!("{place} {more}").trim_start().to_owned(),
        };
        // Prometheus has a label `instance` of its own.
        let which = if which.is_empty() { None } else { Some(("which", which)) };
        let part_label = ("part", part.name.to_owned());
        self.add_status(part, [part_label.clone()].into_iter().chain(which.clone()).collect());
        let (name, labels) = match part.kind {
            PartKind::Follower => ("follower", [part_label].into_iter().chain(which).collect()),
            _ => (part.name, which.into_iter().collect::<Labels>()),
        };
        for figure in &part.figures {
            self.add_figure(name, figure, &labels);
        }
        part.children.iter().for_each(|child| self.visit(child, &place));
    }

    fn add_status(&mut self, part: &Inspection, labels: Labels) {
        let value = match part.status {
            Status::Healthy => 0,
            Status::Degraded => 1,
            Status::Down => 2,
        };
        let help =
            "How well a part and what it needs do their work: 0 healthy, 1 degraded, 2 down.";
        self.page.add("terrace_part_status", help, labels, Value::Gauge(value));
    }

    fn add_figure(&mut self, part: &str, figure: &Figure, labels: &Labels) {
        let help = match meaning(part, figure.name) {
            Some(meaning) => meaning.to_owned(),
            None => format!("`{}` of `{part}`.", figure.name),
        };
        let name = name(part, figure.name);
        let mut add = |suffix: &str, value| {
            self.page.add(&format!("{name}{suffix}"), &help, labels.clone(), value);
        };
        match (figure.measure, figure.unit) {
            (Measure::Counter(count), _) => match name.strip_suffix("_ms") {
                // The documents' API has this figure in milliseconds.
                Some(name) => {
                    let (name, time) = (format!("{name}_seconds"), Duration::from_millis(count));
                    self.page.add(&name, &help, labels.clone(), Value::TimeCounter(time));
                }
                None => add("", Value::Counter(count)),
            },
            (Measure::Gauge(value), Unit::Micros) => add("_seconds", micros(value)),
            (Measure::Gauge(value), Unit::Bytes) if !name.ends_with("_bytes") => {
                add("_bytes", Value::Gauge(value));
            }
            (Measure::Gauge(value), _) => add("", Value::Gauge(value)),
            (Measure::Histogram(spread), Unit::Micros) => {
                add("_p50_seconds", micros(spread.p50));
                add("_p99_seconds", micros(spread.p99));
            }
            (Measure::Histogram(spread), _) => {
                add("_p50", Value::Gauge(spread.p50));
                add("_p99", Value::Gauge(spread.p99));
            }
            (Measure::Times(times), _) => add("_seconds", Value::Times(times)),
        }
    }
}

fn micros(value: u64) -> Value {
    Value::TimeGauge(Duration::from_micros(value))
}

/// `terrace_pool_size` for `pool_size` of `pool`: no word twice.
fn name(part: &str, figure: &str) -> String {
    let part = part.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    let figure =
        figure.strip_prefix(&part).and_then(|rest| rest.strip_prefix('_')).unwrap_or(figure);
    format!("terrace_{part}_{figure}")
}

#[cfg(test)]
mod tests {
    use terrace_core::{Fact, Spread, Times};

    use super::*;

    fn text(tree: &Inspection) -> String {
        let mut page = Page::default();
        add(tree, &mut page);
        page.text().expect("a text")
    }

    fn shard(number: u16) -> Inspection {
        let pool = Inspection::new("pool").gauge("pool_size", number.into(), Unit::Count);
        Inspection::new("shard").instance(format!("shard {number}")).needs(pool)
    }

    #[test]
    fn what_is_there_twice_is_told_apart() {
        let cache = || Inspection::new("memory-cache").counter("hits", 1);
        let tree = Inspection::new("router").needs(shard(1)).needs(shard(2));
        let said = text(&tree.helped_by(cache()).helped_by(cache()));
        for line in [
            "terrace_pool_size{which=\"shard 1\"} 1",
            "terrace_pool_size{which=\"shard 2\"} 2",
            "terrace_memory_cache_hits_total 1",
            "terrace_memory_cache_hits_total{which=\"2\"} 1",
            "terrace_part_status{part=\"pool\",which=\"shard 1\"} 0",
            "terrace_part_status{part=\"router\"} 0",
        ] {
            assert!(said.lines().any(|said| said == line), "{line} is not in\n{said}");
        }
    }

    #[test]
    fn units_are_those_of_prometheus() {
        let spread = Spread { p50: 1500, p99: 2_000_000, ..Spread::default() };
        let tree = Inspection::new("part")
            .status(Status::Down, "the key user:1 is hot")
            .fact("hot_keys", Fact::Numbers(vec![("user:1".to_owned(), 3)]))
            .counter("usage_ms", 1500)
            .gauge("file", 7, Unit::Bytes)
            .gauge("max_bytes", 8, Unit::Bytes)
            .gauge("lag", 2500, Unit::Micros)
            .histogram("read_time", spread, Unit::Micros)
            .times("call_time", Times { sum: Duration::from_secs(1), ..Times::default() })
            .needs(Inspection::of(PartKind::Follower, "search index").counter("changes", 4));
        let said = text(&tree);
        for line in [
            "# TYPE terrace_part_usage_seconds_total counter",
            "terrace_part_usage_seconds_total 1.5",
            "terrace_part_file_bytes 7",
            "terrace_part_max_bytes 8",
            "terrace_part_lag_seconds 0.0025",
            "terrace_part_read_time_p50_seconds 0.0015",
            "terrace_part_read_time_p99_seconds 2.0",
            "# TYPE terrace_part_call_time_seconds histogram",
            "terrace_part_call_time_seconds_bucket{le=\"0.0025\"} 0",
            "terrace_part_call_time_seconds_bucket{le=\"+Inf\"} 0",
            "terrace_part_call_time_seconds_sum 1.0",
            "terrace_part_status{part=\"part\"} 2",
            "terrace_follower_changes_total{part=\"search index\"} 4",
        ] {
            assert!(said.lines().any(|said| said == line), "{line} is not in\n{said}");
        }
        assert!(!said.contains("user:1"), "{said}");
    }
}
