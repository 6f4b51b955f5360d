//! The regions of level 9, and what their texts say.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use terrace_core::{Error, RegionId, RegionName};

use super::{ConfigError, DistanceConfig};

/// The regions of level 9.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionsConfig {
    /// The regions, in an order that never changes: the place of a region is its number, which every
    /// version carries. A new one comes last; `-` keeps the place of one that was removed. Default
    /// `us-east`, `eu-west`, `asia-pac`.
    pub names: Vec<String>,
    /// `postgres://...` of each region, in their order, with `-` in the place of a removed one. Default
    /// none. `DB_US_EAST_URL`, `DB_EU_WEST_URL`, ... name them, too.
    pub database_urls: Vec<String>,
    /// `redis://...` or `rediss://...` of each region, in their order. Default none. `CACHE_US_EAST_URL`, ... name them, too.
    pub cache_urls: Vec<String>,
    /// The region that this process is in: it serves requests that name none, and follows the others
    /// into this one alone. Default: the first region, and this process follows for all of them.
    pub here: String,
    /// Whether regions follow each other. Default `true`.
    pub replication: bool,
    /// Keys that have a home: `eu:=eu-west` sends every write of a key that begins with `eu:` there;
    /// `eu:=eu-west!` also keeps these keys out of the other regions' storage. Default none.
    pub homes: Vec<String>,
    /// Which continents and countries are nearest to which region, as ISO codes: `us-east=NA,SA`.
    /// Default: `us-east=NA,SA`, `eu-west=EU,AF`, `asia-pac=AS,OC`.
    pub places: Vec<String>,
    /// A file of the MaxMind DB format that tells the country of an address. Default none.
    pub geoip_file: String,
    /// The networks of proxies whose `X-Forwarded-For` is believed, such as `10.0.0.0/8`. Default none.
    pub trusted_proxies: Vec<String>,
    /// How far the clock of another region may be ahead, in milliseconds, before its changes are held
    /// back. Default 5000.
    pub max_clock_drift_ms: u64,
}

impl Default for RegionsConfig {
    fn default() -> Self {
        let list = |texts: [&str; 3]| texts.map(str::to_owned).to_vec();
        Self {
            names: list(["us-east", "eu-west", "asia-pac"]),
            database_urls: Vec::new(),
            cache_urls: Vec::new(),
            here: String::new(),
            replication: true,
            homes: Vec::new(),
            places: list(["us-east=NA,SA", "eu-west=EU,AF", "asia-pac=AS,OC"]),
            geoip_file: String::new(),
            trusted_proxies: Vec::new(),
            max_clock_drift_ms: 5_000,
        }
    }
}

/// One region, as the settings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSettings {
    /// Its name.
    pub name: RegionName,
    /// Its number: its place among the names, counted from 1.
    pub id: RegionId,
    /// Its database; empty when the mode decides.
    pub database_url: String,
    /// Its cache; empty when the mode decides.
    pub cache_url: String,
}

/// Keys that have a home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeSettings {
    /// What they begin with.
    pub prefix: String,
    /// Where they are written.
    pub region: RegionName,
    /// Whether no other region may keep them.
    pub resides: bool,
}

impl RegionsConfig {
    /// What stands in the place of a region that was removed.
    const REMOVED: &str = "-";

    /// The regions that there are.
    ///
    /// # Errors
    /// What is wrong with the names or the URLs.
    pub fn regions(&self) -> Result<Vec<RegionSettings>, ConfigError> {
        for (urls, path) in
            [(&self.database_urls, "database_urls"), (&self.cache_urls, "cache_urls")]
        {
            if !urls.is_empty() && urls.len() != self.names.len() {
                return Err(ConfigError::new(format!(
                    "regions.{path} has {} URLs for {} names; give one a name, and - for a removed \
                     region",
                    urls.len(),
                    self.names.len()
                )));
            }
        }
        let url = |urls: &[String], place: usize| urls.get(place).cloned().unwrap_or_default();
        let mut seen = BTreeSet::new();
        let mut regions = Vec::new();
        for (place, name) in self.names.iter().enumerate().filter(|(_, it)| *it != Self::REMOVED) {
            let wrong = |why: String| ConfigError::new(format!("regions.names: {name}: {why}"));
            let id = u8::try_from(place + 1).ok().and_then(|number| RegionId::new(number).ok());
            let region = RegionSettings {
                name: name.parse().map_err(|error: Error| wrong(error.message().to_owned()))?,
                id: id.ok_or_else(|| wrong("there are at most 63 regions".to_owned()))?,
                database_url: url(&self.database_urls, place),
                cache_url: url(&self.cache_urls, place),
            };
            if !seen.insert(name) {
                return Err(wrong("it is named twice; a name belongs to one region".to_owned()));
            }
            regions.push(region);
        }
        if regions.is_empty() {
            return Err(ConfigError::new("regions.names names no region; name at least one"));
        }
        Ok(regions)
    }

