//! `terrace keys`: the keys of clients, made, listed, rotated and revoked while levels are served.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use terrace_core::{Deadline, Error, Runtime, Store};

use super::run::{block_on, fatal};
use super::{Failure, long_time, screen};
use crate::access::{self, ApiKey, Grant, GrantState, KeyId, Scope};
use crate::config::{Loaded, Mode};
use crate::levels::{Engines, Servers};

/// What to do.
#[derive(Subcommand, Debug)]
pub(super) enum Action {
    /// Make a key and show it once.
    Create {
        /// What people call it.
        name: String,
        /// What it may do; `admin` may do all of it.
        #[arg(long, value_delimiter = ',', default_value = "read,write")]
        scopes: Vec<Scope>,
        /// The records that it may touch begin so; all when none is given.
        #[arg(long)]
        prefix: Vec<String>,
        /// It is refused after this time, such as 90d.
        #[arg(long, value_parser = long_time)]
        expires_in: Option<Duration>,
    },
    /// List all keys, without their secrets.
    List,
    /// Make a key that may do the same, and end the old one.
    Rotate {
        /// The id of the old key.
        id: String,
        /// The old key goes on for this time.
        #[arg(long, value_parser = long_time, default_value = "24h")]
        grace: Duration,
        /// The old key ends now.
        #[arg(long, conflicts_with = "grace")]
        now: bool,
    },
    /// End a key; every instance refuses it within 5 s.
    Revoke {
        /// The id of the key.
        id: String,
    },
}

/// Runs the command.
pub(super) fn keys(action: &Action, as_json: bool, loaded: Loaded) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    block_on(async {
        let config = Arc::new(loaded.config);
        let failed = |error: Error| fatal(&error);
        let servers = Servers::beside(&config, mode).await.map_err(failed)?;
        let runtime = Runtime::system();
        let engines = Engines::new(10, mode == Mode::Local, config, &servers, runtime.clone());
        let store = engines.grants().await.map_err(failed)?;
        let done = run(action, as_json, &*store, runtime.wall()).await;
        store.close().await.map_err(failed)?;
        servers.stop().await;
        done
    })
}

async fn run(
    action: &Action,
    as_json: bool,
    store: &dyn Store,
    now: Timestamp,
) -> Result<(), Failure> {
    let failed = |error: Error| fatal(&error);
    match action {
        Action::Create { name, scopes, prefix, expires_in } => {
            if prefix.iter().any(String::is_empty) {
                let text = "--prefix is empty, which would be all records; leave it out for all";
                return Err(Failure::usage(text));
            }
            let key = ApiKey::generate().map_err(failed)?;
            let mut grant = Grant::new(&key, name, scopes, now);
            grant.prefixes.clone_from(prefix);
            grant.expires_at = expires_in.map(|time| later(now, time)).transpose()?;
            access::add(store, key.id(), &grant).await.map_err(failed)?;
            show(&key, &grant, as_json);
            Ok(())
        }
        Action::List => {
            let all = access::list(store, Deadline::NEVER).await.map_err(failed)?;
            table(&all, now, as_json);
            Ok(())
        }
        Action::Rotate { id, grace, now: at_once } => {
            let id = KeyId::new(id).map_err(failed)?;
            let ends = if *at_once { now } else { later(now, *grace)? };
            let all = access::list(store, Deadline::NEVER).await.map_err(failed)?;
            let old = all.iter().find(|(known, _)| *known == id);
            let Some((_, old)) = old.filter(|(_, it)| it.state(now) == GrantState::Active) else {
                let text = format!("there is no active key {id}; `terrace keys list` has them");
                return Err(Failure::usage(text));
            };
            let key = ApiKey::generate().map_err(failed)?;
            let grant = old.for_key(&key, now);
            // The new one is there before the old one ends.
            access::add(store, key.id(), &grant).await.map_err(failed)?;
            let ended = access::change(store, &id, |grant| {
                grant.expires_at = Some(grant.expires_at.map_or(ends, |at| at.min(ends)));
                if *at_once {
                    grant.revoked_at.get_or_insert(now);
                }
            });
            ended.await.map_err(failed)?;
            show(&key, &grant, as_json);
            Ok(())
        }
        Action::Revoke { id } => {
            let id = KeyId::new(id).map_err(failed)?;
            let ended = access::change(store, &id, |grant| {
                grant.revoked_at.get_or_insert(now);
            });
            let grant = ended.await.map_err(failed)?;
            match as_json {
                true => screen::line(&described(&id, &grant, now).to_string()),
                false => screen::line(&format!(
                    "The key {id} ({}) is revoked: every instance refuses it within 5 s.",
                    grant.name
                )),
            }
            Ok(())
        }
    }
}

fn later(now: Timestamp, time: Duration) -> Result<Timestamp, Failure> {
    let time = SignedDuration::try_from(time).ok();
    let at = time.and_then(|time| now.checked_add(time).ok());
    at.ok_or_else(|| Failure::usage("that is too far ahead; leave it out for a key without an end"))
}

/// The one time that a key is seen.
fn show(key: &ApiKey, grant: &Grant, as_json: bool) {
    if as_json {
        let mut line = described(key.id(), grant, grant.created_at);
        line["key"] = json!(key.reveal());
        screen::line(&line.to_string());
        return;
    }
    screen::line(key.reveal());
    screen::line(&format!(
        "\nIts id is {}. It is shown this once: keep it where secrets are kept. Instances take it within \
         2 s, in the header X-API-Key or as Authorization: Bearer.",
        key.id()
    ));
}

fn described(id: &KeyId, grant: &Grant, now: Timestamp) -> serde_json::Value {
    json!({
        "id": id.as_str(),
        "name": grant.name,
        "state": grant.state(now).to_string(),
        "scopes": grant.scopes,
        "prefixes": grant.prefixes,
        "created_at": grant.created_at,
        "expires_at": grant.expires_at,
        "revoked_at": grant.revoked_at,
    })
}

fn table(all: &[(KeyId, Grant)], now: Timestamp, as_json: bool) {
    if as_json {
        let lines = all.iter().map(|(id, grant)| described(id, grant, now));
        screen::line(&serde_json::Value::Array(lines.collect()).to_string());
        return;
    }
    let rows = all.iter().map(|(id, grant)| {
        let scopes = grant.scopes.iter().map(Scope::to_string).collect::<Vec<_>>();
        let until = grant
            .expires_at
            .map_or("for ever".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string());
        let prefixes = match grant.prefixes.as_slice() {
            [] => "all".to_owned(),
            some => some.join(" "),
        };
        let state = grant.state(now).to_string();
        [id.to_string(), grant.name.clone(), state, scopes.join(" "), prefixes, until]
    });
    screen::table(["ID", "NAME", "STATE", "MAY", "RECORDS", "UNTIL"], rows);
}
