//! What `GeoRouter` says of itself and of each region.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{Deadline, Inspection, PartKind, Status, Unit};

use super::{Region, Routes};

impl Routes {
    pub(super) async fn inspect(&self) -> Inspection {
        let by = Deadline::at(self.runtime.now() + Duration::from_millis(950));
        let each = (0..self.regions.len()).map(|place| self.inspect_region(place, by));
        let regions = join_all(each).await;
        let down = regions.iter().filter(|region| region.status == Status::Down).count();
        let all = regions.len();
        let tree = Inspection::new("geo-router")
            .text("here", self.regions[self.here].name)
            .fact("replicates", self.options.replicates)
            .fact("token_wait", self.options.token_wait)
            .gauge("regions", all as u64, Unit::Count)
            .counter("fallbacks", self.fallbacks.load(Ordering::Relaxed));
        let tree = match down {
            0 => tree,
            down if down == all => tree.status(Status::Down, "no region answers"),
            _ => {
                let note = "a region does not answer; the next one answers in its place";
                tree.status(Status::Degraded, note)
            }
        };
        regions.into_iter().fold(tree, |tree, region| match down == all {
            true => tree.needs(region),
            false => tree.helped_by(region),
        })
    }

    async fn inspect_region(&self, place: usize, by: Deadline) -> Inspection {
        let region = &self.regions[place];
        let link = self.link(place, place);
        let tree = Inspection::of(PartKind::Region, "region").instance(region.name.to_string());
        let tree = link.breaker().show(tree);
        let inner = self.runtime.within(by, link.store().inspect()).await;
        let inner = inner.unwrap_or_else(|| {
            let database = Inspection::of(PartKind::Database, "database");
            database.status(Status::Down, "a region does not answer")
        });
        let tree = tree.needs(inner);
        let tree = match link.is_well() || tree.status == Status::Down {
            true => tree,
            false => tree.status(Status::Down, "a region does not answer"),
        };
        self.followers(region).into_iter().fold(tree, Inspection::helped_by)
    }

    /// What follows into a region.
    fn followers(&self, region: &Region) -> Vec<Inspection> {
        let each = region.following.iter().enumerate().filter_map(|(origin, following)| {
            let tree = following.as_ref()?.follow().inspect();
            let origin = self.regions[origin].name;
            Some(tree.instance(format!("{origin} to {}", region.name)))
        });
        each.collect()
    }
}
