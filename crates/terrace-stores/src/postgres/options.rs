//! What a store on PostgreSQL can be told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use terrace_core::{Error, RegionOptions, Result};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::setup::Settings;
use super::statements::Dialect;
use super::url::{Parameters, parse};

/// How to reach a PostgreSQL database (15 or later) and how to use it.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`, with several `host:port` separated by commas.
    ///
    /// Parameters: `sslmode` (`disable`, `prefer`, `require`, `verify-full`; default `prefer`, which
    /// like `require` encrypts without asking who answers), `sslrootcert` (a PEM file that replaces
    /// the machine's authorities and makes `require` verify, too), `options` (`-c name=value` of
    /// settings that Terrace does not set itself), `target_session_attrs` (`read-write` when there are
    /// several hosts) and those of tokio-postgres, which go before the options here. Others are refused.
    pub url: String,
    /// The schema that holds the tables, created when missing; lower case letters, digits and `_`.
    /// Default `public`.
    pub schema: String,
    /// Whether the database is one of several shards, for [`PostgresShard`](super::PostgresShard),
    /// which sets it. Default no.
    pub shard: bool,
    /// Where the connection of a request comes from. Default: a pool of 2 to 10.
    pub source: ConnectionSource,
    /// The longest that the server works on one statement. Default 5 s.
    pub statement_timeout: Duration,
    /// The longest that a statement waits for a row or table that another session holds, before the store
    /// looks what holds it; zero waits as long as the statement may take. Default 1 s.
    pub lock_timeout: Duration,
    /// The longest that one host may take to accept a connection. Default 3 s.
    pub connect_timeout: Duration,
    /// Whether this server is one of a primary and its replicas: it may take no writes now and take
    /// them later; its answers' tokens say how far it has come in the write-ahead log. Default
    /// `false`.
    pub member: bool,
    /// The name that `pg_stat_activity` shows. Default `terrace`.
    pub application_name: String,
    /// Keeps a log of changes (see [`PostgresLog`](super::PostgresLog)) and lets tokens name the place
    /// of a write in it. Installed at connect, with the records that there are; on a shard with none of
    /// them, and its changes are counted (see [`Rollup`](terrace_core::Rollup)). Default false.
    pub change_log: bool,
    /// Makes the database one of several regions: its versions have a clock, it keeps a log of its own
    /// changes whatever `change_log` says, and rows of deleted records until they are collected by
    /// [`RegionStore::collect`](terrace_core::RegionStore::collect). Its records get new versions the
    /// first time. Default none.
    pub region: Option<RegionOptions>,
    /// How long the row of a deleted record is kept. Default 7 days, more than caches, cursors and
    /// requests under way live.
    pub tombstones_kept_for: Duration,
    /// How long a connection may be silent before the system asks whether the peer lives. Default
    /// 30 s.
    pub keepalives_idle: Duration,
    /// How long sent data may stay unacknowledged before the system gives the connection up (Linux
    /// only). Default 10 s.
    pub tcp_user_timeout: Duration,
}

/// Where the connection of a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionSource {
    /// Each request connects and disconnects.
    PerRequest {
        /// The most connections at once; further requests wait until their deadline, at most 30 s.
        limit: usize,
    },
    /// Requests share connections that stay open.
    Pooled(PoolOptions),
}

/// The size of a pool and the life of its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Connections that are kept open without requests. Default 2.
    pub min: usize,
    /// The most connections at once. Default 10.
    pub max: usize,
    /// The longest that a request waits for a connection, whatever its deadline. Default 3 s.
    pub acquire_timeout: Duration,
    /// How long a connection is used, ± 10 %, so that they do not all end together. Default 30 min.
    pub max_lifetime: Duration,
    /// How long a connection beyond `min` stays open without requests. Default 5 min.
    pub idle_timeout: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            min: 2,
            max: 10,
            acquire_timeout: Duration::from_secs(3),
            max_lifetime: Duration::from_secs(30 * 60),
            idle_timeout: Duration::from_secs(5 * 60),
        }
    }
}

impl ConnectionSource {
    /// The longest that a request without a deadline waits for its turn to connect.
    pub(super) const PATIENCE: Duration = Duration::from_secs(30);

