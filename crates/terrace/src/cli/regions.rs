//! `terrace regions`: how the regions of level 9 do, and what brings them together again.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use terrace_core::{Deadline, Error, RegionId, RegionName, RegionStore, Runtime, Version};
use terrace_layers::{DrillReport, LagState, RegionLag, RegionSet, RowDifference};

use super::run::{block_on, fatal};
use super::{Failure, screen, time};
use crate::config::{Config, Loaded, Mode};
use crate::levels::{Engines, Servers};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show how far each region has followed each other one.
    Status,
    /// Find the keys that are not the same in all regions.
    Diff {
        /// Show at most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Let regions that have stopped follow again, and merge what differs.
    Repair,
    /// Wait until every region has all that any of them has committed by now; exit code 1 if that does
    /// not come in time.
    Sync {
        /// How long to wait.
        #[arg(long, value_parser = time, default_value = "30s")]
        within: Duration,
    },
    /// Fill a new region, whose name and URLs come last in the settings. Restart all instances with these
    /// settings afterwards.
    Add {
        /// Its name.
        name: RegionName,
    },
    /// Measure what the loss of a region would cost: it is played for this command alone, which writes
    /// records of its own and deletes them.
    Drill {
        /// Its name.
        name: RegionName,
        /// How long to write before.
        #[arg(long = "for", value_parser = time, default_value = "3s")]
        writing: Duration,
    },
    /// Give up a region that is lost: the others tell each other what they have of it. Put - in its place
    /// in regions.names afterwards, and restart all instances.
    Remove {
        /// Its name.
        name: RegionName,
    },
}

/// Runs the command.
pub(super) fn regions(action: &Action, as_json: bool, loaded: Loaded) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    let mut config = loaded.config;
    let lost = match action {
        Action::Remove { name } => Some(leave_out(&mut config, *name)?),
        _ => None,
    };
    block_on(async {
        let config = Arc::new(config);
        let servers = Servers::beside(&config, mode).await.map_err(|error| fatal(&error))?;
        let runtime = Runtime::system();
        let engines = Engines::new(9, mode == Mode::Local, config, &servers, runtime.clone());
        let opened = engines.regions_beside().await.map_err(|error| fatal(&error))?;
        let own =
            opened.iter().enumerate().map(|(place, it)| Arc::clone(&it.links[place].database));
        let stores = own.collect::<Vec<Arc<dyn RegionStore>>>();
        let all = RegionSet::new(stores.clone(), runtime.clone());
        let done = run(action, as_json, &all, (lost, &runtime)).await;
        for store in stores {
            store.close().await.map_err(|error| fatal(&error))?;
        }
        servers.stop().await;
        done
    })
}

async fn run(
    action: &Action,
    as_json: bool,
    all: &RegionSet,
    (lost, runtime): (Option<RegionId>, &Runtime),
) -> Result<(), Failure> {
    let failed = |error: Error| fatal(&error);
    match action {
        Action::Status => {
            show(&all.lags().await, runtime, as_json);
            Ok(())
        }
        Action::Diff { limit } => {
            let found = all.differences(*limit).await.map_err(failed)?;
            differences(&found, as_json);
            match found.len() {
                0 => Ok(()),
                count => Err(Failure::failed(format!(
                    "{count} keys are not the same in all regions; terrace regions repair merges them"
                ))),
            }
        }
        Action::Repair => {
            let merged = all.repair().await.map_err(failed)?;
            let text = format!("Every region follows every other one; {merged} rows were merged.");
            say(&text, &json!({"merged": merged}), as_json);
            Ok(())
        }
        Action::Sync { within } => {
            let by = Deadline::at(runtime.now() + *within);
            let behind = all.sync(by).await.map_err(failed)?;
            if behind.is_empty() {
                say("All regions have all that was committed.", &json!({"behind": []}), as_json);
                return Ok(());
            }
            show(&behind, runtime, as_json);
            Err(Failure::failed("not all regions have all that was committed"))
        }
        Action::Add { name } => {
            all.seed(*name).await.map_err(failed)?;
            let text = format!(
                "Region {name} has all that the others had committed. Restart all instances with these \
                 settings; it follows from there."
            );
            say(&text, &json!({"seeded": name.as_str()}), as_json);
            Ok(())
        }
        Action::Drill { name, writing } => {
            drill(&all.drill(*name, *writing).await.map_err(failed)?, as_json);
            Ok(())
        }
        Action::Remove { name } => {
            let Some(lost) = lost else { return Ok(()) };
            let merged = all.give_up(lost).await.map_err(failed)?;
            let text = format!(
                "The other regions have told each other what they have of {name} ({merged} rows). Put - \
                 in its place in regions.names, and restart all instances."
            );
            say(&text, &json!({"removed": name.as_str(), "merged": merged}), as_json);
            Ok(())
        }
    }
}

