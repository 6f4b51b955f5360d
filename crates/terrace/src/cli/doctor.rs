//! `terrace doctor`: what this machine has and lacks.

use serde_json::json;
use terrace_lab::{ProgramState, programs};

use super::{Failure, screen};
use crate::config::{Loaded, Mode, redacted};

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
    screen::line("servers needs DATABASE_URL and, for levels with a cache, REDIS_URL.");
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
