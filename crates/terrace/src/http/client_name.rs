//! The name under which a client is counted, or sorted into a cohort: the same for all its requests.

use std::fmt::Write as _;
use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::client_address::TrustedProxies;
use crate::access::{ClientId, Principal};

/// Names a client of the key of the settings.
pub(crate) const X_CLIENT_ID: HeaderName = HeaderName::from_static("x-client-id");
/// So much of a client's id counts.
const CLIENT_ID_BYTES: usize = 64;

/// By its key, or by whom its token is about; of the key of the settings, each of its clients.
pub(crate) fn by_principal(principal: &Principal, headers: &HeaderMap) -> String {
    match &principal.id {
        ClientId::Key(id) => format!("key:{id}"),
        ClientId::Subject(subject) => digest("subject", subject.as_bytes()),
        // Who has this key names its clients; of other keys they would only be ways around.
        ClientId::Settings => headers.get(X_CLIENT_ID).map_or("settings".to_owned(), of_settings),
    }
}

/// By the address of whoever sent the request.
pub(crate) fn by_address(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    proxies: &TrustedProxies,
) -> String {
    match peer {
        Some(peer) => format!("address:{}", network(proxies.client(peer, headers))),
        None => "address:unknown".to_owned(),
    }
}

/// A client of the key of the settings, or one where nobody has a key, by the id that it sends.
pub(crate) fn of_settings(id: &HeaderValue) -> String {
    let id = id.as_bytes();
    digest("settings", &id[..id.len().min(CLIENT_ID_BYTES)])
}

/// A client by a digest: an id may be anything, and of any length.
fn digest(of: &str, id: &[u8]) -> String {
    Sha256::digest(id)[..16].iter().fold(format!("{of}:"), |mut name, byte| {
        // Text does not fail to grow.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// One client's: an address, but of version 6 the network of 64 bits, all of which one client has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_client_however_it_is_written() {
        let of = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(of("10.1.2.3"), "10.1.2.3");
        assert_eq!(of("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn so_much_of_a_clients_id_counts() {
        let of = |id: &str| of_settings(&HeaderValue::try_from(id).expect("a header"));
        assert_ne!(of("a"), of("b"));
        let long = "x".repeat(64);
        assert_eq!(of(&long), of(&format!("{long}y")));
        assert_eq!(of(&long).len(), of("a").len());
    }
}
