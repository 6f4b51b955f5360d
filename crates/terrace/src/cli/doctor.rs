//! `terrace doctor`: what this machine has and lacks.

mod brokers;
mod regions;

use std::time::Duration;

use serde_json::json;
use terrace_core::Runtime;
use terrace_lab::{ProgramState, programs};
use terrace_stores::{PostgresOptions, PostgresStore, ServerReport};

use super::{Failure, run, screen};
use crate::config::{Config, Loaded, Mode, redacted};
use crate::http::Pair;

/// One thing looked at.
struct Finding {
    what: String,
    good: bool,
    says: String,
}

/// Prints what each mode needs and whether it is there.
pub(super) fn doctor(loaded: &Loaded, as_json: bool) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    let mut findings = vec![directory(loaded)];
    findings.extend(programs().into_iter().map(|program| match program.state {
        ProgramState::Found { path, version } => Finding {
            what: program.name.to_owned(),
            good: true,
            says: format!("{version} ({})", path.display()),
        },
        ProgramState::Missing { reason } => {
            Finding { what: program.name.to_owned(), good: false, says: reason }
        }
    }));
    findings.extend(ports(loaded));
    findings.extend(urls(loaded));
    findings.extend(regions::look(loaded));
    findings.extend(certificate(loaded));
    findings.extend(servers(loaded)?);
    if as_json {
        let all: Vec<_> = findings
            .iter()
            .map(|found| json!({"what": found.what, "good": found.good, "says": found.says}))
            .collect();
        screen::line(&format!("{:#}", json!({"stores": mode.as_str(), "findings": all})));
        return Ok(());
    }
    screen::line(&format!("Stores in force: {}", screen::bold(mode.as_str())));
    screen::line("");
    let rows = findings.into_iter().map(|found| {
        let mark = if found.good { "ok" } else { "missing" };
        [mark.to_owned(), found.what, found.says]
    });
    screen::table(["STATE", "WHAT", "FOUND"], rows);
    screen::line("");
    screen::line("embedded needs the directory; local needs postgres, initdb and redis-server;");
    screen::line(
        "servers needs DATABASE_URL and, for levels with a cache, REDIS_URL; level 9 takes both",
    );
    screen::line("for each region (DB_US_EAST_URL, CACHE_US_EAST_URL, ...).");
    Ok(())
}

fn directory(loaded: &Loaded) -> Finding {
    let directory = &loaded.config.stores.data_dir;
    let writable = std::fs::create_dir_all(directory)
        .and_then(|()| tempfile::NamedTempFile::new_in(directory).map(drop));
    let says = match &writable {
        Ok(()) => format!("{} can be written", directory.display()),
        Err(error) => format!("{} cannot be written: {error}; use --data-dir", directory.display()),
    };
    Finding { what: "data directory".into(), good: writable.is_ok(), says }
}

fn ports(loaded: &Loaded) -> impl Iterator<Item = Finding> {
    crate::levels::LEVELS.iter().map(|level| {
        let server = &loaded.config.server;
        let port = server.port_base + u16::from(level.number);
        let free = std::net::TcpListener::bind((server.host.as_str(), port));
        let says = match &free {
            Ok(_) => "free".to_owned(),
            Err(error) => format!("cannot be bound: {error}; choose others with --port-base"),
        };
        Finding { what: format!("port {port}"), good: free.is_ok(), says }
    })
}

/// Whether the certificate fits its key, and until when it is good.
fn certificate(loaded: &Loaded) -> Option<Finding> {
    let files = run::pair_files(&loaded.config)?;
    let (good, says) = match Pair::read(&files) {
        Err(why) => (false, why),
        Ok(pair) if pair.key_is_open => {
            (false, format!("every user of this machine can read {}", files.key.display()))
        }
        Ok(Pair { expires_at: None, .. }) => (true, "fits its key".to_owned()),
        Ok(Pair { expires_at: Some(at), .. }) => {
            (at > Runtime::system().wall(), format!("fits its key, and is good until {at}"))
        }
    };
    Some(finding("certificate", good, &says))
}

