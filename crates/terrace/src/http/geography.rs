//! Which region a request is for.
//!
//! 1. The header `X-Region`, else the field `region` of a body of the documents' API.
//! 2. The region that is nearest to the client's address, where a file of places is configured.
//! 3. The region of this process.

use std::net::IpAddr;
use std::path::PathBuf;

use hyper::header::{HeaderMap, HeaderName};
use terrace_core::{Inspection, RegionId, RegionName, Runtime, Version};

use super::client_address::TrustedProxies;
use super::headers;
use super::places::Places;
use super::problem::Problem;

/// Names the region that a request is for.
const X_REGION: HeaderName = HeaderName::from_static("x-region");

/// The regions that are served, and what tells which of them a request is for.
#[derive(Debug)]
pub struct Geography {
    /// All of them, in the order of the settings.
    regions: Vec<RegionName>,
    /// Their numbers, by their places.
    ids: Vec<RegionId>,
    /// The region of this process.
    here: RegionName,
    proxies: TrustedProxies,
    places: Option<Places>,
    /// Codes of countries and continents, and the nearest region.
    nearest: Vec<(String, RegionName)>,
}

/// Where clients are, as the settings say.
#[derive(Clone, Debug, Default)]
pub struct ClientPlaces {
    /// A file of the MaxMind DB format; none when it is empty.
    pub file: PathBuf,
    /// Codes of countries and continents, and the nearest region.
    pub nearest: Vec<(String, RegionName)>,
    /// The proxies that are believed.
    pub proxies: TrustedProxies,
}

impl Geography {
    /// Of these regions, one of which is here.
    pub fn new(
        regions: Vec<(RegionName, RegionId)>,
        here: RegionName,
        clients: ClientPlaces,
        runtime: &Runtime,
    ) -> Self {
        let ClientPlaces { file, nearest, proxies } = clients;
        let has_file = !file.as_os_str().is_empty();
        let places = has_file.then(|| Places::in_file(file, runtime));
        let (regions, ids) = regions.into_iter().unzip();
        Self { regions, ids, here, proxies, places, nearest }
    }

    /// Why the file of places cannot be used; `None` when it can.
    pub fn examine(clients: &ClientPlaces) -> Option<String> {
        Places::examine(&clients.file)
    }

    /// All regions, in the order of the settings.
    pub fn regions(&self) -> &[RegionName] {
        &self.regions
    }

    /// The name of the region in which a version was drawn; its number where the region is gone.
    pub(crate) fn region_of(&self, version: Version) -> String {
        let Some(id) = version.region() else { return String::new() };
        let place = self.ids.iter().position(|known| *known == id);
        place.map_or_else(|| id.to_string(), |place| self.regions[place].to_string())
    }

    /// How the file of places does, where there is one.
    pub fn inspect(&self) -> Option<Inspection> {
        self.places.as_ref().map(Places::inspect)
    }

    /// The region with this name.
    pub(crate) fn find(&self, name: &str) -> Option<RegionName> {
        self.regions.iter().copied().find(|region| region.as_str() == name)
    }

    /// The region that a request names in its header.
    ///
    /// # Errors
    /// 422 for a name that no region has.
    pub(crate) fn named(&self, headers: &HeaderMap) -> Result<Option<RegionName>, Problem> {
        let Some(name) = headers::single(headers, &X_REGION)? else { return Ok(None) };
        self.find(name).map(Some).ok_or_else(|| {
            let known = self.regions.iter().map(RegionName::to_string).collect::<Vec<_>>();
            Problem::invalid(format!("X-Region must be one of {}", known.join(", ")))
        })
    }

    /// As [`Geography::named`] in the documents' API, where an unknown name means the first region.
    pub(crate) fn named_or_first(&self, name: &str) -> RegionName {
        self.find(name).unwrap_or(self.regions[0])
    }

    /// The name in the header, as it was sent.
    pub(crate) fn sent(headers: &HeaderMap) -> Option<&str> {
        headers.get(X_REGION).map(|value| value.to_str().unwrap_or_default().trim())
    }

