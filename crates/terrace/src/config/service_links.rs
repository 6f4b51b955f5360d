//! Variables that Kubernetes adds for services whose names begin with `terrace`: no settings.
//!
//! For a service `terrace` it sets `TERRACE_SERVICE_HOST`, `TERRACE_PORT=tcp://...` and their like in
//! every container of the namespace (Kubernetes, "Accessing the Service", environment variables).

use std::net::IpAddr;

/// Whether a variable has the name and the value of such a link.
pub(super) fn is_one(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("TERRACE") else { return false };
    let is_port = || value.parse::<u16>().is_ok();
    let is_address = || value.parse::<IpAddr>().is_ok();
    if rest.ends_with("_SERVICE_HOST") {
        return is_address();
    }
    if let Some((_, port)) = rest.split_once("_SERVICE_PORT") {
        return (port.is_empty() || port.starts_with('_')) && is_port();
    }
    if rest.ends_with("_PORT") && is_link(value) {
        return true;
    }
    // ..._PORT_8000_TCP, and what it is made of.
    let Some((_, port)) = rest.split_once("_PORT_") else { return false };
    let mut parts = port.split('_');
    let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
    let protocol = parts.next().is_some_and(|it| ["TCP", "UDP", "SCTP"].contains(&it));
    let part = match (parts.next(), parts.next()) {
        (None, _) => is_link(value),
        (Some("ADDR"), None) => is_address(),
        (Some("PORT"), None) => is_port(),
        (Some("PROTO"), None) => PROTOCOLS.contains(&value),
        _ => false,
    };
    number && protocol && part
}

const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// `tcp://10.96.0.7:8000`.
fn is_link(value: &str) -> bool {
    value.split_once("://").is_some_and(|(protocol, _)| PROTOCOLS.contains(&protocol))
}
