//! What a database is brought to before it serves.

use std::sync::Arc;

use terrace_core::{Result, Runtime};

use super::connect::Connector;
use super::connection::Connection;
use super::{LogBegin, PostgresOptions, log, migrate, region, shard, sqlstate};

/// Connects and makes the tables that are missing; answers the session, and the name of the change log.
pub(super) async fn prepare(
    options: &PostgresOptions,
    connector: &Connector,
    runtime: &Runtime,
) -> Result<(Connection, Option<Arc<str>>)> {
    let mut first = connector.open_first().await?;
    if !first.takes_writes {
        tracing::warn!(hosts = connector.hosts(), "{}", sqlstate::READ_ONLY);
    }
    let at = |error: terrace_core::Error| error.with("hosts", connector.hosts());
    migrate::migrate(first.client(), &options.schema).await.map_err(at)?;
    connector.recognise(&mut first).await?;
    region::check(first.client(), options.region.as_ref()).await.map_err(at)?;
    if options.shard {
        shard::install(first.client(), &options.schema).await?;
    }
    let mut name = None;
    if options.change_log || options.region.is_some() {
        let begin = if options.shard { LogBegin::Counted } else { LogBegin::WithRecords };
        let log = log::change(first.client(), &options.schema, Some(begin), runtime).await;
        name = log.map_err(at)?;
    }
    if let Some(region) = &options.region {
        let now = runtime.wall();
        region::install(first.client(), &options.schema, region, now).await.map_err(at)?;
    }
    Ok((first, name))
}
