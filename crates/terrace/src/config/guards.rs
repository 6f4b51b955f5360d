//! Settings of what stands before the endpoints.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What is measured of requests, and where it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Whether there is `/metrics`: `true`, `false` or `auto`, which means level 10. Default `auto`.
    pub enabled: String,
    /// A port that serves `/metrics` as well, and nothing of the level's data. Default 0: none.
    pub port: u16,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { enabled: "auto".into(), port: 0 }
    }
}

/// Spans of requests, for a collector of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// The collector, which takes spans by OTLP/HTTP: `http://host:4318`. Default none: there are no spans.
    pub endpoint: String,
    /// One in so many requests is traced, where the client has not decided by `traceparent`. Default 1: all.
    pub sample_one_in: u32,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_one_in: 1 }
    }
}

impl TracesConfig {
    /// Refuses a collector where this build has no spans.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.endpoint.is_empty() || cfg!(feature = "otlp") {
            return Ok(());
        }
        Err(ConfigError::new(
            "traces.endpoint is set, and this build has no spans; build with `cargo build --release \
             --features otlp`",
        ))
    }
}

/// Keys of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// `true`, `false`, or `auto`: at level 10. Whether requests need a key. Default `auto`.
    pub enabled: String,
    /// A key that may do everything, beside those of `terrace keys`. Default none.
    pub api_key: String,
    /// Whether `/stats`, `/metrics` and their like need a key, too. Default `false`.
    pub protect_figures: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { enabled: "auto".into(), api_key: String::new(), protect_figures: false }
    }
}

/// Tokens of an identity provider, beside keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// The key set of the provider (JWKS): a file, or a URL. Default none: there are no tokens.
    pub jwks: String,
    /// Who issues tokens: their claim `iss`. Default none.
    pub issuer: String,
    /// Whom they are for: one of their claim `aud`. Default none.
    pub audience: String,
    /// Algorithms that are taken: `RS256`, `ES256`, `EdDSA`. Default `RS256`.
    pub algorithms: Vec<String>,
    /// The claim with `read`, `write` and `admin`. Default `scope`.
    pub scope_claim: String,
    /// The claim with what the keys of records begin with that a token may touch. Default none: all.
    pub prefix_claim: String,
    /// How far the provider's clock and this one may differ, in seconds. Default 30.
    pub leeway_seconds: u64,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            jwks: String::new(),
            issuer: String::new(),
            audience: String::new(),
            algorithms: vec!["RS256".into()],
            scope_claim: "scope".into(),
            prefix_claim: String::new(),
            leeway_seconds: 30,
        }
    }
}

/// What clients may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// `true`, `false`, or `auto`: at level 10. Whether requests are limited. Default `auto`.
    pub enabled: String,
    /// What the requests of a client may cost in any window: of a key, or of an address where there are no
    /// keys. Further windows are `requests/seconds`, and a request must fit into all. Default `100`.
    pub requests: Vec<String>,
    /// The length of the window of a number alone, in seconds. Default 60.
    pub window_seconds: u64,
    /// The same for an address in the first window, whatever keys its requests have, and in further ones in
    /// proportion. Default 0: ten times `requests`.
    pub address_requests: u32,
    /// The Redis in which requests are counted, `redis://:password@host:port/number` or `rediss://...`. Default none: that
    /// of the far cache; in the embedded mode the process counts.
    pub url: String,
    /// While that Redis cannot be reached, each instance admits its part of the limit as one of so many.
    /// Default 1.
    pub instances: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            enabled: "auto".into(),
            requests: vec!["100".into()],
            window_seconds: 60,
            address_requests: 0,
            url: String::new(),
            instances: 1,
        }
    }
}

impl LimitsConfig {
    const MOST_REQUESTS: u32 = 1_000_000_000;
    /// A day.
    const LONGEST: u64 = 86_400;
    /// Each one is counted for each client.
    const MOST_WINDOWS: usize = 4;

    /// Requests and seconds of each window, the first one first.
    ///
    /// # Errors
    /// For what is no such pair, for two windows of one length, for none, and for too many.
    pub fn windows(&self) -> Result<Vec<(u32, u64)>, ConfigError> {
        let mut all = Vec::<(u32, u64)>::new();
        for text in &self.requests {
            let window = match text.split_once('/') {
                Some((requests, seconds)) => requests.parse().ok().zip(seconds.parse().ok()),
                None => text.parse().ok().map(|requests| (requests, self.window_seconds)),
            };
            let window = window.filter(|(requests, seconds)| {
                (1..=Self::MOST_REQUESTS).contains(requests)
                    && (1..=Self::LONGEST).contains(seconds)
            });
            let Some(window) = window else {
                return Err(ConfigError::new(format!(
                    "limits.requests has {text:?}; it must be a number from 1 to {}, or \
                     requests/seconds with 1 to {} seconds, as in 20/1",
                    Self::MOST_REQUESTS,
                    Self::LONGEST
                )));
            };
            if all.iter().any(|(_, seconds)| *seconds == window.1) {
                return Err(ConfigError::new(format!(
                    "limits.requests has two windows of {} s; leave one out",
                    window.1
                )));
            }
            all.push(window);
        }
        if !(1..=Self::MOST_WINDOWS).contains(&all.len()) {
            return Err(ConfigError::new(format!(
                "limits.requests has {} windows; it must be one to {}, or limits.enabled false",
                all.len(),
                Self::MOST_WINDOWS
            )));
        }
        Ok(all)
    }

    /// The same for an address before keys are looked at.
    ///
    /// # Errors
    /// As [`windows`](Self::windows).
    pub fn address_windows(&self) -> Result<Vec<(u32, u64)>, ConfigError> {
        let windows = self.windows()?;
        let first = u64::from(windows.first().map_or(1, |(requests, _)| *requests));
        let scaled = |requests: u32| match self.address_requests {
            0 => requests.saturating_mul(10),
            most => {
                let scaled = (u64::from(requests) * u64::from(most)).div_ceil(first);
                u32::try_from(scaled).unwrap_or(u32::MAX)
            }
        };
        Ok(windows.into_iter().map(|(requests, seconds)| (scaled(requests), seconds)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: &[&str]) -> LimitsConfig {
        let requests = requests.iter().map(|&it| it.into()).collect();
        LimitsConfig { requests, ..LimitsConfig::default() }
    }

    #[test]
    fn a_number_alone_is_of_the_named_window_and_others_name_theirs() {
        let limits = limits(&["100", "20/1"]);
        assert_eq!(limits.windows().unwrap(), [(100, 60), (20, 1)]);
        assert_eq!(limits.address_windows().unwrap(), [(1000, 60), (200, 1)]);
        let limits = LimitsConfig { address_requests: 250, ..limits };
        assert_eq!(limits.address_windows().unwrap(), [(250, 60), (50, 1)]);
    }

    #[test]
    fn what_is_no_window_is_refused_with_what_it_must_be() {
        for wrong in [&["0"][..], &["1/0"], &["x"], &["5/86401"], &["5/1/1"], &["-1"]] {
            let error = limits(wrong).windows().unwrap_err().to_string();
            assert!(error.contains(wrong[0]) && error.contains("20/1"), "{error}");
        }
        for (wrong, word) in [(&["100", "5/60"][..], "two windows"), (&[], "0 windows")] {
            let error = limits(wrong).windows().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(limits(&["1/1", "2/2", "3/3", "4/4", "5/5"]).windows().is_err());
    }
}
