//! The address of a client, also behind proxies.

use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The networks of proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Those in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whose request it is: what a trusted proxy says of its peer, as often as that is one, too.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if !self.trust(client) {
            return client;
        }
        // A header may be there several times; the last address of the last one is the nearest.
        let sent = headers.get_all(X_FORWARDED_FOR).into_iter().collect::<Vec<_>>();
        let hops =
            sent.iter().rev().flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty()) {
            if !self.trust(client) {
                break;
            }
            // What is no address was not written by a proxy that knows its peer.
            let Some(address) = str::from_utf8(hop).ok().and_then(address) else { break };
            client = address;
        }
        client
    }

    fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// An address, which some proxies write with its port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|it| it.ip());
    let bare = text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    bare.or_else(with_port)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    /// What a client writes before it changes nothing of what a proxy has added.
    #[test]
    fn what_a_proxy_has_added_counts_behind_anything() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let peer = "10.0.0.1".parse().expect("an address");
        for sent in
            [&b"\xff, 2.3.4.5"[..], b"2.3.4.5", b"x,, 2.3.4.5", b"9.9.9.9, 2.3.4.5,10.0.0.2"]
        {
            let mut headers = HeaderMap::new();
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(sent).expect("a value"));
            let found = proxies.client(peer, &headers);
            assert_eq!(found.to_string(), "2.3.4.5", "{sent:?}");
        }
    }
}
