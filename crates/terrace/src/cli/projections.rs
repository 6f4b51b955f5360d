//! `terrace projections`: how far the projection is, parked keys, a rebuild.

use std::sync::Arc;

use clap::Subcommand;
use terrace_core::read_model::Projection;
use terrace_core::{Error, Key, Runtime};

use super::{Failure, screen};
use crate::config::{Loaded, Mode};
use crate::levels::{Engines, QuerySide, Servers};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show how far the projection has come and which keys are parked.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Apply what a parked key missed, and let it go on.
    Retry {
        /// The key; all parked keys when none is given.
        key: Option<String>,
    },
    /// Build the read model anew while the old one answers, compare both, and let the new one answer.
    Rebuild {
        /// Only compare; the old one goes on answering.
        #[arg(long)]
        check: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// How many parked keys are shown, or tried again, at once.
const MOST: usize = 1000;

/// Runs the command.
pub(super) fn projections(action: &Action, loaded: Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let side = open(loaded).await?;
        let done = match action {
            Action::Status { json } => status(&side, *json).await,
            Action::Retry { key } => retry(&side, key.as_deref()).await,
            Action::Rebuild { check, json } => rebuild(&side, !check, *json).await,
        };
        let closed = side.model.close().await.map_err(|error| failed(&error));
        done.and(closed)
    })
}

fn failed(error: &Error) -> Failure {
    Failure::failed(error.message())
}

async fn open(loaded: Loaded) -> Result<QuerySide, Failure> {
    let config = Arc::new(loaded.config);
    let mode = config.mode()?;
    if mode == Mode::Local {
        return Err(Failure::usage(
            "private servers belong to the terrace that runs them; give their URLs in WRITE_DB_URL \
             and READ_DB_URL, or use --stores embedded",
        ));
    }
    let servers = Servers::start(&config, mode, false).await.map_err(|error| failed(&error))?;
    let engines = Engines::new(7, false, config, &servers, Runtime::system());
    engines.query_side().await.map_err(|error| failed(&error))
}

async fn status(side: &QuerySide, json: bool) -> Result<(), Failure> {
    let live = side.model.follower(Projection::Live).checkpoint().await;
    // Of another log it would begin anew, which is for who projects.
    let live = live.map_err(|error| failed(&error))?;
    let reached = if live.is_in(&side.log.name()) { live.position } else { Default::default() };
    let head = side.log.head().await.map_err(|error| failed(&error))?;
    let page = side.log.after(reached, MOST).await.map_err(|error| failed(&error))?;
    let held = side.log.held_back(page.position).await.map_err(|error| failed(&error))?;
    let held = held.unwrap_or_default();
    let waiting = page.changes.len() + usize::try_from(held.changes).unwrap_or(MOST);
    let parked = side.model.parked(MOST).await.map_err(|error| failed(&error))?;
    if json {
        let parked = parked.iter().map(|one| {
            serde_json::json!({"key": one.key.as_str(), "event_id": one.position.to_string(),
                "events": one.commands, "reason": one.reason})
        });
        let parked = parked.collect::<Vec<_>>();
        screen::line(
            &serde_json::json!({"log": &*side.log.name(), "projected": reached.to_string(),
                "head": head.to_string(), "waiting": waiting, "held_back": held.changes,
                "held_back_by": held.by, "parked": parked})
            .to_string(),
        );
        return Ok(());
    }
    screen::line(&format!("log        {}", side.log.name()));
    screen::line(&format!("projected  {reached}"));
    let most = if waiting >= MOST { " or more" } else { "" };
    screen::line(&format!("waiting    {waiting}{most} events"));
    if held.changes > 0 {
        screen::line(&format!("held back  for {} s by {}", held.waited.as_secs(), held.by));
    }
    screen::line(&format!("parked     {} keys", parked.len()));
    if !parked.is_empty() {
        screen::line("");
        let rows = parked
            .into_iter()
            .map(|one| [one.key.as_str().to_owned(), one.commands.to_string(), one.reason]);
        screen::table(["KEY", "EVENTS", "WHY"], rows);
        screen::line("");
        screen::line("`terrace projections retry KEY` applies them once the cause is gone.");
    }
    Ok(())
}

async fn retry(side: &QuerySide, key: Option<&str>) -> Result<(), Failure> {
    let keys = match key {
        Some(key) => vec![Key::new(key).map_err(|error| Failure::usage(error.message()))?],
        None => {
            let parked = side.model.parked(MOST).await.map_err(|error| failed(&error))?;
            parked.into_iter().map(|one| one.key).collect()
        }
    };
    let mut refused = 0;
    for key in &keys {
        match side.model.retry(key).await {
            Ok(true) => screen::line(&format!("{} goes on", key.as_str())),
            Ok(false) => screen::line(&format!("{} is not parked", key.as_str())),
            Err(error) => {
                refused += 1;
                screen::line(&format!("{} stays parked: {}", key.as_str(), error.message()));
            }
        }
    }
    match refused {
        0 => Ok(()),
        _ => Err(Failure::failed(format!("{refused} of {} keys stay parked", keys.len()))),
    }
}

async fn rebuild(side: &QuerySide, swap: bool, json: bool) -> Result<(), Failure> {
    let (log, options) = (Arc::clone(&side.log), side.options.clone());
    let found = terrace_layers::rebuild(log, &*side.model, swap, options, Runtime::system()).await;
    let found = found.map_err(|error| failed(&error))?;
    if json {
        screen::line(
            &serde_json::json!({"keys": found.keys, "differing": found.differing,
                "examples": found.examples, "swapped": swap})
            .to_string(),
        );
        return Ok(());
    }
    screen::line(&format!("{} keys compared, {} differ", found.keys, found.differing));
    for key in &found.examples {
        screen::line(&format!("  {key}"));
    }
    screen::line(if swap { "the new read model answers" } else { "the old read model answers" });
    Ok(())
}