/// Takes a region out of the settings, and answers its number.
fn leave_out(config: &mut Config, name: RegionName) -> Result<RegionId, Failure> {
    let regions = config.regions.regions()?;
    let lost = regions.iter().find(|region| region.name == name);
    let lost = lost.ok_or_else(|| Failure::usage(format!("regions.names has no {name}")))?;
    if regions.len() < 2 {
        return Err(Failure::usage("the last region cannot be removed"));
    }
    let settings = &mut config.regions;
    let place = usize::from(lost.id.get()) - 1;
    for list in [&mut settings.names, &mut settings.database_urls, &mut settings.cache_urls] {
        if let Some(text) = list.get_mut(place) {
            *text = "-".to_owned();
        }
    }
    Ok(lost.id)
}

fn show(lags: &[RegionLag], runtime: &Runtime, as_json: bool) {
    let waiting = |lag: &RegionLag| match lag.state {
        LagState::Behind(changes, written) => {
            let age =
                written.and_then(|at| Duration::try_from(runtime.wall().duration_since(at)).ok());
            (changes, age.unwrap_or_default())
        }
        _ => (0, Duration::ZERO),
    };
    if as_json {
        let each = lags.iter().map(|lag| {
            let (changes, age) = waiting(lag);
            json!({"from": lag.origin.as_str(), "to": lag.region.as_str(),
                "state": lag.state.to_string(), "waiting": changes, "oldest_ms": age.as_millis(),
                "next": lag.next.as_ref().map(|key| key.as_str())})
        });
        let each = each.collect::<Vec<_>>();
        screen::line(&format!("{:#}", json!({ "followers": each })));
        return;
    }
    let rows = lags.iter().map(|lag| {
        let (changes, age) = waiting(lag);
        let more = if changes >= RegionSet::COUNTED { " or more" } else { "" };
        let oldest =
            if changes == 0 { String::new() } else { format!("{:.1} s", age.as_secs_f64()) };
        [
            lag.origin.to_string(),
            lag.region.to_string(),
            lag.state.to_string(),
            format!("{changes}{more}"),
            oldest,
            lag.next.as_ref().map(|key| key.to_string()).unwrap_or_default(),
        ]
    });
    screen::table(["FROM", "TO", "STATE", "WAITING", "OLDEST", "NEXT KEY"], rows);
}

fn differences(found: &[RowDifference], as_json: bool) {
    let side = |(name, version): &(RegionName, Version)| (name.to_string(), version.get());
    if as_json {
        let each = found.iter().map(|it| {
            let sides = [side(&it.one), side(&it.other)];
            let sides = sides.map(|(name, version)| json!({"region": name, "version": version}));
            json!({"key": it.key.as_str(), "sides": sides})
        });
        let each = each.collect::<Vec<_>>();
        screen::line(&format!("{:#}", json!({ "differences": each })));
    } else if found.is_empty() {
        screen::line("All regions have the same records.");
    } else {
        let rows = found.iter().map(|it| {
            let text = |(name, version)| format!("{name}: {version}");
            [it.key.as_str().to_owned(), text(side(&it.one)), text(side(&it.other))]
        });
        screen::table(["KEY", "VERSION", "VERSION"], rows);
    }
}

fn drill(measured: &DrillReport, as_json: bool) {
    let DrillReport { written, missing, recovery_point, recovery_time, taken_by } = measured;
    let (point, time) = (recovery_point.as_millis(), recovery_time.as_millis());
    if as_json {
        let data = json!({"written": written, "missing": missing, "recovery_point_ms": point,
            "recovery_time_ms": time, "taken_by": taken_by.as_str()});
        screen::line(&format!("{data:#}"));
        return;
    }
    let facts = [
        ["Recovery point".to_owned(), format!("{point} ms: {missing} of {written} writes")],
        ["Recovery time".to_owned(), format!("{time} ms, then {taken_by} took the writes")],
    ];
    screen::facts(facts);
}

fn say(text: &str, data: &serde_json::Value, as_json: bool) {
    if as_json {
        screen::line(&format!("{data:#}"));
    } else {
        screen::line(text);
    }
}
