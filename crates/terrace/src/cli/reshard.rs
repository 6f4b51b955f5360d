//! `terrace reshard`: moves slots between the shards of a level while it is served.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terrace_core::{Plan, Runtime, SLOTS};
use terrace_layers::resharding::{Change, Progress, Resharding, ReshardingOptions, Watch};

use super::run::fatal;
use super::{Failure, logging, screen};
use crate::config::{Loaded, Mode, redacted};
use crate::levels::{Engines, Level, Servers};

/// What to do; one of these.
#[derive(Args, Debug, Default)]
#[group(required = true, multiple = false)]
pub(super) struct Work {
    /// Give a new, empty database its share: a postgres:// URL; in the embedded mode a file, in the
    /// local mode also `private`.
    #[arg(long, value_name = "URL")]
    add: Option<String>,
    /// Give all that the shard of this number has to the others.
    #[arg(long, value_name = "SHARD")]
    remove: Option<u16>,
    /// Give every shard the same share.
    #[arg(long)]
    rebalance: bool,
    /// Go on where it was interrupted.
    #[arg(long)]
    resume: bool,
    /// Move everything back to where it was.
    #[arg(long)]
    back: bool,
    /// Give the way back up and remove what is left over.
    #[arg(long)]
    finish: bool,
}

/// Runs the command.
pub(super) fn reshard(
    level: &'static Level,
    work: Work,
    dry_run: bool,
    loaded: Loaded,
) -> Result<(), Failure> {
    if level.shards.is_none() {
        let message = format!("level {} has no shards; levels 4 and 10 have", level.number);
        return Err(Failure::usage(message));
    }
    let mode = loaded.config.mode()?;
    logging::start(&loaded)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let tokio = tokio.map_err(|error| Failure::failed(format!("no threads: {error}")))?;
    let outcome = tokio.block_on(run(level, &work, dry_run, loaded, mode));
    tokio.shutdown_timeout(Duration::from_millis(200));
    outcome
}

async fn run(
    level: &'static Level,
    work: &Work,
    dry_run: bool,
    loaded: Loaded,
    mode: Mode,
) -> Result<(), Failure> {
    let config = Arc::new(loaded.config);
    let servers = Servers::beside(&config, mode).await.map_err(|error| fatal(&error))?;
    // As `serve` has it; `up` over one database has schemas of its own.
    let shared = mode == Mode::Local;
    let runtime = Runtime::system();
    let engines =
        Engines::new(level.number, shared, Arc::clone(&config), &servers, runtime.clone());
    let bar = bar();
    let watch = watch(bar.clone());
    let addresses = engines.shard_addresses();
    let opened = Resharding::open(
        &addresses,
        engines.shard_opener(),
        ReshardingOptions::default(),
        watch,
        runtime,
    );
    let mut resharding = opened.await.map_err(|error| fatal(&error))?;
    let next = resharding.shares().iter().map(|share| share.number + 1).max().unwrap_or(0);
    let change = work.change(mode, next);
    let plan = match &change {
        Some(change) => Some(resharding.draw(change).map_err(|error| fatal(&error))?),
        None => resharding.plan().cloned(),
    };
    if let Some(plan) = &plan {
        show(plan, change.as_ref());
    }
    if dry_run {
        return Ok(());
    }
    let done = match &change {
        Some(change) => resharding.begin(change).await,
        None if work.resume => resharding.resume().await,
        None if work.back => resharding.back().await,
        None => resharding.finish().await,
    };
    bar.finish_and_clear();
    let again = format!("terrace reshard --level {}", level.number);
    done.map_err(|error| {
        let Failure { code, text } = fatal(&error);
        let hint = match resharding.plan().is_some() && error.is_retryable() {
            true => format!("; go on with {again} --resume"),
            false => String::new(),
        };
        Failure { code, text: format!("{text}{hint}") }
    })?;
    screen::line(&match resharding.plan() {
        None => "Done: every slot is where it belongs and nothing is left over.".to_owned(),
        Some(plan) if plan.back => format!("All slots are back. {again} --finish tidies up."),
        Some(_) => {
            format!("All slots have moved. {again} --finish makes it final, --back goes back.")
        }
    });
    Ok(())
}

impl Work {
    fn change(&self, mode: Mode, next: u16) -> Option<Change> {
        if let Some(address) = &self.add {
            return Some(Change::Add(address_of(address, mode, next)));
        }
        match self.remove {
            Some(number) => Some(Change::Remove(number)),
            None => self.rebalance.then_some(Change::Rebalance),
        }
    }
}

/// A path is kept as an absolute one, unless it is a name in the data directory: every instance must
/// find it.
fn address_of(text: &str, mode: Mode, next: u16) -> String {
    match mode {
        Mode::Local if text == "private" => format!("private:{next}"),
        Mode::Embedded if text.contains('/') => std::path::absolute(Path::new(text))
            .map_or_else(|_| text.to_owned(), |path| path.to_string_lossy().into_owned()),
        _ => text.to_owned(),
    }
}

fn show(plan: &Plan, change: Option<&Change>) {
    if let (Some(Change::Add(address)), Some(number)) = (change, plan.adds) {
        screen::line(&format!("shard {number} is new: {}", redacted(address)));
    }
    let rows = plan.moves.iter().map(|it| {
        let (from, to) = if plan.back { (it.to, it.from) } else { (it.from, it.to) };
        [format!("shard {from}"), format!("shard {to}"), it.slots.len().to_string()]
    });
    screen::table(["FROM", "TO", "SLOTS"], rows);
    let all = plan.moves.iter().map(|it| it.slots.len()).sum::<usize>();
    let percent = all * 100 / usize::from(SLOTS);
    screen::line(&format!("{all} of {SLOTS} slots, {percent} %"));
}

/// Drawn where errors go, so that what the command says can be piped.
fn bar() -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(1), target);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} slots  {msg}  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn watch(bar: ProgressBar) -> Watch {
    Arc::new(move |progress| match progress {
        Progress::Copying { from, to, rows } => {
            bar.set_message(format!("copying {from} to {to}: {rows} rows looked at"));
        }
        Progress::Comparing { from, to } => bar.set_message(format!("comparing {from} and {to}")),
        Progress::Moved { slots, of } => {
            bar.set_length(of as u64);
            bar.set_position(slots as u64);
            bar.set_message("handing over");
            tracing::debug!(slots, of, "slots have moved");
        }
        Progress::Tidying { shard, rows } => {
            bar.set_message(format!("tidying shard {shard}: {rows} rows removed"));
        }
    })
}