    /// The region of this process: the one that is named, else the first.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn local(&self) -> Result<RegionName, ConfigError> {
        match self.here.as_str() {
            "" => Ok(self.regions()?[0].name),
            name => self.known("here", name),
        }
    }

    /// The keys that have a home; of two prefixes the longer one counts.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn homes(&self) -> Result<Vec<HomeSettings>, ConfigError> {
        let mut homes = Vec::new();
        for text in &self.homes {
            let (prefix, region) = self.pair("homes", text, "eu:=eu-west")?;
            let resides = region.ends_with('!');
            let region = self.known("homes", region.trim_end_matches('!'))?;
            homes.push(HomeSettings { prefix: prefix.to_owned(), region, resides });
        }
        homes.sort_by_key(|home| std::cmp::Reverse(home.prefix.len()));
        Ok(homes)
    }

    /// Codes of continents and countries, and the region that is nearest to them.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn places(&self) -> Result<Vec<(String, RegionName)>, ConfigError> {
        let mut places = Vec::new();
        let is_default = self.places == Self::default().places;
        for text in &self.places {
            let (region, codes) = self.pair("places", text, "us-east=NA,SA")?;
            match self.known("places", region) {
                Ok(region) => {
                    places.extend(codes.split(',').map(|code| (code.to_uppercase(), region)));
                }
                // The defaults are of regions that somebody else may have.
                Err(_) if is_default => {}
                Err(error) => return Err(error),
            }
        }
        Ok(places)
    }

    /// The networks of proxies that are believed.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn proxies(&self) -> Result<Vec<IpNet>, ConfigError> {
        let one = |text: &String| {
            let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or(address).map_err(|_| {
                ConfigError::new(format!(
                    "regions.trusted_proxies: {text:?} is no network; write one as 10.0.0.0/8"
                ))
            })
        };
        self.trusted_proxies.iter().map(one).collect()
    }

    /// Everything that the texts say is as it must be.
    pub(super) fn check(&self, distance: &DistanceConfig) -> Result<(), ConfigError> {
        let here = self.local()?;
        distance.between(here, here)?;
        self.homes()?;
        self.places()?;
        self.proxies().map(drop)
    }

    fn pair<'a>(
        &self,
        path: &str,
        text: &'a str,
        example: &str,
    ) -> Result<(&'a str, &'a str), ConfigError> {
        let pair =
            text.rsplit_once('=').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        pair.ok_or_else(|| {
            ConfigError::new(format!("regions.{path}: {text:?} must be such as {example}"))
        })
    }

    fn known(&self, path: &str, name: &str) -> Result<RegionName, ConfigError> {
        let regions = self.regions()?;
        let found = regions.iter().find(|region| region.name.as_str() == name);
        found.map(|region| region.name).ok_or_else(|| {
            let names = regions.iter().map(|region| region.name.to_string()).collect::<Vec<_>>();
            ConfigError::new(format!(
                "regions.{path} names {name:?}; the regions are {}",
                names.join(", ")
            ))
        })
    }
}

impl DistanceConfig {
    /// The round trip between two regions; zero where nothing is said.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn between(&self, one: RegionName, other: RegionName) -> Result<Duration, ConfigError> {
        let mut found = Duration::ZERO;
        for text in &self.regions {
            let pair = text.split_once('=').and_then(|(pair, millis)| {
                let (from, to) = pair.split_once(':')?;
                Some(((from, to), millis.parse::<u64>().ok().filter(|it| *it <= 60_000)?))
            });
            let Some((pair, millis)) = pair else {
                return Err(ConfigError::new(format!(
                    "distance.regions: {text:?} must be such as us-east:eu-west=80, in milliseconds"
                )));
            };
            let names = (one.as_str(), other.as_str());
            if pair == names || pair == (names.1, names.0) {
                found = Duration::from_millis(millis);
            }
        }
        Ok(found)
    }
}

/// The name of a region within a variable of the environment: `us-east` is `US_EAST`.
pub(super) fn in_environment(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_region_leaves_the_numbers_of_the_others_alone() {
        let names = ["us-east", "-", "asia-pac"].map(str::to_owned).to_vec();
        let config = RegionsConfig { names, ..RegionsConfig::default() };
        let ids =
            config.regions().unwrap().into_iter().map(|it| (it.name.to_string(), it.id.get()));
        assert_eq!(
            ids.collect::<Vec<_>>(),
            [("us-east".to_owned(), 1), ("asia-pac".to_owned(), 3)]
        );
        assert!(config.places().unwrap().iter().all(|(_, region)| region.as_str() != "eu-west"));
    }

    #[test]
    fn homes_and_proxies_are_read_or_refused() {
        let texts = |text: &str| vec![text.to_owned()];
        let homes = |text| RegionsConfig { homes: texts(text), ..RegionsConfig::default() }.homes();
        let home = homes("eu:=x:=eu-west!").unwrap().remove(0);
        assert_eq!(
            (&*home.prefix, home.region.as_str(), home.resides),
            ("eu:=x:", "eu-west", true)
        );
        assert!(!homes("eu:=eu-west").unwrap()[0].resides);
        for bad in ["eu:", "=eu-west", "eu:=mars"] {
            assert!(homes(bad).is_err(), "{bad}");
        }
        let proxies = |text| {
            RegionsConfig { trusted_proxies: texts(text), ..RegionsConfig::default() }.proxies()
        };
        assert!(
            proxies("10.0.0.0/8").is_ok() && proxies("::1").is_ok() && proxies("proxy").is_err()
        );
    }
}
