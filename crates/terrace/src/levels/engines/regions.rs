//! The databases and caches of regions.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Cache, Error, RegionOptions, RegionStore, Result};
use terrace_stores::SqliteStore;

use super::Engines;
use crate::config::{HomeSettings, RegionSettings, millis};
use crate::http::{ClientPlaces, Geography, TrustedProxies};

/// A region, as each region reaches it.
#[derive(Clone, Debug)]
pub struct RegionEngines {
    /// Which region it is.
    pub options: RegionOptions,
    /// As it is reached from each region, in their order. Where all are in one place, one serves all.
    pub links: Vec<Arc<RegionEngine>>,
}

/// The database and the cache of a region.
#[derive(Debug)]
pub struct RegionEngine {
    /// Its database.
    pub database: Arc<dyn RegionStore>,
    /// Its cache.
    pub(in crate::levels) cache: Arc<dyn Cache>,
    /// The round trip to both.
    pub(in crate::levels) away: Duration,
}

impl Engines {
    /// Every region. Its files are this process's own.
    pub(in crate::levels) async fn regions(&self) -> Result<Vec<RegionEngines>> {
        self.mode.claim(self)?;
        self.mode.regions(self).await
    }

    /// The same beside the process that serves them.
    ///
    /// # Errors
    /// What cannot be reached, and the next step.
    pub async fn regions_beside(&self) -> Result<Vec<RegionEngines>> {
        self.mode.regions(self).await
    }

    /// What the settings say of each region, in their order.
    pub(super) fn region_settings(&self) -> Result<Vec<(RegionSettings, RegionOptions)>> {
        let config = &self.config.regions;
        let homes = config.homes().map_err(wrong)?;
        let regions = config.regions().map_err(wrong)?.into_iter().map(|settings| {
            let stays = |home: &&HomeSettings| home.resides && home.region == settings.name;
            let resident = homes.iter().filter(stays).map(|home| home.prefix.clone()).collect();
            let max_clock_drift = millis(config.max_clock_drift_ms);
            let plain = RegionOptions::new(settings.id, settings.name);
            (settings, RegionOptions { resident, max_clock_drift, ..plain })
        });
        Ok(regions.collect())
    }

    /// Keys that have a home.
    pub(in crate::levels) fn homes(&self) -> Result<Vec<terrace_layers::Home>> {
        let homes = self.config.regions.homes().map_err(wrong)?.into_iter().map(|home| {
            let HomeSettings { prefix, region, resides } = home;
            terrace_layers::Home { prefix, region, resides }
        });
        Ok(homes.collect())
    }

    /// Whether regions follow each other, and whether this process follows into all of them.
    pub(in crate::levels) fn replication(&self) -> (bool, bool) {
        let config = &self.config.regions;
        (config.replication, config.here.is_empty())
    }

    /// Where requests go.
    pub(in crate::levels) fn geography(&self) -> Result<Geography> {
        let config = &self.config.regions;
        let regions = config.regions().map_err(wrong)?;
        let clients = ClientPlaces {
            file: config.geoip_file.clone().into(),
            nearest: config.places().map_err(wrong)?,
            proxies: self.trusted_proxies()?,
        };
        let regions = regions.iter().map(|region| (region.name, region.id)).collect();
        Ok(Geography::new(regions, self.here()?, clients, &self.runtime))
    }

    /// The proxies whose word on their clients is believed.
    pub(in crate::levels) fn trusted_proxies(&self) -> Result<TrustedProxies> {
        Ok(TrustedProxies::new(self.config.regions.proxies().map_err(wrong)?))
    }

    /// The region of this process.
    pub(in crate::levels) fn here(&self) -> Result<terrace_core::RegionName> {
        self.config.regions.local().map_err(wrong)
    }
}

/// The settings were looked at when they were read.
pub(super) fn wrong(error: impl Display) -> Error {
    Error::invalid(error.to_string())
}

/// Regions that are all in one place, each with a database and a cache.
pub(super) fn in_one_place(
    each: impl IntoIterator<Item = (RegionOptions, RegionEngine)>,
) -> Vec<RegionEngines> {
    let each = each.into_iter().collect::<Vec<_>>();
    let count = each.len();
    let regions = each.into_iter().map(|(options, engine)| {
        let engine = Arc::new(engine);
        RegionEngines { options, links: vec![engine; count] }
    });
    regions.collect()
}

impl RegionEngine {
    pub(super) fn sqlite(store: SqliteStore, cache: Arc<dyn Cache>) -> Self {
        Self { database: Arc::new(store), cache, away: Duration::ZERO }
    }
}
