//! `GET /canary-stats`, and the field of `/health`: both read the inspection.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::{Fact, Inspection};

use super::mirror::Difference;
use super::trial::{Cohort, p99_bound};
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::face::Whole;
use crate::http::json::Object;
use crate::http::operations::{GROUP, HealthFields};
use crate::http::reply::{self, Answer};
use crate::http::schema::{Field, Getter, object};

pub(super) const HEALTH: HealthFields = &[Field::new("canary", STATE_IS, STATE)];

const STATE_IS: &str = "`serving`: it serves its share of the clients. `mirroring`: reads are compared, and it \
     serves nobody. `returned`: it did worse than the baseline, which serves all clients.";

const STATE: Getter<Inspection> = Getter::Word(&["serving", "mirroring", "returned"], |tree| {
    let canary = tree.find("canary");
    let known = |name| canary.and_then(|part| part.known(name));
    match (known("returned"), known("serving")) {
        (Some(_), _) => "returned",
        (None, Some(Fact::Flag(true))) => "serving",
        _ => "mirroring",
    }
});

const FIELDS: &[Field<Inspection>] = &[
    Field::new("state", STATE_IS, STATE),
    Field::new("reason", REASON_IS, Getter::Text(|tree| text(tree, "returned"))),
    Field::new("level", "The canary's level.", Getter::Text(|tree| text(tree, "level"))),
    Field::new(
        "percent",
        "The share of the clients that it serves now.",
        Getter::Percent(|tree| number(tree, "per_mille") as f64 / 10.0),
    ),
    Field::new("verdict", VERDICT_IS, VERDICT),
    Field::new("windows", WINDOWS_ARE, Getter::Count(|tree| number(tree, "windows"))),
    Field::new("baseline", COHORT_IS, Getter::Counts(|tree| answered(tree, Cohort::Baseline))),
    Field::new("canary", COHORT_IS, Getter::Counts(|tree| answered(tree, Cohort::Canary))),
    Field::new(
        "compared",
        "Mirrored reads whose answers were compared.",
        Getter::Count(|tree| number(tree, "compared")),
    ),
    Field::new(
        "left_out",
        "Mirrored reads that were left out, as too many waited.",
        Getter::Count(|tree| number(tree, "left_out")),
    ),
    Field::new("differences", DIFFERENCES_ARE, Getter::Counts(differences)),
];

const REASON_IS: &str = "Why it was taken back; empty while it was not.";

const VERDICT_IS: &str = "`none`: never enough requests to compare. `good`: no worse than the baseline so far. \
     `bad`: worse, and taken back.";

const VERDICT: Getter<Inspection> = Getter::Word(&["none", "good", "bad"], |tree| {
    match (text(tree, "returned").is_empty(), number(tree, "windows")) {
        (false, _) => "bad",
        (true, 0) => "none",
        (true, _) => "good",
    }
});

const WINDOWS_ARE: &str = "How often both cohorts had 100 reads, or 100 writes, to compare.";

const COHORT_IS: &str = "What its clients were answered: how many reads and writes, how many of them by 5xx, \
     and what 99 in 100 took at most, in microseconds, rounded up to a bound of the histogram in /metrics.";

const DIFFERENCES_ARE: &str = "Mirrored reads that were answered otherwise, and still were after a pause. \
     `version`: another version. `value`: the same version, another value. `missing`: one has no record. \
     `failed`: the canary could not answer.";

pub(super) fn endpoint(whole: &Arc<dyn Whole>) -> Endpoint {
    let answer = FIELDS.iter().map(Field::described).collect::<Vec<_>>();
    Endpoint::new(whole, Method::GET, "/canary-stats", |whole, _| Box::pin(say(whole)))
        .summary(GROUP, "How the canary does beside the baseline")
        .open_to(Needs::Figures)
        .answers(StatusCode::OK, "The numbers, of this instance.", object(&answer).build(), &[])
}

async fn say(whole: &dyn Whole) -> Answer {
    let tree = whole.inspect().await;
    Ok(reply::json(Field::write_all(FIELDS, &tree, Object::with_capacity(512))))
}

fn number(tree: &Inspection, name: &str) -> u64 {
    tree.find("canary").and_then(|part| part.number(name)).unwrap_or_default()
}

fn text(tree: &Inspection, name: &str) -> String {
    let known = tree.find("canary").and_then(|part| part.known(name));
    known.map(ToString::to_string).unwrap_or_default()
}

fn answered(tree: &Inspection, cohort: Cohort) -> BTreeMap<String, u64> {
    let cohorts = tree.find("canary").into_iter().flat_map(|canary| &canary.children);
    let Some(part) = cohorts.into_iter().find(|part| part.instance == cohort.as_str()) else {
        return BTreeMap::new();
    };
    let failed = |name| part.number(name).unwrap_or_default();
    let [reads, writes] =
        ["read_time", "write_time"].map(|name| part.timed(name).unwrap_or_default());
    let figures = [
        ("reads", reads.count()),
        ("failed_reads", failed("failed_reads")),
        ("read_p99_us", p99_bound(&reads)),
        ("writes", writes.count()),
        ("failed_writes", failed("failed_writes")),
        ("write_p99_us", p99_bound(&writes)),
    ];
    figures.into_iter().map(|(name, number)| (name.to_owned(), number)).collect()
}

fn differences(tree: &Inspection) -> BTreeMap<String, u64> {
    let kinds = Difference::ALL.map(Difference::as_str).into_iter();
    let name = |kind: &str| kind.trim_start_matches("differs_").to_owned();
    kinds.map(|kind| (name(kind), number(tree, kind))).collect()
}
