//! What counts the requests of clients over all instances.

use std::sync::Arc;

use terrace_core::history::lineage;
use terrace_core::{Error, Quota, Quotas, RateLimiter, Result, SharedPermits};
use terrace_stores::{RedisPermits, RedisPermitsOptions};

use super::Engines;
use crate::config::{ConfigError, millis, seconds};

impl Engines {
    /// Limiters of requests by address and by key, which share a counter with all other instances.
    pub(in crate::levels) async fn limiters(&self) -> Result<[RateLimiter; 2]> {
        let config = &self.config.limits;
        let shared = self.shared_permits().await?;
        let wrong = |error: ConfigError| Error::invalid(error.to_string());
        let by_address = config.address_windows().map_err(wrong)?;
        let by_key = config.windows().map_err(wrong)?;
        Ok([by_address, by_key]
            .map(|windows| RateLimiter::new(quotas(windows), shared.clone(), self.runtime.clone())))
    }

    async fn shared_permits(&self) -> Result<Option<Arc<SharedPermits>>> {
        let config = &self.config.limits;
        let url = match config.url.as_str() {
            "" => self.mode.permits_url()?,
            url => Some(url.to_owned()),
        };
        let Some(url) = url else { return Ok(None) };
        // Its name tells this installation from others on the same Redis.
        let grants = self.mode.grants(self).await?;
        grants.store.close().await?;
        let (name, level) = (lineage(&grants.history), self.level);
        let options = RedisPermitsOptions {
            command_timeout: millis(self.config.cache.command_timeout_ms),
            ..RedisPermitsOptions::new(url, format!("{}:{name}:l{level}", self.namespace()))
        };
        let permits = Arc::new(RedisPermits::new(options, self.runtime.clone())?);
        let shared = SharedPermits::new(permits, config.instances, self.runtime.clone());
        Ok(Some(Arc::new(shared)))
    }
}

fn quotas(windows: Vec<(u32, u64)>) -> Quotas {
    let quota = |(limit, length)| Quota { limit, window: seconds(length) };
    windows.into_iter().map(quota).collect()
}
