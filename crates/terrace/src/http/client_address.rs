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
        // Behind a line that cannot be read, nobody knows who wrote the others.
        let texts = sent.iter().rev().map_while(|value| value.to_str().ok());
        let hops = texts.flat_map(|text| text.rsplit(',')).map(str::trim);
        for hop in hops.filter(|hop| !hop.is_empty()) {
            if !self.trust(client) {
                break;
            }
            // What is no address was not written by a proxy that knows its peer.
            let Some(address) = address(hop) else { break };
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
