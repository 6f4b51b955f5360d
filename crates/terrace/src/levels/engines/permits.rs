//! What counts the requests of clients over all instances.

use std::sync::Arc;

use terrace_core::history::lineage;
use terrace_core::{Quota, RateLimiter, Result, SharedPermits};
use terrace_stores::{RedisPermits, RedisPermitsOptions};

use super::Engines;
use crate::config::{millis, seconds};

impl Engines {
    /// Limiters of requests by address and by key, which share a counter with all other instances.
    pub(in crate::levels) async fn limiters(&self) -> Result<[RateLimiter; 2]> {
        let config = &self.config.limits;
        let shared = self.shared_permits().await?;
        let by_address = match config.address_requests {
            0 => config.requests.saturating_mul(10),
            limit => limit,
        };
        Ok([by_address, config.requests].map(|limit| {
            let quota = Quota { limit, window: seconds(config.window_seconds) };
            RateLimiter::new(quota, shared.clone(), self.runtime.clone())
        }))
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
