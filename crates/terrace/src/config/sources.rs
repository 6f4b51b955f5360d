//! Merges defaults, file, environment and command line, and remembers where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, DistanceConfig, Mode, bounds, redacted, regions, service_links};

/// Names of the environment that the described system uses, and the settings they stand for.
/// `TERRACE_<SECTION>_<KEY>` works for every setting.
pub const DOCUMENTED_NAMES: [(&str, &str); 24] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "cache.url"),
    ("PRIMARY_DATABASE_URL", "replicas.primary_url"),
    ("REPLICA_DATABASE_URL", "replicas.urls"),
    ("JOURNAL_URL", "journal.url"),
    ("WRITE_DB_URL", "cqrs.write_url"),
    ("READ_DB_URL", "cqrs.read_url"),
    ("POSTGRES_URL", "polyglot.postgres_url"),
    ("MONGODB_URL", "polyglot.mongodb_url"),
    ("DB_POOL_MIN_SIZE", "database.pool_min"),
    ("DB_POOL_MAX_SIZE", "database.pool_max"),
    ("CACHE_TTL", "cache.ttl_seconds"),
    ("L1_CACHE_SIZE", "cache.near_max_records"),
    ("L1_CACHE_TTL", "cache.near_ttl_seconds"),
    ("REPLICATION_ENABLED", "regions.replication"),
    ("CACHE_L2_URL", "cache.url"),
    ("ENVIRONMENT", "enterprise.environment"),
    ("AUTH_ENABLED", "auth.enabled"),
    ("API_KEY", "auth.api_key"),
    ("ENABLE_METRICS", "metrics.enabled"),
    ("PROMETHEUS_PORT", "metrics.port"),
    ("RATE_LIMIT_REQUESTS", "limits.requests"),
    ("RATE_LIMIT_WINDOW", "limits.window_seconds"),
    ("RATE_LIMITER_URL", "limits.url"),
];

/// The setting that is a secret as a whole.
const SECRET: &str = "auth.api_key";

/// The file that is read when no other is named and it exists.
pub const DEFAULT_FILE: &str = "terrace.toml";

/// Settings of the command line, as `section.key` and text.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The file named by `--config`.
    pub file: Option<PathBuf>,
    /// Values, under the names of their flags.
    pub values: Vec<(&'static str, &'static str, String)>,
    /// A file that counts over all of that, for a canary.
    pub canary: Option<PathBuf>,
}

/// The effective settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// For each `section.key`: its value as text, without passwords, and its source.
    pub sources: BTreeMap<String, (String, String)>,
    /// Variables of the environment that look like settings and are links to services of Kubernetes.
    pub ignored: Vec<String>,
}

/// What is wrong with the settings, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The settings of this process: defaults, then the file, then the environment, then `overrides`.
///
/// # Errors
/// A file that cannot be read or parsed, an unknown key, a value of the wrong type or out of range.
pub fn load(
    overrides: &Overrides,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let mut merged = Merged::defaults()?;
    match &overrides.file {
        Some(path) => merged.add_file(path)?,
        None if Path::new(DEFAULT_FILE).exists() => merged.add_file(Path::new(DEFAULT_FILE))?,
        None => {}
    }
    merged.add_environment(environment)?;
    for (flag, path, text) in &overrides.values {
        merged.set_text(path, text, format!("command line, {flag}"))?;
    }
    overrides.canary.as_deref().map_or(Ok(()), |path| merged.add_file(path))?;
    merged.finish()
}

struct Merged {
    values: Table,
    sources: BTreeMap<String, String>,
    ignored: Vec<String>,
}

