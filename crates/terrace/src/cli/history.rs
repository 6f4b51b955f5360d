//! `terrace history`: which database this is to Terrace, and a new name for a copy that nothing tells
//! from its original.

use serde_json::json;
use terrace_core::{Error, Runtime, Store as _};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{Failure, run, screen};
use crate::config::Loaded;

/// Which database, and what to do.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct HistoryOptions {
    /// The database, as its level names it; of a level with shards, one of them [default:
    /// DATABASE_URL].
    #[arg(long)]
    url: Option<String>,
    /// The schema of its tables [default: database.schema].
    #[arg(long)]
    schema: Option<String>,
    /// Begin a new lineage: for a physical copy (pg_basebackup, a disk snapshot) that becomes a database
    /// of its own, or is put back in place. Run it before anything is served from it; instances that
    /// run need a restart.
    #[arg(long)]
    renew: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Connects as an instance does, and shows or renews the history.
pub(super) fn history(options: HistoryOptions, loaded: &Loaded) -> Result<(), Failure> {
    let url =
        options.url.as_deref().map(str::trim).unwrap_or(&loaded.config.database.url).to_owned();
    if url.is_empty() {
        let text = "no database is named; use --url, or set DATABASE_URL. (Files of the embedded mode \
                    are told apart by themselves.)";
        return Err(Failure::usage(text));
    }
    run::block_on(async move {
        let failed = |error: Error| run::fatal(&error);
        let schema = options.schema.unwrap_or_else(|| loaded.config.database.schema.clone());
        let database = PostgresOptions { schema, ..PostgresOptions::new(url) };
        let store = PostgresStore::connect(database, Runtime::system()).await.map_err(failed)?;
        if options.renew {
            store.renew_history().await.map_err(failed)?;
        }
        let standing = store.standing();
        store.close().await.map_err(failed)?;
        if options.json {
            let past = standing.past.iter().map(|name| name.to_string()).collect::<Vec<_>>();
            let generation = standing.generation.get();
            let name = &*standing.history;
            let text = json!({"history": name, "generation": generation, "past": past});
            screen::line(&format!("{text:#}"));
            return Ok(());
        }
        screen::line(&format!("History:    {}", screen::bold(&standing.history)));
        screen::line(&format!("Generation: {}", standing.generation.get()));
        screen::line(&format!(
            "Past:       {}",
            match standing.past.as_slice() {
                [] => "none".to_owned(),
                past => past.join(", "),
            }
        ));
        Ok(())
    })
}