    /// A connection for each request, at most 64 at once.
    pub fn per_request() -> Self {
        Self::PerRequest { limit: 64 }
    }

    /// A pool of this many connections.
    pub fn pooled(min: usize, max: usize) -> Self {
        Self::Pooled(PoolOptions { min, max, ..PoolOptions::default() })
    }
}

impl PostgresOptions {
    /// The defaults for this URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: "public".to_owned(),
            shard: false,
            source: ConnectionSource::Pooled(PoolOptions::default()),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(3),
            member: false,
            application_name: "terrace".to_owned(),
            change_log: false,
            region: None,
            tombstones_kept_for: Duration::from_secs(7 * 24 * 60 * 60),
            keepalives_idle: Duration::from_secs(30),
            tcp_user_timeout: Duration::from_secs(10),
        }
    }

    /// The longest that a statement works, and waits for a lock.
    pub(super) fn timeouts(&self) -> (Duration, Duration) {
        (self.statement_timeout, self.lock_timeout)
    }

    /// What kind of database its sessions are with.
    pub(super) fn dialect(&self) -> Dialect {
        match (self.shard, self.change_log) {
            _ if let Some(region) = &self.region => Dialect::Region(region.id),
            (true, false) => Dialect::Shard,
            (true, true) => Dialect::LoggedShard,
            (false, true) => Dialect::Logged,
            (false, false) => Dialect::Plain,
        }
    }

    /// Checks everything that can be checked without a server.
    pub(super) fn target(&self) -> Result<Target> {
        self.check()?;
        let (mut config, parameters) = parse(&self.url)?;
        if config.get_hosts().is_empty() {
            return Err(Error::invalid(
                "the PostgreSQL URL names no host; write postgres://user:password@host:port/database",
            ));
        }
        config.ssl_mode(parameters.ssl_mode);
        if !parameters.has("application_name") {
            config.application_name(&self.application_name);
        }
        if !parameters.has("connect_timeout") {
            config.connect_timeout(self.connect_timeout);
        }
        if !parameters.has("keepalives_idle") {
            config.keepalives_idle(self.keepalives_idle);
        }
        if !parameters.has("tcp_user_timeout") {
            config.tcp_user_timeout(self.tcp_user_timeout);
        }
        if config.get_hosts().len() > 1 {
            let attributes = config.get_target_session_attrs();
            if parameters.has("target_session_attrs") && attributes != TargetSessionAttrs::ReadWrite
            {
                return Err(Error::invalid(
                    "of several hosts in the PostgreSQL URL Terrace uses the one that takes writes; \
                     set target_session_attrs=read-write, or remove it",
                ));
            }
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let settings = self.session_settings(&parameters.settings)?;
        let connect_timeout = config.get_connect_timeout().copied().unwrap_or(self.connect_timeout);
        let hosts = addresses(&config);
        let Parameters { ssl_mode, verify, root_certificates, .. } = parameters;
        Ok(Target { config, settings, connect_timeout, ssl_mode, verify, root_certificates, hosts })
    }

    fn check(&self) -> Result<()> {
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let digit_first = self.schema.starts_with(|first: char| first.is_ascii_digit());
        let is_reserved = self.schema.starts_with("pg_");
        let fits = (1..=63).contains(&self.schema.len()) && !digit_first && !is_reserved;
        if !fits || !self.schema.bytes().all(named) {
            return Err(Error::invalid(
                "the schema's name must have 1 to 63 lower case letters, digits and `_`, and not \
                 begin with a digit or `pg_`; set database.schema",
            ));
        }
        let sized = match &self.source {
            ConnectionSource::PerRequest { limit } => *limit > 0,
            ConnectionSource::Pooled(pool) => pool.max > 0 && pool.min <= pool.max,
        };
        if !sized {
            return Err(Error::invalid(
                "the pool must have at least one connection, and `min` must not exceed `max`",
            ));
        }
        Ok(())
    }

    /// What is set for each session: what the URL asks for, and what the store stands on.
    ///
    /// Every statement of the store reads by its primary key, but the planner sees tables that were
    /// never analysed and arrays of unknown length, and would keep a plan for a small table when the
    /// table has grown; so it is told.
    fn session_settings(&self, asked: &[(String, String)]) -> Result<Settings> {
        let timeout = self.statement_timeout.as_millis();
        let lock = self.lock_timeout.as_millis();
        let idle = (self.statement_timeout * 2).as_millis();
        let own = [
            ("search_path", self.schema.as_str()),
            ("statement_timeout", &timeout.to_string()),
            ("lock_timeout", &lock.to_string()),
            ("idle_in_transaction_session_timeout", &idle.to_string()),
            // Later statements of a transaction must see what was committed while it waited for a lock.
            ("default_transaction_isolation", "read committed"),
            // A policy would hide rows in silence; so it is an error.
            ("row_security", "off"),
            ("client_encoding", "UTF8"),
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
            ("client_min_messages", "warning"),
        ];
        let mut settings = Settings { asked: asked.len(), ..Settings::default() };
        for (name, value) in asked {
            if own.iter().any(|(own, _)| own == name) {
                return Err(Error::invalid(format!(
                    "the `options` of the PostgreSQL URL set {name}, which Terrace sets itself; remove \
                     it (the schema is named by database.schema)"
                )));
            }
            settings.push(name, value);
        }
        own.into_iter().for_each(|(name, value)| settings.push(name, value));
        Ok(settings)
    }
}