impl Merged {
    fn defaults() -> Result<Self, ConfigError> {
        let values = Table::try_from(Config::default()).map_err(|error| {
            ConfigError::new(format!("the defaults cannot be written: {error}"))
        })?;
        let mut sources = BTreeMap::new();
        for (section, keys) in &values {
            for key in keys.as_table().into_iter().flat_map(Table::keys) {
                sources.insert(format!("{section}.{key}"), "default".to_owned());
            }
        }
        Ok(Self { values, sources, ignored: Vec::new() })
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(format!(
                "{shown} cannot be read: {error}; check the path and its rights"
            ))
        })?;
        let table: Table = text
            .parse()
            .map_err(|error| ConfigError::new(format!("{shown} is not valid TOML: {error}")))?;
        for (section, keys) in table {
            let Value::Table(keys) = keys else {
                let hint = self.suggestion(&section);
                return Err(ConfigError::new(format!(
                    "{shown}: {section} stands outside a section such as [server]{hint}"
                )));
            };
            for (key, value) in keys {
                self.set(&format!("{section}.{key}"), value, shown.to_string())?;
            }
        }
        Ok(())
    }

    fn add_environment(
        &mut self,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        let mut named: Vec<_> = environment.filter(|(_, text)| !text.trim().is_empty()).collect();
        // Terrace's own names come last: they win over the general ones.
        named.sort_by_key(|(name, _)| (name.starts_with("TERRACE_"), name.clone()));
        self.add_shards(("SHARD_", 0, "shards.urls"), &mut named)?;
        self.add_shards(("DB_SHARD", 1, "enterprise.shard_urls"), &mut named)?;
        for (name, text) in &named {
            let known = DOCUMENTED_NAMES.iter().find(|(known, _)| known == name);
            let path = match (known, name.strip_prefix("TERRACE_")) {
                (Some((_, path)), _) => (*path).to_owned(),
                (None, Some(rest)) => match rest.to_lowercase().split_once('_') {
                    Some((section, key)) => format!("{section}.{key}"),
                    None => rest.to_lowercase(),
                },
                (None, None) => continue,
            };
            if !self.sources.contains_key(&path) && service_links::is_one(name, text.trim()) {
                self.ignored.push(name.clone());
                continue;
            }
            self.set_text(&path, text, format!("environment, {name}"))?;
        }
        // Last, as the names of the regions may have come from the environment, too.
        self.add_regions("DB", "database_urls", &named)?;
        self.add_regions("CACHE", "cache_urls", &named)
    }

    /// `DB_US_EAST_URL`, `CACHE_US_EAST_URL`, ...: one a region, or none.
    fn add_regions(
        &mut self,
        start: &str,
        key: &str,
        named: &[(String, String)],
    ) -> Result<(), ConfigError> {
        let names = self.values["regions"]["names"].as_array().cloned().unwrap_or_default();
        let mut urls = Vec::new();
        let mut missing = None;
        for name in names.iter().filter_map(Value::as_str) {
            let variable = format!("{start}_{}_URL", regions::in_environment(name));
            match named.iter().find(|(known, _)| *known == variable) {
                Some((_, url)) => urls.push(Value::String(url.clone())),
                None => {
                    missing = missing.or((name != "-").then_some(variable));
                    urls.push(Value::String("-".to_owned()));
                }
            }
        }
        if urls.iter().all(|url| url.as_str() == Some("-")) {
            return Ok(());
        }
        if let Some(variable) = missing {
            return Err(ConfigError::new(format!(
                "environment: {variable} is missing, and other regions have theirs; give every region \
                 of regions.names its own"
            )));
        }
        let source = format!("environment, {start}_..._URL");
        self.set(&format!("regions.{key}"), Value::Array(urls), source)
    }

    /// `SHARD_0_URL`, `SHARD_1_URL`, ...: as many as there are. Those of level 10 are numbered from 1.
    fn add_shards(
        &mut self,
        (start, first, path): (&str, usize, &str),
        named: &mut Vec<(String, String)>,
    ) -> Result<(), ConfigError> {
        let number = |name: &str| -> Option<usize> {
            name.strip_prefix(start)?.strip_suffix("_URL")?.parse().ok()
        };
        let mut urls = Vec::new();
        named.retain(|(name, text)| match number(name) {
            Some(number) => {
                urls.push((number, text.clone()));
                false
            }
            None => true,
        });
        urls.sort();
        let mut places = urls.iter().zip(first..);
        if let Some((_, place)) = places.find(|((number, _), place)| number != place) {
            return Err(ConfigError::new(format!(
                "environment: {start}{place}_URL is missing; number the shards from {first} without a gap"
            )));
        }
        if urls.is_empty() {
            return Ok(());
        }
        let urls = urls.into_iter().map(|(_, url)| Value::String(url)).collect();
        self.set(path, Value::Array(urls), format!("environment, {start}{first}_URL, ..."))
    }

    /// Sets a value given as text, in the type that its default has.
    fn set_text(&mut self, path: &str, text: &str, source: String) -> Result<(), ConfigError> {
        let default = path
            .split_once('.')
            .and_then(|(section, key)| self.values.get(section).and_then(|keys| keys.get(key)));
        let value = match default {
            Some(Value::Integer(_)) => text.trim().parse().map(Value::Integer).map_err(|_| {
                let must = bounds::number(path);
                ConfigError::new(format!("{path} ({source}) is {text:?}; it must be {must}"))
            })?,
            Some(Value::Boolean(_)) => text.trim().parse().map(Value::Boolean).map_err(|_| {
                ConfigError::new(format!("{path} ({source}) is {text:?}; it must be true or false"))
            })?,
            Some(Value::Array(_)) => {
                let items = text.split_whitespace().map(|item| Value::String(item.to_owned()));
                Value::Array(items.collect())
            }
            _ => Value::String(text.to_owned()),
        };
        self.set(path, value, source)
    }

    fn set(&mut self, path: &str, value: Value, source: String) -> Result<(), ConfigError> {
        let value = trimmed(value);
        let place = path
            .split_once('.')
            .and_then(|(section, key)| self.values.get_mut(section)?.as_table_mut()?.get_mut(key));
        let Some(place) = place else {
            let hint = self.suggestion(path);
            return Err(ConfigError::new(format!("{source}: there is no setting {path}{hint}")));
        };
        // A word may be true or false.
        let value = match (&*place, value) {
            (Value::String(_), Value::Boolean(flag)) => Value::String(flag.to_string()),
            // One of a list may stand for the list.
            (Value::Array(_), Value::Integer(one)) => Value::Array(vec![one.to_string().into()]),
            (_, value) => value,
        };
        if !place.same_type(&value) {
            return Err(ConfigError::new(format!(
                "{source}: {path} must be {}, not {}",
                kind(place),
                kind(&value)
            )));
        }
        if let Some(must) = bounds::broken_by(path, &value) {
            let message = format!("{path} ({source}) is {value}; it must be {must}");
            return Err(ConfigError::new(message));
        }
        *place = value;
        self.sources.insert(path.to_owned(), source);
        Ok(())
    }

    /// The nearest known setting, as the end of a sentence.
    fn suggestion(&self, wrong: &str) -> String {
        self.sources
            .keys()
            .map(|known| {
                let short = known.split_once('.').map_or(known.as_str(), |(_, key)| key);
                // A part of a name means that name.
                if known.starts_with(wrong) || short.starts_with(wrong) {
                    return (1.0, known);
                }
                let likeness =
                    strsim::jaro_winkler(known, wrong).max(strsim::jaro_winkler(short, wrong));
                (likeness, known)
            })
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.7)
            .map(|(_, known)| format!("; did you mean {known}?"))
            .unwrap_or_else(|| "; `terrace config` lists all settings".to_owned())
    }

    fn finish(self) -> Result<Loaded, ConfigError> {
        let mut sources = BTreeMap::<_, (String, String)>::new();
        for (path, source) in self.sources {
            let value = path
                .split_once('.')
                .and_then(|(section, key)| self.values.get(section)?.get(key))
                .map(|value| match value {
                    Value::String(text) if path == SECRET && !text.is_empty() => "***".to_owned(),
                    Value::String(text) => redacted(text),
                    Value::Array(items) => {
                        let texts = items.iter().filter_map(Value::as_str).map(redacted);
                        texts.collect::<Vec<_>>().join(" ")
                    }
                    other => other.to_string(),
                });
            sources.insert(path, (value.unwrap_or_default(), source));
        }
        let config: Config = self.values.try_into().map_err(|error: toml::de::Error| {
            ConfigError::new(format!("the settings cannot be read: {}", error.message()))
        })?;
        if config.mode()? != Mode::Local && config.distance != DistanceConfig::default() {
            return Err(ConfigError::new(
                "distance is kept from private servers only; use --stores local, or leave out \
                 --database-rtt, --cache-rtt, --wan and [distance]",
            ));
        }
        config.check_sections()?;
        if config.database.pool_min > config.database.pool_max {
            let [least, most] = ["database.pool_min", "database.pool_max"].map(|path| {
                let (value, source) = &sources[path];
                format!("{path} ({source}) is {value}")
            });
            return Err(ConfigError::new(format!(
                "{least}, and {most}; the minimum must not be above the maximum"
            )));
        }
        Ok(Loaded { config, sources, ignored: self.ignored })
    }
}

