//! What values settings can have, beyond their types.

use std::ops::RangeInclusive;

use toml::Value;

/// Every whole number. The most is where larger values mean nothing, or overflow.
pub(super) const NUMBERS: [(&str, RangeInclusive<i64>); 32] = [
    ("cache.command_timeout_ms", 1..=DAY_MS),
    ("cache.near_max_bytes", 0..=TEBI),
    ("cache.near_max_records", 0..=TEBI),
    ("cache.near_ttl_seconds", 1..=TEN_YEARS_SECONDS),
    ("cache.ttl_seconds", 1..=TEN_YEARS_SECONDS),
    ("cqrs.stream_max_events", 1..=TEBI),
    ("database.acquire_timeout_ms", 1..=DAY_MS),
    ("database.pool_max", 1..=10_000),
    ("database.pool_min", 0..=10_000),
    ("distance.cache_us", 0..=MINUTE_US),
    ("distance.database_us", 0..=MINUTE_US),
    ("journal.max_bytes", 1..=TEBI),
    ("journal.max_writes", 1..=TEBI),
    // NATS takes no more.
    ("journal.replicas", 1..=5),
    ("journal.takeover_seconds", 1..=86_400),
    ("jwt.leeway_seconds", 0..=600),
    ("limits.address_requests", 0..=GIGA),
    ("limits.instances", 1..=10_000),
    ("limits.window_seconds", 1..=86_400),
    ("metrics.port", 0..=65_535),
    ("regions.max_clock_drift_ms", 1..=DAY_MS),
    ("replicas.count", 1..=100),
    ("replicas.max_lag_ms", 0..=DAY_MS),
    ("server.drain_delay_ms", 0..=DAY_MS),
    ("server.drain_timeout_ms", 0..=DAY_MS),
    ("server.max_body_bytes", 1..=GIBI),
    ("server.max_connections", 1..=1_000_000),
    // Level 10 listens on this port + 10.
    ("server.port_base", 0..=65_525),
    ("server.request_timeout_ms", 1..=DAY_MS),
    ("server.worker_threads", 0..=1024),
    // One slot each, at the least.
    ("shards.count", 1..=terrace_core::shard::SLOTS as i64),
    ("traces.sample_one_in", 1..=GIGA),
];

const MINUTE_US: i64 = 60_000_000;
const DAY_MS: i64 = 86_400_000;
const TEN_YEARS_SECONDS: i64 = 315_360_000;
const GIGA: i64 = 1_000_000_000;
const GIBI: i64 = 1 << 30;
const TEBI: i64 = 1 << 40;

/// Every setting that is one of some words.
const WORDS: [(&str, &[&str]); 7] = [
    ("auth.enabled", GUARD),
    ("journal.engine", &["auto", "sqlite", "redis", "nats"]),
    ("journal.flusher", &["inside", "apart"]),
    ("limits.enabled", GUARD),
    ("log.format", &["text", "json"]),
    ("metrics.enabled", GUARD),
    ("stores.mode", &["auto", "embedded", "local", "servers"]),
];

/// What a guard can be: on by the level, on, off.
const GUARD: &[&str] = &["auto", "true", "false"];

/// What a whole number must be, as the end of a sentence.
pub(super) fn number(path: &str) -> String {
    let bounds = NUMBERS.iter().find(|(known, _)| *known == path);
    let bounds = bounds.map(|(_, it)| format!(" from {} to {}", it.start(), it.end()));
    format!("a whole number{}", bounds.unwrap_or_default())
}

/// What the setting must be, as the end of a sentence, if the value is not that.
pub(super) fn broken_by(path: &str, value: &Value) -> Option<String> {
    match value {
        Value::Integer(number) => {
            let (_, bounds) = NUMBERS.iter().find(|(known, _)| *known == path)?;
            (!bounds.contains(number)).then(|| self::number(path))
        }
        Value::String(text) if path == "stores.namespace" => {
            let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            (text.is_empty() || !text.chars().all(fits))
                .then(|| "letters, digits, - and _, as Redis and NATS both take them".to_owned())
        }
        Value::String(text) => {
            let (_, words) = WORDS.iter().find(|(known, _)| *known == path)?;
            let (last, others) = words.split_last()?;
            (!words.contains(&text.as_str())).then(|| format!("{} or {last}", others.join(", ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::*;
    use crate::config::Config;

    #[test]
    fn every_whole_number_has_bounds_that_its_type_and_its_default_keep() {
        let defaults = Table::try_from(Config::default()).unwrap();
        let mut known = Vec::new();
        for (section, keys) in &defaults {
            for (key, default) in keys.as_table().unwrap() {
                let path = format!("{section}.{key}");
                assert_eq!(broken_by(&path, default), None, "{path}");
                let Some((_, bounds)) = NUMBERS.iter().find(|(known, _)| *known == path) else {
                    assert!(!default.is_integer(), "{path} has no bounds");
                    continue;
                };
                for edge in [bounds.start(), bounds.end()] {
                    let mut changed = defaults.clone();
                    changed[section][key] = Value::Integer(*edge);
                    changed.try_into::<Config>().expect(&path);
                }
                known.push(path);
            }
        }
        assert_eq!(known.len(), NUMBERS.len());
    }
}
