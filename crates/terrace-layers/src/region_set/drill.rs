//! What the loss of a region would cost, measured: it is played, and nothing is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace_core::{
    Error, ErrorKind, Key, LogPosition, RegionName, Result, Store as _, Value, Write, WriteOptions,
};

use super::RegionSet;
use crate::geo_router::{GeoRouter, GeoRouterOptions, RegionLink, RegionParts};

/// What a drill has measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillReport {
    /// How many writes the region had acknowledged.
    pub written: usize,
    /// How many of them no other region had when it was lost.
    pub missing: usize,
    /// How long before the loss the first of those was acknowledged; zero when there is none.
    pub recovery_point: Duration,
    /// From the loss to the first write that another region has acknowledged.
    pub recovery_time: Duration,
    /// That region.
    pub taken_by: RegionName,
}

/// A write that was acknowledged before the loss.
struct Probe {
    place: LogPosition,
    at: Instant,
}

impl RegionSet {
    /// What the keys of a drill begin with.
    const PROBES: &str = "terrace:drill:";

    /// Writes to a region for this time, then plays that it is lost. The regions go on for everybody else:
    /// only this drill no longer reaches the one. What it wrote is deleted in the end.
    ///
    /// # Errors
    /// `InvalidInput` for a region that is not there, and for the only one; what stops the writes.
    pub async fn drill(&self, name: RegionName, writing: Duration) -> Result<DrillReport> {
        let place = self.regions.iter().position(|region| region.region().name == name);
        let place = place.filter(|_| self.regions.len() > 1).ok_or_else(|| {
            Error::invalid(format!("there is no region {name}, or it is the only one"))
        })?;
        let (links, router) = self.router(name)?;
        let mut keys = Vec::new();
        let measured = self.play(place, (&links, &router), writing, &mut keys).await;
        links[place].lose(false);
        for region in &self.regions {
            let own = keys.iter().filter(|(_, by)| *by == Some(region.region().name));
            let deletes = own.map(|(key, _)| Write::delete(key.clone())).collect::<Vec<_>>();
            for batch in deletes.chunks(500) {
                region.write(batch.to_vec(), &WriteOptions::default()).await?;
            }
        }
        measured
    }

    async fn play(
        &self,
        place: usize,
        (links, router): (&[Arc<RegionLink>], &GeoRouter),
        writing: Duration,
        keys: &mut Vec<(Key, Option<RegionName>)>,
    ) -> Result<DrillReport> {
        let (lost, log) = (&self.regions[place], self.regions[place].own_log());
        let how = WriteOptions { region: Some(lost.region().name), ..WriteOptions::default() };
        let begun = self.runtime.now();
        let mut probes = Vec::new();
        while self.runtime.now() - begun < writing {
            let receipt = write(router, keys, &how).await?;
            let history = lost.history().unwrap_or_default();
            let at = self.runtime.now();
            if let Some(position) = receipt.token.position(&history) {
                probes.push(Probe { place: log.place_of(position), at });
            }
            self.runtime.sleep(Duration::from_millis(2)).await;
        }
        links[place].lose(true);
        let lost_at = self.runtime.now();
        let mut best = LogPosition::default();
        for region in self.regions.iter().filter(|it| !Arc::ptr_eq(it, lost)) {
            let known = region.checkpoints().await?;
            let known = known.of(lost.region().id).filter(|it| it.is_in(&log.name()));
            best = best.max(known.map(|it| it.position).unwrap_or_default());
        }
        let missing = probes.iter().filter(|probe| probe.place > best).collect::<Vec<_>>();
        let receipt = write(router, keys, &how).await?;
        let taken_by = receipt.origin.region.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "an answer does not say where it came from")
        })?;
        Ok(DrillReport {
            written: probes.len(),
            missing: missing.len(),
            recovery_point: missing.first().map(|it| lost_at - it.at).unwrap_or_default(),
            recovery_time: self.runtime.now() - lost_at,
            taken_by,
        })
    }

    /// A router of the drill's own, which follows nothing: whoever serves does.
    fn router(&self, here: RegionName) -> Result<(Vec<Arc<RegionLink>>, GeoRouter)> {
        let links = self.regions.iter().map(|region| {
            let store = Arc::clone(region) as _;
            Arc::new(RegionLink::new(store, Arc::clone(region), self.runtime.clone()))
        });
        let links = links.collect::<Vec<_>>();
        let parts = self.regions.iter().map(|region| RegionParts {
            name: region.region().name,
            id: region.region().id,
            links: links.clone(),
            cache: None,
            follows: false,
        });
        let options = GeoRouterOptions { replicates: false, ..GeoRouterOptions::default() };
        let runtime = self.runtime.clone();
        let router = GeoRouter::start(parts.collect(), here, Vec::new(), options, runtime)?;
        Ok((links, router))
    }
}

async fn write(
    router: &GeoRouter,
    keys: &mut Vec<(Key, Option<RegionName>)>,
    how: &WriteOptions,
) -> Result<terrace_core::Receipt> {
    let key = Key::new(format!("{}{}", RegionSet::PROBES, keys.len()))?;
    let write = Write::put(key.clone(), Value::new("probe")?);
    let receipt = terrace_core::one(router.write(vec![write], how).await?)?;
    keys.push((key, receipt.origin.region));
    Ok(receipt)
}