impl fmt::Debug for PostgresOptions {
    /// Without the URL, which holds the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("source", &self.source)
            .field("statement_timeout", &self.statement_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// Options that were checked.
pub(super) struct Target {
    pub(super) config: Config,
    /// See [`PostgresOptions::session_settings`].
    pub(super) settings: Settings,
    /// The longest that one host may take to accept a connection.
    pub(super) connect_timeout: Duration,
    pub(super) ssl_mode: SslMode,
    /// Whether the server's certificate must be valid for its name.
    pub(super) verify: bool,
    pub(super) root_certificates: Option<PathBuf>,
    /// `host:port`, separated by commas.
    pub(super) hosts: String,
}

fn addresses(config: &Config) -> String {
    let ports = config.get_ports();
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(index)),
        #[cfg(unix)]
        Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
    });
    hosts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_tls_are_taken_out_of_the_url() {
        let url = "postgres://u:secret@a:1,b:2/db?sslmode=verify-full&sslrootcert=%2Fx%20y.pem";
        let target = PostgresOptions::new(url).target().expect("options");
        assert_eq!(target.hosts, "a:1,b:2");
        assert!(target.verify);
        assert_eq!(target.ssl_mode, SslMode::Require);
        assert_eq!(target.root_certificates, Some(PathBuf::from("/x y.pem")));
        assert_eq!(target.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn what_the_url_says_goes_before_the_options() {
        let more = "application_name=mine&connect_timeout=7&keepalives_idle=9&tcp_user_timeout=11";
        let target = PostgresOptions::new(format!("postgres://a/db?{more}&keepalives=0"));
        let Target { config, connect_timeout, .. } = target.target().expect("options");
        assert_eq!(config.get_application_name(), Some("mine"));
        assert_eq!(connect_timeout, Duration::from_secs(7));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(9));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(11)));
        assert!(!config.get_keepalives());
        let two = "postgres://a,b/db?target_session_attrs=any";
        let error = PostgresOptions::new(two).target().map(drop).expect_err("not what is done");
        assert!(error.to_string().contains("target_session_attrs"), "{error}");
    }

    #[test]
    fn no_text_shows_the_password() {
        let options = PostgresOptions::new("postgres://u:secret@a:99999/db");
        assert!(!format!("{options:?}").contains("secret"));
        let error = options.target().map(|_| ()).expect_err("a port that cannot be");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn names_that_would_need_quotes_are_refused() {
        for schema in ["", "Upper", "a b", "x;drop", "1st", "pg_own"] {
            let options =
                PostgresOptions { schema: schema.into(), ..PostgresOptions::new("postgres://a/b") };
            assert!(options.target().is_err(), "{schema}");
        }
    }
}
