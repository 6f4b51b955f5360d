//! What the settings of regions lack, and whether the file of places can be used.

use std::path::PathBuf;

use super::{Finding, finding};
use crate::config::{Loaded, redacted};
use crate::http::{ClientPlaces, Geography};

/// The regions that have URLs of their own, and the file of places, where there is one.
pub(super) fn look(loaded: &Loaded) -> Vec<Finding> {
    let config = &loaded.config.regions;
    let Ok(regions) = config.regions() else { return Vec::new() };
    let mut findings = Vec::new();
    for region in &regions {
        let variable = region.name.as_str().to_uppercase().replace('-', "_");
        for (start, own, others) in [
            ("DB", &region.database_url, &config.database_urls),
            ("CACHE", &region.cache_url, &config.cache_urls),
        ] {
            if !others.is_empty() {
                findings.push(finding(&format!("{start}_{variable}_URL"), true, &redacted(own)));
            }
        }
    }
    if !config.geoip_file.is_empty() {
        let file = PathBuf::from(&config.geoip_file);
        let why = Geography::examine(&ClientPlaces { file, ..ClientPlaces::default() });
        let says = why.as_deref().unwrap_or("can be used");
        findings.push(finding("geoip file", why.is_none(), says));
    }
    findings
}