    /// The region of a request that names none.
    pub(crate) fn nearest(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> RegionName {
        let found = self.places.as_ref().and_then(|places| {
            let client = self.proxies.client(peer?, headers);
            places.find(client, |code| {
                let near = |(known, _): &&(String, RegionName)| known.eq_ignore_ascii_case(code);
                self.nearest.iter().find(near).map(|(_, region)| *region)
            })
        });
        found.unwrap_or(self.here)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::path::Path;

    use hyper::header::HeaderValue;
    use ipnet::IpNet;
    use maxminddb_writer::Database;
    use maxminddb_writer::metadata::IpVersion;
    use maxminddb_writer::paths::IpAddrWithMask;
    use serde::Serialize;
    use terrace_core::Status;

    use super::*;

    #[derive(Serialize)]
    struct Place {
        continent: Continent,
        #[serde(skip_serializing_if = "Option::is_none")]
        country: Option<Country>,
    }

    #[derive(Serialize)]
    struct Continent {
        code: &'static str,
    }

    #[derive(Serialize)]
    struct Country {
        iso_code: &'static str,
    }

    /// A file with these networks, each with its continent and perhaps its country.
    fn write(path: &Path, networks: &[(&str, &'static str, Option<&'static str>)]) {
        let mut database = Database::default();
        database.metadata.ip_version = IpVersion::V6;
        database.metadata.binary_format_major_version = 2;
        for (network, code, country) in networks {
            let country = country.map(|iso_code| Country { iso_code });
            let place = Place { continent: Continent { code }, country };
            let data = database.insert_value(place).expect("data");
            let network = network.parse::<IpNet>().expect("a network");
            // In a file for both, IPv4 is where the first 96 bits are zeros.
            let (address, bits) = match network {
                IpNet::V4(four) => (Ipv6Addr::from(u128::from(u32::from(four.addr()))), 96),
                IpNet::V6(six) => (six.addr(), 0),
            };
            let path = IpAddrWithMask::new(address.into(), network.prefix_len() + bits);
            database.insert_node(path, data);
        }
        let file = std::fs::File::create(path.with_extension("new")).expect("a file");
        database.write_to(file).expect("written");
        std::fs::rename(path.with_extension("new"), path).expect("in its place");
    }

    fn name(text: &str) -> RegionName {
        text.parse().expect("a name")
    }

    fn geography(file: &Path) -> Geography {
        let names = ["us-east", "eu-west", "asia-pac"].map(name);
        let code = |code: &str, place: usize| (code.to_owned(), names[place]);
        let nearest = vec![code("NA", 0), code("EU", 1), code("AS", 2), code("IS", 0)];
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let clients = ClientPlaces { file: file.to_owned(), nearest, proxies };
        let regions = names.into_iter().zip(1..);
        let regions = regions.map(|(name, id)| (name, RegionId::new(id).expect("a number")));
        Geography::new(regions.collect(), names[2], clients, &Runtime::system())
    }

    fn forwarded(texts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append("x-forwarded-for", HeaderValue::from_static(text));
        }
        headers
    }

    #[tokio::test]
    async fn a_client_is_where_its_address_is_also_behind_proxies_that_are_trusted() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("places.mmdb");
        let networks = [
            ("1.0.0.0/8", "NA", None),
            ("2.0.0.0/8", "EU", Some("DE")),
            ("3.0.0.0/8", "EU", Some("IS")),
            ("2001:db8::/32", "EU", None),
        ];
        write(&file, &networks);
        let places = geography(&file);
        let near = |peer: &str, sent: &[&'static str]| {
            let peer = peer.parse().expect("an address");
            places.nearest(Some(peer), &forwarded(sent)).to_string()
        };
        assert_eq!(near("1.1.1.1", &[]), "us-east");
        assert_eq!(near("2.1.1.1", &[]), "eu-west", "by the continent");
        assert_eq!(near("3.1.1.1", &[]), "us-east", "by the country first");
        assert_eq!(near("::ffff:2.1.1.1", &[]), "eu-west");
        // Nobody's: shared (RFC 6598), private, and what the file does not know.
        for nowhere in ["100.64.0.1", "192.168.0.1", "::1", "9.9.9.9"] {
            assert_eq!(near(nowhere, &[]), "asia-pac", "{nowhere}");
        }
        assert_eq!(near("1.1.1.1", &["2.1.1.1"]), "us-east", "not from a proxy");
        assert_eq!(near("10.1.1.1", &["2.1.1.1"]), "eu-west");
        assert_eq!(near("10.1.1.1", &["1.1.1.1, 2.1.1.1:4711, 10.2.2.2"]), "eu-west", "the last");
        assert_eq!(near("10.1.1.1", &["1.1.1.1", "2.1.1.1"]), "eu-west", "the last header");
        assert_eq!(near("10.1.1.1", &["2.1.1.1, unknown"]), "asia-pac", "what the client wrote");
    }

    #[tokio::test]
    async fn a_file_that_is_missing_damaged_or_replaced_is_told_and_never_fails() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("places.mmdb");
        let places = geography(&file);
        let near =
            || places.nearest(Some("1.1.1.1".parse().unwrap()), &HeaderMap::new()).to_string();
        let status = || places.inspect().expect("a file").status;
        assert_eq!((near().as_str(), status()), ("asia-pac", Status::Degraded), "missing");
        let look = || places.places.as_ref().expect("a file").look();

        write(&file, &[("1.0.0.0/8", "NA", None)]);
        look();
        let reason = || places.inspect().expect("a file").reason();
        let found = (near(), status());
        assert_eq!(found, ("us-east".into(), Status::Healthy), "there: {}", reason());

        write(&file, &[("1.0.0.0/8", "EU", None), ("2.0.0.0/8", "NA", None)]);
        look();
        assert_eq!((near().as_str(), status()), ("eu-west", Status::Healthy), "replaced");

        let whole = std::fs::read(&file).expect("the file");
        std::fs::write(&file, &whole[..whole.len() / 2]).expect("a part");
        look();
        assert_eq!((near().as_str(), status()), ("asia-pac", Status::Degraded), "cut off");
        assert!(reason().contains("regions.geoip_file"), "{}", reason());
    }
}
