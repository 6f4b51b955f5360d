//! Settings of the live page.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The page that shows all levels as they work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LiveConfig {
    /// Where it is served: an address of this machine, `127.0.0.1:8020`; `auto`, with `terrace up` only and at
    /// 20 above `server.port_base`; `off`. Default `auto`.
    pub listen: String,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self { listen: "auto".into() }
    }
}

/// Whether and where the page is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivePlace {
    /// Nowhere.
    Nowhere,
    /// At the usual place; a port that is in use there is no reason not to serve levels.
    Usual(SocketAddr),
    /// Where somebody wants it.
    Asked(SocketAddr),
}

impl LiveConfig {
    /// Where it is served beside levels with this port base; `up` tells whether by `terrace up`.
    ///
    /// # Errors
    /// For what is no address of this machine alone.
    pub fn place(&self, up: bool, port_base: u16) -> Result<LivePlace, ConfigError> {
        match self.listen.as_str() {
            "off" => Ok(LivePlace::Nowhere),
            "auto" => Ok(match (up, port_base.checked_add(20)) {
                (true, Some(port)) => LivePlace::Usual((Ipv4Addr::LOCALHOST, port).into()),
                _ => LivePlace::Nowhere,
            }),
            text => match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Ok(LivePlace::Asked(address)),
                _ => Err(ConfigError::new(format!(
                    "live.listen is {text:?}; it must be auto, off, or an address of this machine alone, such \
                     as 127.0.0.1:8020: the page can send requests and stop servers"
                ))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_served_to_this_machine_alone() {
        let place = |listen: &str, up, base| LiveConfig { listen: listen.into() }.place(up, base);
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(place("auto", true, 8000), Ok(LivePlace::Usual(at("127.0.0.1:8020"))));
        for (up, base) in [(false, 8000), (true, 65_525)] {
            assert_eq!(place("auto", up, base), Ok(LivePlace::Nowhere));
        }
        assert_eq!(place("off", true, 8000), Ok(LivePlace::Nowhere));
        for here in ["127.0.0.1:1", "[::1]:8020"] {
            assert_eq!(place(here, false, 8000), Ok(LivePlace::Asked(at(here))));
        }
        for other in ["0.0.0.0:8020", "192.168.0.1:8020", "8020", "localhost", "on", ""] {
            let error = place(other, true, 8000).expect_err("it is refused").to_string();
            assert!(error.contains("127.0.0.1:8020"), "{error}");
        }
    }
}
