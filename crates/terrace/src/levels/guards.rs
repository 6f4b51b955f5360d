//! What stands before the endpoints of a level, outermost first.

use std::sync::Arc;

use terrace_core::{Error, Result, Runtime};

use super::{Engines, Level};
use crate::access::{ApiKey, KeyRing, TokenOptions, Tokens};
use crate::config::{Config, JwtConfig, seconds};
use crate::http::{Authenticate, FrontCaches, Guards, Metrics, RateLimit, TellFrontCaches};
use crate::traces;

/// The guards of a level.
#[derive(Debug)]
pub struct Guarding {
    /// All of them.
    pub guards: Guards,
    /// Whether requests need a key.
    pub asks_for_keys: bool,
    /// The first key of an installation that had none, to show it once.
    pub first_key: Option<ApiKey>,
}

/// The guards that a level has by itself or by the settings.
///
/// # Errors
/// What they need and cannot reach.
pub async fn guards(level: &Level, engines: &Engines) -> Result<Guarding> {
    let (config, runtime) = (engines.config(), engines.runtime());
    // Outermost, so that what the other guards refuse has a span, too.
    let mut steps = Vec::from_iter(traces::guard());
    if is_measured(level, config) {
        // Then this, so that it is counted, too.
        steps.push(Arc::new(Metrics::default()));
    }
    if let Some(caches) = front_caches(config, runtime)? {
        // Further in than what counts, further out than what refuses.
        steps.push(Arc::new(TellFrontCaches::new(caches)));
    }
    let mut first_key = None;
    let asks_for_keys = is_on(&config.auth.enabled, level);
    let mut by_key = None;
    if is_on(&config.limits.enabled, level) {
        let ([addresses, clients], proxies) =
            (engines.limiters().await?, engines.trusted_proxies()?);
        if asks_for_keys {
            // Before keys are looked at, so that they cannot be tried without end.
            let [before, after] = RateLimit::around_keys(addresses, clients, proxies);
            steps.push(Arc::new(before));
            by_key = Some(after);
        } else {
            steps.push(Arc::new(RateLimit::alone(clients, proxies)));
        }
    }
    if asks_for_keys {
        let fixed = Some(config.auth.api_key.as_str()).filter(|key| !key.is_empty());
        if fixed.is_some_and(|key| key.chars().count() < SHORT) {
            tracing::warn!(
                "auth.api_key is short enough to be guessed; make one with `terrace keys create`"
            );
        }
        let ring = KeyRing::open(engines.grants().await?, fixed, runtime.clone()).await?;
        first_key = ring.first().await?;
        let tokens = match token_options(&config.jwt) {
            Some(options) => Some(Tokens::open(&options, runtime).await?),
            None => None,
        };
        let figures = config.auth.protect_figures;
        steps.push(Arc::new(Authenticate::new(ring, tokens, figures, runtime.clone())));
    }
    steps.extend(by_key.map(|step| Arc::new(step) as _));
    Ok(Guarding { guards: Guards::new(steps), asks_for_keys, first_key })
}

/// The caches in front, where they may keep anything.
fn front_caches(config: &Config, runtime: &Runtime) -> Result<Option<FrontCaches>> {
    let prefixes = config.edge.prefixes().map_err(|error| Error::invalid(error.to_string()))?;
    if prefixes.is_empty() {
        return Ok(None);
    }
    FrontCaches::new(prefixes, &config.edge.purge, runtime).map(Some)
}

/// What tokens must be, where an identity provider is named.
fn token_options(jwt: &JwtConfig) -> Option<TokenOptions> {
    let JwtConfig { issuer, audience, jwks, algorithms, scope_claim, .. } = jwt.clone();
    let prefix_claim = Some(jwt.prefix_claim.clone()).filter(|name| !name.is_empty());
    let leeway = seconds(jwt.leeway_seconds);
    let options =
        TokenOptions { issuer, audience, jwks, algorithms, scope_claim, prefix_claim, leeway };
    (!jwt.jwks.is_empty()).then_some(options)
}

/// Characters of a key that somebody made up, below which it can be guessed.
const SHORT: usize = 20;

/// Whether it has `/metrics`.
pub fn is_measured(level: &Level, config: &Config) -> bool {
    is_on(&config.metrics.enabled, level)
}

/// Whether a guard is on, by the word of its setting.
fn is_on(word: &str, level: &Level) -> bool {
    match word {
        "auto" => level.guarded,
        word => word == "true",
    }
}
