//! How a URL names Redis.

use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};
use terrace_core::{Error, Result};

use super::tls::Files;
use crate::parameters::decode;

/// What a URL says.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) server: ConnectionAddr,
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<Files>,
    pub(super) shown: String,
}

const MALFORMED: &str = "the Redis URL is malformed; write redis://[user:password@]host[:port][/database], \
                         or rediss:// for TLS";

/// What stands behind the `?`.
#[derive(Debug, Default)]
struct Parameters<'a> {
    files: [Option<PathBuf>; 3],
    /// What the driver understands.
    protocol: Option<&'a str>,
}

impl<'a> Parameters<'a> {
    const FILES: [&'static str; 3] = ["ca", "cert", "key"];

    fn parse(query: &'a str) -> Result<Self> {
        if query.contains('@') {
            // What seems to be the name of a parameter may be a part of the password.
            return Err(Error::invalid(
                "the Redis URL has an @ behind a ?; write %3F for a ? in the password, and %40 for an @ \
                 in a parameter",
            ));
        }
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match Self::FILES.iter().position(|file| *file == name) {
                Some(_) if value.is_empty() => {
                    let empty = format!("the parameter `{name}` of the Redis URL names no file");
                    return Err(Error::invalid(format!("{empty}; write {name}=/path/{name}.pem")));
                }
                Some(place) => {
                    parameters.files[place] = Some(PathBuf::from(decode(name, value)?));
                }
                None if name == "protocol" => parameters.protocol = Some(value),
                None => {
                    return Err(Error::invalid(format!(
                        "the Redis URL has the parameter `{name}`, which Terrace does not know; remove \
                         it (known: ca, cert, key, protocol)"
                    )));
                }
            }
        }
        Ok(parameters)
    }

    /// The files, where they are of use.
    fn tls(self, encrypted: bool) -> Result<Option<Files>> {
        match (encrypted, self.files) {
            (false, [None, None, None]) => Ok(None),
            (false, _) => Err(Error::invalid(
                "the Redis URL names certificates, and asks for no TLS; write rediss://",
            )),
            (true, [_, Some(_), None] | [_, None, Some(_)]) => Err(Error::invalid(
                "the Redis URL names one of cert and key; name both: the client's certificate and its \
                 private key",
            )),
            (true, [ca, cert, key]) => Ok(Some(Files { ca, pair: cert.zip(key) })),
        }
    }
}

/// Reads a URL. No error repeats a part of it that may be a password.
pub(super) fn parse(url: &str) -> Result<Form> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| Error::invalid(MALFORMED))?;
    let encrypted = match scheme {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        // A socket of this machine, with parameters of its own.
        "unix" | "redis+unix" | "valkey+unix" => return plain(url, None),
        _ => return Err(Error::invalid(MALFORMED)),
    };
    if rest.contains('#') {
        return Err(Error::invalid(
            "the Redis URL has a #; write %23 in a password. TLS that verifies nobody is not offered: \
             name the authority, ?ca=/path/ca.pem",
        ));
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameters = Parameters::parse(query)?;
    let protocol = parameters.protocol.map(|version| format!("?protocol={version}"));
    let tls = parameters.tls(encrypted)?;
    plain(&format!("redis://{place}{}", protocol.unwrap_or_default()), tls)
}

/// One server, as the driver reads it.
fn plain(url: &str, tls: Option<Files>) -> Result<Form> {
    // The driver's error may repeat a part of the URL, and a URL holds a password.
    let info = url.into_connection_info().map_err(|_| Error::invalid(MALFORMED))?;
    let (server, login) = (info.addr().clone(), info.redis_settings().clone());
    Ok(Form { shown: server.to_string(), server, login, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        parse(url).expect_err(url).to_string()
    }

    #[test]
    fn files_belong_to_tls() {
        let form = parse("rediss://u:p@h:7000/2?ca=/a%20b.pem&cert=c.pem&key=k.pem").unwrap();
        let files = form.tls.expect("TLS");
        assert_eq!(files.ca, Some(PathBuf::from("/a b.pem")));
        assert_eq!(files.pair, Some((PathBuf::from("c.pem"), PathBuf::from("k.pem"))));
        assert_eq!((form.shown.as_str(), form.login.db()), ("h:7000", 2));
        assert!(parse("rediss://h").unwrap().tls.is_some());
        assert!(parse("redis://h?protocol=resp3").unwrap().tls.is_none());
        assert!(refused("redis://h?ca=a.pem").contains("write rediss://"));
        assert!(refused("rediss://h?cert=a.pem").contains("name both"));
        assert!(refused("rediss://h?ca=").contains("write ca=/path/ca.pem"));
        assert!(refused("rediss://h?cacert=a.pem").contains("`cacert`"));
        assert!(refused("rediss://h#insecure").contains("name the authority"));
    }

    #[test]
    fn no_error_shows_a_password() {
        for url in [
            "redis://user:hush@",
            "redis://:hush@host/not-a-number",
            "rediss://:hush@host?x=1",
            "redis://:pa?ss=hush@host",
            "redis://:hu#hush@host",
            "http://:hush@host",
            "hush",
        ] {
            assert!(!refused(url).contains("hush"), "{url}");
        }
    }
}