/// No text means the spaces around it; a line's end comes with secrets that are read from files.
fn trimmed(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.trim().to_owned()),
        Value::Array(items) => Value::Array(items.into_iter().map(trimmed).collect()),
        other => other,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(environment: &[(&str, &str)], file: Option<&str>) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("test.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("a file");
        }
        let overrides = Overrides { file: file.map(|_| path), ..Overrides::default() };
        let environment =
            environment.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        load(&overrides, environment).map_err(|error| error.to_string())
    }

    #[test]
    fn later_sources_win_and_are_named() {
        let file = "[server]\nport_base = 9000\n[database]\npool_max = 3\n";
        let loaded = with(
            &[("DATABASE_URL", "postgres://u:p@h/d"), ("TERRACE_DATABASE_POOL_MAX", "4")],
            Some(file),
        )
        .expect("good settings");
        assert_eq!(loaded.config.server.port_base, 9000);
        assert_eq!(loaded.config.database.pool_max, 4);
        assert_eq!(loaded.config.mode(), Ok(super::super::Mode::Servers));
        let (shown, source) = &loaded.sources["database.url"];
        assert_eq!(
            (shown.as_str(), source.as_str()),
            ("postgres://u:***@h/d", "environment, DATABASE_URL")
        );
    }

    #[test]
    fn shards_are_as_many_as_are_numbered() {
        let (first, second) = ("postgres://u:p@a/d", "postgres://u:p@b/d");
        let loaded = with(&[("SHARD_1_URL", second), ("SHARD_0_URL", first)], None);
        let loaded = loaded.expect("good settings");
        assert_eq!(loaded.config.shards.urls, [first, second]);
        assert_eq!(loaded.config.mode(), Ok(super::super::Mode::Servers));
        assert_eq!(loaded.sources["shards.urls"].0, "postgres://u:***@a/d postgres://u:***@b/d");
        let file = format!("[shards]\nurls = [\"{first}\"]\npartitioner = \"range:m\"");
        let loaded = with(&[], Some(&file)).expect("good settings");
        assert_eq!(loaded.config.shards.urls, [first]);
        let gap = with(&[("SHARD_0_URL", first), ("SHARD_2_URL", second)], None);
        assert!(gap.expect_err("a gap").contains("SHARD_1_URL is missing"));
    }

    #[test]
    fn regions_have_the_names_of_the_documents() {
        let urls = ["us", "eu", "asia"].map(|host| format!("postgres://u:p@{host}/d"));
        let named = [
            ("DB_ASIA_PAC_URL", urls[2].as_str()),
            ("DB_US_EAST_URL", &urls[0]),
            ("DB_EU_WEST_URL", &urls[1]),
            ("REPLICATION_ENABLED", "false"),
            // Of another level.
            ("DB_SHARD1_URL", "postgres://s/d"),
        ];
        let loaded = with(&named, None).expect("good settings");
        assert_eq!(loaded.config.regions.database_urls, urls);
        assert_eq!(loaded.config.enterprise.shard_urls, ["postgres://s/d"]);
        assert!(!loaded.config.regions.replication && loaded.config.regions.cache_urls.is_empty());
        assert_eq!(loaded.config.mode(), Ok(super::super::Mode::Servers));
        assert!(loaded.sources["regions.database_urls"].0.starts_with("postgres://u:***@us/d "));
        let gap = with(&named[1..], None).expect_err("a gap");
        assert!(gap.contains("DB_ASIA_PAC_URL is missing"), "{gap}");
        let file = "[regions]\nnames = [\"mars\"]\nhere = \"venus\"";
        assert!(
            with(&[], Some(file)).expect_err("no such region").contains("the regions are mars")
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let cases = [
            (with(&[], Some("[server]\nport_bas = 1")), "did you mean server.port_base?"),
            (with(&[], Some("[sever]\nport_base = 1")), "did you mean server.port_base?"),
            (with(&[], Some("port_base = 1")), "outside a section"),
            (with(&[], Some("[server]\nport_base = \"x\"")), "must be a whole number"),
            (with(&[], Some("[server]\nport_base = 70000")), "from 0 to 65525"),
            (with(&[], Some("[server\n")), "not valid TOML"),
            (with(&[("TERRACE_CACHE_TTL", "1")], None), "did you mean cache.ttl_seconds?"),
            (with(&[("CACHE_TTL", "soon")], None), "must be a whole number"),
            (with(&[("CACHE_TTL", "0")], None), "from 1 to"),
            (with(&[("TERRACE_STORES_MODE", "docker")], None), "embedded, local or servers"),
            (with(&[("DB_POOL_MIN_SIZE", "20")], None), "must not be above"),
            (with(&[("TERRACE_TLS_KEY", "a.pem")], None), "tls.certificate is not; set both"),
            (with(&[("TERRACE_EDGE_PUBLIC", "shop/")], None), "prefix=seconds, from 1 to 86400"),
            (with(&[("TERRACE_EDGE_PUBLIC", "a/=1 a/=2")], None), "\"a/\" twice"),
            (with(&[("TERRACE_EDGE_PURGE", "http://a")], None), "edge.public is not"),
        ];
        for (answer, wanted) in cases {
            let error = answer.expect_err(wanted);
            assert!(error.contains(wanted), "{error:?} should say {wanted:?}");
        }
    }

    #[test]
    fn fuzzed_files_and_variables_are_read_or_refused() {
        let like = &[
            "[server]\nport_base = 9000\n[regions]\nnames = [\"a\", \"b\"]\n",
            "[regions]\nplaces = \"us-east=NA,SA\"\nhomes = \"eu/=eu-west\"\n[limits]\nenabled = \"true\"\n",
            "[database]\nurl = \"postgres://u:p@h1,h2:5433/d?x=1\"\npool_max = 3\n",
        ];
        let tried =
            terrace_core::testkit::fuzzed(&terrace_core::testkit::bytes_like(like), |input| {
                let text = String::from_utf8_lossy(&input);
                let (name, _) = DOCUMENTED_NAMES[input.len() % DOCUMENTED_NAMES.len()];
                let _ = with(&[(name, text.lines().last().unwrap_or_default())], None);
                assert!(with(&[], Some(&text)).err().is_none_or(|why| !why.is_empty()));
            });
        println!("{tried} inputs were tried");
    }
}
