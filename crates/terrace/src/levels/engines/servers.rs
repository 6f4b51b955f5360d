//! Your own servers, as the settings name them.

use std::path::Path;
use std::time::Duration;

use terrace_core::{BoxFuture, Error, Result};
use terrace_stores::PostgresOptions;

use super::urls::{ByUrl, RegionPlace, RegionPlaces, Whereabouts};
use super::{Connections, Engines, no_database};
use crate::config::{Config, RegionSettings};

/// The servers that several levels may use.
#[derive(Debug)]
pub(super) struct Named {
    database: String,
    cache: String,
}

/// Takes the URLs; `cached` tells whether any level wants a far cache.
///
/// # Errors
/// What is not named, and the next step.
pub(super) fn named(config: &Config, cached: bool) -> Result<ByUrl<Named>> {
    // That of the commands is enough for level 7 alone, and that of transactions for level 8.
    let urls = [
        &config.database.url,
        &config.replicas.primary_url,
        &config.cqrs.write_url,
        &config.polyglot.postgres_url,
    ];
    let database = urls.into_iter().find(|url| !url.is_empty());
    let others =
        [&config.shards.urls, &config.enterprise.shard_urls, &config.regions.database_urls];
    if database.is_none() && others.iter().all(|urls| urls.is_empty()) {
        return Err(no_database());
    }
    if cached && config.cache.url.is_empty() && config.regions.cache_urls.is_empty() {
        return Err(Error::invalid(
            "a level with a cache needs one; set REDIS_URL=redis://host:6379, or serve levels 0 and 1 \
             only",
        ));
    }
    let database = database.cloned().unwrap_or_default();
    Ok(ByUrl(Named { database, cache: config.cache.url.clone() }))
}

impl Whereabouts for Named {
    fn database(&self) -> &str {
        &self.database
    }

    fn primary<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<String>> {
        Box::pin(async {
            match of.level {
                3 if !of.config.replicas.primary_url.is_empty() => {
                    Ok(of.config.replicas.primary_url.clone())
                }
                _ if self.database.is_empty() => Err(no_database()),
                _ => Ok(self.database.clone()),
            }
        })
    }

    fn cache(&self) -> &str {
        &self.cache
    }

    fn members<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<String>>> {
        let config = &of.config.replicas;
        let primary = match config.primary_url.as_str() {
            "" => &self.database,
            url => url,
        };
        let mut urls = one_host_each(primary);
        let separate = |letter: char| letter.is_whitespace();
        for url in separated(&config.urls).split(separate).filter(|url| !url.is_empty()) {
            urls.extend(one_host_each(url));
        }
        if urls.len() == 1 {
            tracing::warn!(
                "level 3 has no replica, so its primary answers all reads; set REPLICA_DATABASE_URL"
            );
        }
        Box::pin(async move { Ok(urls) })
    }

    /// A schema each of the one database, unless each has a URL.
    fn shard_addresses(&self, of: &Engines) -> Vec<String> {
        match of.named_shards() {
            ([], count) => (0..count).map(|number| format!("schema:{number}")).collect(),
            (urls, _) => urls.to_vec(),
        }
    }

    /// `schema:2`: a schema of the database that all levels share.
    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
    ) -> BoxFuture<'a, Result<Option<PostgresOptions>>> {
        let options = address.strip_prefix("schema:").map(|number| PostgresOptions {
            schema: format!("{}_l{}_shard_{number}", of.schemas(), of.level),
            ..of.postgres_options(&self.database, Connections::Pooled)
        });
        Box::pin(async { Ok(options) })
    }

    fn tend_shards<'a>(&'a self, _: &'a Engines) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// A schema each of the one database, and the one cache, unless each has URLs.
    fn region<'a>(
        &'a self,
        of: &'a Engines,
        region: &'a RegionSettings,
    ) -> BoxFuture<'a, Result<RegionPlaces>> {
        let database = match region.database_url.as_str() {
            "" => PostgresOptions {
                schema: format!(
                    "{}_l{}_{}",
                    of.schemas(),
                    of.level,
                    region.name.as_str().replace('-', "_")
                ),
                ..of.postgres_options(&self.database, Connections::Pooled)
            },
            url => of.in_default_schema(url),
        };
        let cache = match region.cache_url.as_str() {
            "" => self.cache.clone(),
            url => url.to_owned(),
        };
        Box::pin(async move {
            if cache.is_empty() {
                let name = region.name.as_str().to_uppercase().replace('-', "_");
                return Err(Error::invalid(format!(
                    "region {} needs a cache; set CACHE_{name}_URL=redis://host:6379, or REDIS_URL",
                    region.name
                )));
            }
            Ok(RegionPlaces {
                near: RegionPlace { database, cache, away: Duration::ZERO },
                far: Vec::new(),
            })
        })
    }

    fn journal<'a>(&'a self, _: &'a Engines, nats: bool) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move { Ok(if nats { String::new() } else { self.cache.clone() }) })
    }

    fn documents<'a>(&'a self, _: &'a Engines) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }

    fn directory(&self) -> Option<&Path> {
        None
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The list with spaces for the commas between URLs; those between hosts stay.
fn separated(urls: &str) -> String {
    urls.replace(",postgres://", " postgres://").replace(",postgresql://", " postgresql://")
}

/// A URL with several hosts as one URL a host.
fn one_host_each(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    hosts.split(',').map(|host| format!("{scheme}://{login}{host}{tail}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{one_host_each, separated};

    #[test]
    fn every_host_is_a_server() {
        assert_eq!(
            one_host_each("postgres://u:p@a:1,b/db?sslmode=require"),
            ["postgres://u:p@a:1/db?sslmode=require", "postgres://u:p@b/db?sslmode=require"]
        );
        assert_eq!(one_host_each("postgres://a"), ["postgres://a"]);
        let list = "postgres://a,b/db,postgres://c/db postgresql://d/db";
        assert_eq!(separated(list), "postgres://a,b/db postgres://c/db postgresql://d/db");
    }
}
