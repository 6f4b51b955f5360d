//! The command line.
//!
//! Output is for people on a terminal, `--json` for programs. Exit codes: 0 done, 1 failed, 2 wrong
//! usage.

mod backup;
mod bench;
mod canary;
mod config;
mod doctor;
mod explain;
mod flush;
mod history;
mod journal;
mod keys;
mod live_page;
mod logging;
mod packaging;
mod projections;
mod reconcile;
mod regions;
mod reshard;
mod run;
mod screen;
mod signals;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Loaded, Mode, Overrides, load};
use crate::levels::{Level, level, numbers};

/// The version, the commit of a release build, and the features that can be left out.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILT_FROM_COMMIT"),
    "; features:",
    env!("BUILT_WITH_FEATURES"),
    ")"
);

/// One data tier that you climb level by level.
#[derive(Debug, Parser)]
#[command(version = VERSION, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve all levels, or the given ones, in one process.
    Up {
        /// Levels by number; all that exist when none is given.
        levels: Vec<u8>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Serve one level.
    Serve {
        /// The level's number.
        level: u8,
        /// The port to listen on, instead of port base + level.
        #[arg(long)]
        port: Option<u16>,
        #[command(flatten)]
        canary: canary::CanaryFlags,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show a level's stack, its guarantee and what it costs.
    Explain {
        /// The level's number.
        level: u8,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure levels, or any server with the same API, and write a report.
    Bench(Box<bench::Arguments>),
    /// Move slots between the shards of a level while it is served.
    Reshard {
        /// The level's number.
        #[arg(long, default_value_t = 4)]
        level: u8,
        #[command(flatten)]
        work: reshard::Work,
        /// Show the plan and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Look after the projection of level 7.
    Projections {
        #[command(subcommand)]
        action: projections::Action,
        #[command(flatten)]
        settings: Settings,
    },
    /// Compare the transactions of level 8 with its accounts and summaries, and mend what differs.
    Reconcile {
        /// The level's number.
        #[arg(long, default_value_t = 8)]
        level: u8,
        /// Compare only, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Look after the regions of level 9: how far they are, what differs, what brings them together.
    Regions {
        #[command(subcommand)]
        action: regions::Action,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Make backups of all databases of a level to one logical point, restore them, and try that out.
    Backup {
        #[command(subcommand)]
        action: backup::Action,
        /// The directory of all backups.
        #[arg(long, global = true, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Apply what level 6 has accepted, without serving; set journal.flusher to apart where it serves.
    Flush {
        #[command(flatten)]
        settings: Settings,
    },
    /// Look at the journal of level 6 and at writes that could not be applied.
    Journal {
        #[command(subcommand)]
        what: journal::What,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Make, list, rotate and revoke the keys of clients.
    Keys {
        #[command(subcommand)]
        action: keys::Action,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show which database this is to Terrace, or give a copy a new name.
    History {
        #[command(flatten)]
        work: history::HistoryOptions,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show what this machine has and lacks.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show the effective settings and where each came from.
    Config {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Print what makes a shell complete commands and flags.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command into a directory.
    Man {
        /// The directory, such as share/man/man1.
        directory: PathBuf,
    },
}

/// Settings that have a flag; every other has a key in the file and a name in the environment.
#[derive(Args, Debug, Default)]
struct Settings {
    /// Where the data lives [default: servers when a database URL is set, else embedded].
    #[arg(long, value_enum, value_name = "MODE")]
    stores: Option<Mode>,
    /// The settings file [default: terrace.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the embedded and local modes [default: .terrace].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Leave out the far cache of levels 3 and 4.
    #[arg(long)]
    no_cache: bool,
    /// Local mode: keep databases so far away, such as 2ms [default: 0].
    #[arg(long, value_name = "TIME", value_parser = time)]
    database_rtt: Option<Duration>,
    /// Local mode: keep caches and brokers so far away, such as 0.3ms [default: 0].
    #[arg(long, value_name = "TIME", value_parser = time)]
    cache_rtt: Option<Duration>,
    /// Local mode: keep the regions of level 9 as far apart as US, Europe and Asia are.
    #[arg(long)]
    wan: bool,
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Level N listens on this port + N [default: 8000].
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
}

/// Round trips between the regions of the documents, in milliseconds.
const WAN: &str = "us-east:eu-west=80 us-east:asia-pac=180 eu-west:asia-pac=160";

impl Settings {
    fn load(&self) -> Result<Loaded, ConfigError> {
        self.load_under(None)
    }

    /// The same under a file that counts over all of them.
    fn load_under(&self, canary: Option<PathBuf>) -> Result<Loaded, ConfigError> {
        let mut values = Vec::new();
        let mut flag = |name, path, value: Option<String>| {
            values.extend(value.map(|value| (name, path, value)));
        };
        // Only private servers can be kept apart.
        let stores = self.stores.or(self.wan.then_some(Mode::Local));
        flag("--stores", "stores.mode", stores.map(|mode| mode.as_str().to_owned()));
        let directory = self.data_dir.as_ref().map(|path| path.to_string_lossy().into_owned());
        flag("--data-dir", "stores.data_dir", directory);
        flag("--no-cache", "cache.enabled", self.no_cache.then(|| false.to_string()));
        let micros = |time: Duration| time.as_micros().to_string();
        flag("--database-rtt", "distance.database_us", self.database_rtt.map(micros));
        flag("--cache-rtt", "distance.cache_us", self.cache_rtt.map(micros));
        flag("--wan", "distance.regions", self.wan.then(|| WAN.to_owned()));
        flag("--host", "server.host", self.host.clone());
        flag("--port-base", "server.port_base", self.port_base.map(|port| port.to_string()));
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        load(&Overrides { file: self.config.clone(), values, canary }, environment)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(told) => return tell(&told),
    };
    // What a server says as it starts is for people; it has served all the same.
    let serves =
        matches!(command, Command::Up { .. } | Command::Serve { .. } | Command::Flush { .. });
    let done = execute(command).and_then(|()| if serves { Ok(()) } else { screen::written() });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            screen::error(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Help that was asked for, the version, or what is wrong with the arguments.
fn tell(told: &clap::Error) -> ExitCode {
    let printed = told.print().map_err(|error| screen::unwritten(&error));
    match printed {
        Err(Some(failure)) if !told.use_stderr() => {
            screen::error(&failure.text);
            ExitCode::from(failure.code)
        }
        _ => ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(2)),
    }
}

/// Why a command ends without success.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// The command was used wrongly.
    fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// The command could not do its work.
    fn failed(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up { levels, settings } => {
            let levels = match levels.as_slice() {
                [] => crate::levels::LEVELS.to_vec(),
                some => some.iter().map(|number| known(*number)).collect::<Result<_, _>>()?,
            };
            run::up(levels, settings.load()?)
        }
        Command::Serve { level, port, canary, settings } => {
            let (level, loaded) = (known(level)?, settings.load()?);
            let canary = canary.plan(level, &loaded.config, &settings)?;
            run::serve(level, port, canary, loaded)
        }
        Command::Reshard { level, work, dry_run, settings } => {
            reshard::reshard(known(level)?, work, dry_run, settings.load()?)
        }
        Command::Explain { level, json } => explain::explain(known(level)?, json),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Projections { action, settings } => {
            projections::projections(&action, settings.load()?)
        }
        Command::Reconcile { level, dry_run, json, settings } => {
            reconcile::reconcile(known(level)?, dry_run, json, settings.load()?)
        }
        Command::Regions { action, json, settings } => {
            regions::regions(&action, json, settings.load()?)
        }
        Command::Backup { action, dir, json, settings } => {
            let dir =
                dir.ok_or_else(|| Failure::usage("name the directory of backups with --dir"))?;
            backup::backup(&action, &dir, json, settings.load()?)
        }
        Command::Flush { settings } => run::flush(settings.load()?),
        Command::Journal { what, json, settings } => {
            journal::journal(&what, json, settings.load()?)
        }
        Command::Keys { action, json, settings } => keys::keys(&action, json, settings.load()?),
        Command::History { work, settings } => history::history(work, &settings.load()?),
        Command::Doctor { json, settings } => doctor::doctor(&settings.load()?, json),
        Command::Config { json, settings } => config::config(&settings.load()?, json),
        Command::Completions { shell } => packaging::completions(shell),
        Command::Man { directory } => packaging::manual(&directory),
    }
}

fn known(number: u8) -> Result<&'static Level, Failure> {
    level(number).ok_or_else(|| {
        Failure::usage(format!("there is no level {number} yet; choose from {}", numbers()))
    })
}

/// A time on the command line: `10`, `10s`, `0.3ms`, `300us`, `2m`.
fn time(text: &str) -> Result<Duration, String> {
    let time = long_time(text)?;
    match time <= Duration::from_secs(86_400) {
        true => Ok(time),
        false => Err("give a time of at most a day".into()),
    }
}

/// The same of any length: `24h`, `90d`.
fn long_time(text: &str) -> Result<Duration, String> {
    let units =
        [("us", 1e-6), ("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .unwrap_or((text, 1.0));
    let number = number.trim().parse::<f64>().map_err(|_| "give a time such as 10s or 2m")?;
    Duration::try_from_secs_f64(number * unit)
        .map_err(|_| "give a time from 0 on, such as 10s or 2m".into())
}