/// What the database lets Terrace notice, and what the brokers let it do, if there are such.
fn servers(loaded: &Loaded) -> Result<Vec<Finding>, Failure> {
    let url = &loaded.config.database.url;
    if loaded.config.mode() != Ok(Mode::Servers) {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    run::block_on(async {
        let mut history = None;
        if !url.is_empty() {
            let report = PostgresStore::report(PostgresOptions::new(url), Runtime::system()).await;
            findings = match &report {
                Ok(report) => {
                    told(report).into_iter().chain([sessions(report, &loaded.config)]).collect()
                }
                Err(error) => vec![finding("database", false, error.message())],
            };
            history = report.ok().and_then(|report| report.history);
        }
        findings.extend(brokers::look(&loaded.config, history.as_deref()).await);
        Ok(())
    })?;
    Ok(findings)
}

fn told(report: &ServerReport) -> Vec<Finding> {
    /// A transaction that writes for longer is worth a look.
    const LONG: Duration = Duration::from_secs(60);
    let identity = match report.tells_its_identity {
        true => "copies on other servers are noticed",
        false => {
            "pg_control_system() is not allowed: a copy of the database on another server is not \
                  noticed; run `terrace history --renew` on each copy"
        }
    };
    let timeline = match report.tells_its_timeline {
        true => "failovers are noticed",
        false => {
            "pg_walfile_name() is not allowed: a failover is not noticed; run `terrace history \
                  --renew` after one"
        }
    };
    let (short, writer) = match report.oldest_writer {
        Some(open) if open > LONG => {
            let says = format!(
                "a transaction that writes has been open for {} s: until it ends, caches and replicas \
                 cannot prove later writes, and reads with tokens go to the primary",
                open.as_secs()
            );
            (false, says)
        }
        _ => (true, "no transaction that writes is open for long".to_owned()),
    };
    vec![
        finding("database identity", report.tells_its_identity, identity),
        finding("database timeline", report.tells_its_timeline, timeline),
        finding("open transactions", short, &writer),
    ]
}

/// Whether the server has a session for each connection that all instances of a level may open.
fn sessions(report: &ServerReport, config: &Config) -> Finding {
    /// What an instance has open beside its pool: who looks at the history, who listens to the log, who
    /// asks for a state, and one that is being opened.
    const BESIDE: u64 = 4;
    let (instances, pool) = (u64::from(config.limits.instances), config.database.pool_max as u64);
    let (wanted, admitted) = (instances * (pool + BESIDE), u64::from(report.sessions));
    let sum = format!(
        "{instances} x ({pool} + {BESIDE}) = {wanted} sessions for each level (limits.instances, \
         database.pool_max); the server admits {admitted}"
    );
    let says = match wanted <= admitted {
        true => sum,
        false => format!("{sum}: lower database.pool_max, or raise max_connections"),
    };
    finding("database sessions", wanted <= admitted, &says)
}

fn finding(what: &str, good: bool, says: &str) -> Finding {
    Finding { what: what.to_owned(), good, says: says.to_owned() }
}

fn urls(loaded: &Loaded) -> Vec<Finding> {
    let config = &loaded.config;
    let wanted = config.mode() == Ok(Mode::Servers);
    let optional = "JOURNAL_URL";
    [
        ("DATABASE_URL", &config.database.url),
        ("REDIS_URL", &config.cache.url),
        (optional, &config.journal.url),
    ]
    .into_iter()
    .filter(|(what, url)| (wanted && *what != optional) || !url.is_empty())
    .map(|(what, url)| Finding {
        what: what.to_owned(),
        good: !url.is_empty(),
        says: if url.is_empty() { "not set".to_owned() } else { redacted(url) },
    })
    .collect()
}
