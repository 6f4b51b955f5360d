//! `terrace journal`: how far the journal of level 6 has come, and its dead letters.

use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;
use terrace_core::{Change, DeadLetter, Error, Journal, Sequence, Timestamp};

use super::{Failure, run, screen};
use crate::config::Loaded;
use crate::levels;

/// What to do with the journal.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum What {
    /// Show how much waits, for how long, and how many writes could not be applied.
    Status,
    /// The writes that the database refused.
    Dead {
        #[command(subcommand)]
        what: Dead,
    },
}

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Dead {
    /// List them, without their values.
    List,
    /// Show one, with its value.
    Show {
        /// Its sequence, as `list` shows it.
        sequence: u64,
    },
    /// Try some again, under their old sequences: a newer write of their keys stays.
    Retry {
        /// Their sequences; all of them when none is given.
        sequences: Vec<u64>,
    },
    /// Drop some for good.
    Drop {
        /// Their sequences.
        #[arg(required = true)]
        sequences: Vec<u64>,
    },
}

/// Opens the journal and does it.
pub(super) fn journal(what: &What, as_json: bool, loaded: Loaded) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    let what = what.clone();
    run::with_engines(loaded.config, mode, move |engines, _stop| {
        Box::pin(async move {
            let failed = |error: Error| run::fatal(&error);
            let journal = levels::journal(&engines).await.map_err(failed)?;
            let done = perform(&journal, what, as_json).await;
            let closed = journal.close().await.map_err(failed);
            done.and(closed)
        })
    })
}

async fn perform(journal: &Arc<dyn Journal>, what: What, as_json: bool) -> Result<(), Failure> {
    let failed = |error: Error| run::fatal(&error);
    match what {
        What::Status => status(journal, as_json).await,
        What::Dead { what: Dead::List } => list(&all(journal).await?, as_json),
        What::Dead { what: Dead::Show { sequence } } => {
            let before = Sequence::new(sequence).before();
            let found = journal.dead(before, 1).await.map_err(failed)?;
            match found.first().filter(|letter| letter.sequence.get() == sequence) {
                Some(letter) => show(letter, as_json),
                None => Err(Failure::failed(format!("there is no dead letter {sequence}"))),
            }
        }
        What::Dead { what: Dead::Retry { sequences } } => {
            let sequences = match sequences.as_slice() {
                [] => all(journal).await?.iter().map(|letter| letter.sequence).collect(),
                some => some.iter().map(|one| Sequence::new(*one)).collect(),
            };
            let count = journal.retry(sequences).await.map_err(failed)?;
            say(&format!("{count} writes are tried again."), &json!({"retried": count}), as_json)
        }
        What::Dead { what: Dead::Drop { sequences } } => {
            let sequences = sequences.into_iter().map(Sequence::new).collect();
            let count = journal.bury(sequences).await.map_err(failed)?;
            say(&format!("{count} writes are dropped."), &json!({"dropped": count}), as_json)
        }
    }
}

async fn all(journal: &Arc<dyn Journal>) -> Result<Vec<DeadLetter>, Failure> {
    let (mut after, mut letters) = (Sequence::NONE, Vec::new());
    loop {
        let some = journal.dead(after, 500).await.map_err(|error| run::fatal(&error))?;
        let Some(last) = some.last() else { return Ok(letters) };
        after = last.sequence;
        letters.extend(some);
    }
}

async fn status(journal: &Arc<dyn Journal>, as_json: bool) -> Result<(), Failure> {
    let progress = journal.progress().await.map_err(|error| run::fatal(&error))?;
    let tree = journal.inspect().await;
    let durability = tree.known("durability").map(ToString::to_string).unwrap_or_default();
    let oldest = (progress.writes > 0).then(|| at(progress.applied.plus(1)));
    if as_json {
        let status = json!({
            "journal": tree.name, "durability": durability, "writes": progress.writes,
            "bytes": progress.bytes, "dead": progress.dead,
            "oldest": oldest.map(|time| time.to_string()),
        });
        screen::line(&format!("{status:#}"));
        return Ok(());
    }
    let facts = [
        ("Journal", tree.name.to_owned()),
        ("Durability", durability),
        ("Writes that wait", progress.writes.to_string()),
        ("Their bytes", progress.bytes.to_string()),
        ("The oldest is from", oldest.map_or_else(|| "-".into(), |time| time.to_string())),
        ("Dead letters", progress.dead.to_string()),
    ];
    screen::facts(facts.into_iter().map(|(name, text)| [name.into(), text]));
    Ok(())
}

fn list(letters: &[DeadLetter], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let all: Vec<_> = letters.iter().map(described).collect();
        screen::line(&format!("{:#}", serde_json::Value::Array(all)));
        return Ok(());
    }
    let rows = letters.iter().map(|letter| {
        let what = if letter.write.change == Change::Delete { "delete" } else { "put" };
        [letter.sequence.to_string(), format!("{what} {}", letter.write.key), letter.reason.clone()]
    });
    screen::table(["SEQUENCE", "WRITE", "WHY"], rows);
    Ok(())
}

fn show(letter: &DeadLetter, as_json: bool) -> Result<(), Failure> {
    let value = match &letter.write.change {
        Change::Put(value) => Some(value.as_str().to_owned()),
        Change::Delete => None,
    };
    if as_json {
        let mut shown = described(letter);
        shown["value"] = json!(value);
        screen::line(&format!("{shown:#}"));
        return Ok(());
    }
    let facts = [
        ("Sequence", letter.sequence.to_string()),
        ("Accepted", at(letter.sequence).to_string()),
        ("Key", letter.write.key.to_string()),
        ("Value", value.unwrap_or_else(|| "(a delete)".into())),
        ("Why", letter.reason.clone()),
    ];
    screen::facts(facts.into_iter().map(|(name, text)| [name.into(), text]));
    Ok(())
}

fn described(letter: &DeadLetter) -> serde_json::Value {
    json!({
        "sequence": letter.sequence.get(), "accepted": at(letter.sequence).to_string(),
        "op": if letter.write.change == Change::Delete { "delete" } else { "put" },
        "key": letter.write.key.as_str(), "reason": letter.reason,
    })
}

fn at(sequence: Sequence) -> Timestamp {
    let millis = i64::try_from(sequence.millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

fn say(text: &str, value: &serde_json::Value, as_json: bool) -> Result<(), Failure> {
    screen::line(&if as_json { format!("{value:#}") } else { text.to_owned() });
    Ok(())
}
