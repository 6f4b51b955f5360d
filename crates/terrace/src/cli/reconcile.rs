//! `terrace reconcile`: transactions, accounts and summaries, compared and mended.

use std::collections::BTreeSet;
use std::sync::Arc;

use terrace_core::{Error, Key, Runtime};
use terrace_layers::{Reconciled, reconcile as compare};

use super::{Failure, screen};
use crate::config::{Loaded, Mode};
use crate::levels::{Engines, Level, Servers};

/// How many users of each kind are named.
const MOST: usize = 20;

/// Runs the command. What a dry run finds is a failure, so that a script can tell.
pub(super) fn reconcile(
    level: &Level,
    dry_run: bool,
    json: bool,
    loaded: Loaded,
) -> Result<(), Failure> {
    if level.number != 8 {
        return Err(Failure::usage(format!(
            "level {} keeps one copy of each fact, so there is nothing to compare; give --level 8",
            level.number
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime cannot start: {error}")))?;
    let found = runtime.block_on(run(dry_run, loaded))?;
    tell(&found, dry_run, json);
    match dry_run && !found.is_clean() {
        true => Err(Failure::failed("something differs; run it without --dry-run to mend it")),
        false => Ok(()),
    }
}

async fn run(dry_run: bool, loaded: Loaded) -> Result<Reconciled, Failure> {
    let failed = |error: Error| Failure::failed(error.message());
    let config = Arc::new(loaded.config);
    let mode = config.mode()?;
    if mode == Mode::Local {
        return Err(Failure::usage(
            "private servers belong to the terrace that runs them; give their URLs in POSTGRES_URL \
             and MONGODB_URL, or use --stores embedded",
        ));
    }
    let servers = Servers::start(&config, mode, false).await.map_err(failed)?;
    let runtime = Runtime::system();
    let engines = Engines::new(8, false, config, &servers, runtime.clone());
    let (ledger, summaries) = engines.both_sides().await.map_err(failed)?;
    let found = compare(&*ledger, &summaries, !dry_run, &runtime).await.map_err(failed);
    let closed = (ledger.close().await, summaries.store.close().await);
    let found = found?;
    closed.0.and(closed.1).map_err(failed)?;
    Ok(found)
}

fn tell(found: &Reconciled, dry_run: bool, json: bool) {
    let Reconciled { accounts, wrong_accounts, wrong_summaries } = found;
    if json {
        let names = |users: &BTreeSet<Key>| users.iter().map(Key::to_string).collect::<Vec<_>>();
        let line = serde_json::json!({
            "accounts": accounts,
            "wrong_accounts": names(wrong_accounts),
            "wrong_summaries": names(wrong_summaries),
            "mended": !dry_run && !found.is_clean(),
        });
        screen::line(&line.to_string());
        return;
    }
    let done = if dry_run { "found" } else { "mended" };
    screen::line(&format!("compared   {accounts} accounts"));
    for (what, users) in [("accounts", wrong_accounts), ("summaries", wrong_summaries)] {
        screen::line(&format!("{done:<9}  {} wrong {what}", users.len()));
        for user in users.iter().take(MOST) {
            screen::line(&format!("             {}", user.as_str()));
        }
        if users.len() > MOST {
            screen::line(&format!(
                "             and {} more; --json names all",
                users.len() - MOST
            ));
        }
    }
}
