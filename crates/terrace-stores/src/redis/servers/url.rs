//! How a URL names Redis.

use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};
use terrace_core::{Error, Result};

use super::guides::{Question, slot_of};
use super::tls::Files;
use crate::parameters::decode;

/// What a URL says.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) place: ServerPlace,
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<Files>,
    pub(super) shown: String,
}

/// Where the server is.
#[derive(Debug)]
pub(super) enum ServerPlace {
    One(ConnectionAddr),
    /// Where those say who are asked this, with a login of their own.
    By {
        question: Question,
        guides: Vec<ConnectionAddr>,
        login: RedisConnectionInfo,
    },
}

const MALFORMED: &str = "the Redis URL is malformed; write redis://[user:password@]host[:port][/database], \
                         redis+sentinel://host:port,host:port/name, \
                         redis+cluster://host:port,host:port, or rediss in the place of redis for TLS";
/// Where sentinels are by themselves.
const SENTINEL_PORT: u16 = 26379;
/// Where Redis is by itself.
const PORT: u16 = 6379;

/// What stands behind the `?`.
#[derive(Debug, Default)]
struct Parameters<'a> {
    files: [Option<PathBuf>; 3],
    /// What the driver understands.
    protocol: Option<&'a str>,
    /// The login at sentinels.
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
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
                None => match name {
                    "protocol" => parameters.protocol = Some(value),
                    "sentinel_user" => parameters.sentinel_user = Some(decode(name, value)?),
                    "sentinel_password" => {
                        parameters.sentinel_password = Some(decode(name, value)?);
                    }
                    _ => return Err(unknown(name)),
                },
            }
        }
        Ok(parameters)
    }

    fn has_no_sentinels(&self) -> bool {
        self.sentinel_user.is_none() && self.sentinel_password.is_none()
    }

    /// What is the driver's.
    fn of_driver(&self) -> String {
        self.protocol.map_or_else(String::new, |version| format!("?protocol={version}"))
    }

    /// The files, where they are of use.
    fn tls(&mut self, encrypted: bool) -> Result<Option<Files>> {
        match (encrypted, std::mem::take(&mut self.files)) {
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

fn unknown(name: &str) -> Error {
    Error::invalid(format!(
        "the Redis URL has the parameter `{name}`, which Terrace does not know here; remove it (known: ca, \
         cert, key, protocol, and sentinel_user and sentinel_password with sentinels)"
    ))
}

/// Reads a URL, for the use of keys that all have the slot of this one. No error repeats a part of it that may
/// be a password.
pub(super) fn parse(url: &str, key: &str) -> Result<Form> {
    let (scheme, rest) = url.split_once("://").ok_or_else(malformed)?;
    let (encrypted, kind) = match scheme {
        "redis" | "valkey" => (false, ""),
        "rediss" | "valkeys" => (true, ""),
        "redis+sentinel" | "valkey+sentinel" => (false, "sentinel"),
        "rediss+sentinel" | "valkeys+sentinel" => (true, "sentinel"),
        "redis+cluster" | "valkey+cluster" => (false, "cluster"),
        "rediss+cluster" | "valkeys+cluster" => (true, "cluster"),
        // A socket of this machine, with parameters of its own.
        "unix" | "redis+unix" | "valkey+unix" => return one(url, None),
        _ => return Err(malformed()),
    };
    if rest.contains('#') {
        return Err(Error::invalid(
            "the Redis URL has a #; write %23 in a password. TLS that verifies nobody is not offered: \
             name the authority, ?ca=/path/ca.pem",
        ));
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parameters = Parameters::parse(query)?;
    let tls = parameters.tls(encrypted)?;
    match kind {
        "sentinel" => sentinels(place, &parameters, tls),
        "cluster" if parameters.has_no_sentinels() => nodes(place, &parameters, tls, key),
        _ if parameters.sentinel_user.is_some() => Err(unknown("sentinel_user")),
        _ if parameters.sentinel_password.is_some() => Err(unknown("sentinel_password")),
        _ => one(&format!("redis://{place}{}", parameters.of_driver()), tls),
    }
}

/// One server, as the driver reads it.
fn one(url: &str, tls: Option<Files>) -> Result<Form> {
    let (address, login) = read(url)?;
    Ok(Form { shown: address.to_string(), place: ServerPlace::One(address), login, tls })
}

fn read(url: &str) -> Result<(ConnectionAddr, RedisConnectionInfo)> {
    // The driver's error may repeat a part of the URL, and a URL holds a password.
    let info = url.into_connection_info().map_err(|_| malformed())?;
    Ok((info.addr().clone(), info.redis_settings().clone()))
}

/// `user:password@host:port,host:port/name/database`.
fn sentinels(place: &str, parameters: &Parameters<'_>, tls: Option<Files>) -> Result<Form> {
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    if name.is_empty() {
        return Err(Error::invalid(
            "the Redis URL names sentinels, and not whom they watch; write \
             redis+sentinel://host:port,host:port/name, with the name of their `sentinel monitor`",
        ));
    }
    let question = Question::Primary(decode("the name that sentinels watch", name)?);
    let (guides, login) = several(authority, database, parameters, SENTINEL_PORT)?;
    let mut of_guides = RedisConnectionInfo::default();
    if let Some(user) = &parameters.sentinel_user {
        of_guides = of_guides.set_username(user);
    }
    if let Some(password) = &parameters.sentinel_password {
        of_guides = of_guides.set_password(password);
    }
    let shown = format!("{name} of {}", shown(&guides));
    Ok(Form { place: ServerPlace::By { question, guides, login: of_guides }, login, tls, shown })
}

/// `user:password@host:port,host:port`.
fn nodes(place: &str, parameters: &Parameters<'_>, tls: Option<Files>, key: &str) -> Result<Form> {
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if !["", "0"].contains(&database) {
        return Err(Error::invalid(
            "the Redis URL names a database of a cluster, which has one alone; end it with the last port",
        ));
    }
    let question = Question::Owner { slot: slot_of(key), by_name: tls.is_some() };
    let (guides, login) = several(authority, database, parameters, PORT)?;
    let (shown, of_guides) = (format!("the cluster of {}", shown(&guides)), login.clone());
    Ok(Form { place: ServerPlace::By { question, guides, login: of_guides }, login, tls, shown })
}

/// Hosts with the login that stands before them.
fn several(
    authority: &str,
    database: &str,
    parameters: &Parameters<'_>,
    port: u16,
) -> Result<(Vec<ConnectionAddr>, RedisConnectionInfo)> {
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let mut found = (Vec::new(), RedisConnectionInfo::default());
    for host in hosts.split(',') {
        // Behind the bracket of an address of IPv6, or in a name.
        let has_port = host.rsplit_once(']').map_or(host, |(_, behind)| behind).contains(':');
        let port = if has_port { String::new() } else { format!(":{port}") };
        let driver = parameters.of_driver();
        let (address, settings) = read(&format!("redis://{login}{host}{port}/{database}{driver}"))?;
        found.0.push(address);
        found.1 = settings;
    }
    Ok(found)
}

fn shown(addresses: &[ConnectionAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn malformed() -> Error {
    Error::invalid(MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        parse(url, "key").expect_err(url).to_string()
    }

    #[test]
    fn files_belong_to_tls() {
        let form =
            parse("rediss://u:p@h:7000/2?ca=/a%20b.pem&cert=c.pem&key=k.pem", "key").unwrap();
        let files = form.tls.expect("TLS");
        assert_eq!(files.ca, Some(PathBuf::from("/a b.pem")));
        assert_eq!(files.pair, Some((PathBuf::from("c.pem"), PathBuf::from("k.pem"))));
        assert_eq!((form.shown.as_str(), form.login.db()), ("h:7000", 2));
        assert!(parse("rediss://h", "key").unwrap().tls.is_some());
        assert!(parse("redis://h?protocol=resp3", "key").unwrap().tls.is_none());
        assert!(refused("redis://h?ca=a.pem").contains("write rediss://"));
        assert!(refused("rediss://h?cert=a.pem").contains("name both"));
        assert!(refused("rediss://h?ca=").contains("write ca=/path/ca.pem"));
        assert!(refused("rediss://h?cacert=a.pem").contains("`cacert`"));
        assert!(refused("rediss://h#insecure").contains("name the authority"));
    }

    #[test]
    fn sentinels_have_hosts_a_name_and_a_login_of_their_own() {
        let url = "rediss+sentinel://u:p@h1:1,[::1],h3/main/2?sentinel_password=q%20q";
        let form = parse(url, "key").unwrap();
        assert_eq!(form.shown, "main of h1:1,::1:26379,h3:26379");
        assert_eq!((form.login.password(), form.login.db()), (Some("p"), 2));
        assert!(form.tls.is_some());
        let ServerPlace::By { question, guides, login } = form.place else { panic!("one server") };
        assert_eq!((question, guides.len()), (Question::Primary("main".to_owned()), 3));
        assert_eq!((login.username(), login.password(), login.db()), (None, Some("q q"), 0));
        assert!(refused("redis+sentinel://h1,h2").contains("not whom they watch"));
        assert!(refused("redis+sentinel://h1,/main").contains("malformed"));
        assert!(refused("redis://h?sentinel_user=a").contains("`sentinel_user`"));
    }

    #[test]
    fn nodes_of_a_cluster_are_asked_for_a_slot() {
        let form = parse("rediss+cluster://:p@h1,h2:7001/", "{foo}:a").unwrap();
        assert_eq!(form.shown, "the cluster of h1:6379,h2:7001");
        let ServerPlace::By { question, login, .. } = form.place else { panic!("one server") };
        assert_eq!(question, Question::Owner { slot: 12182, by_name: true });
        assert_eq!((login.password(), form.login.password()), (Some("p"), Some("p")));
        assert!(refused("redis+cluster://h/1").contains("which has one alone"));
        assert!(refused("redis+cluster://h?sentinel_user=a").contains("`sentinel_user`"));
    }

    #[test]
    fn no_error_shows_a_password() {
        for url in [
            "redis://user:hush@",
            "redis://:hush@host/not-a-number",
            "rediss://:hush@host?x=1",
            "redis+sentinel://:hush@host",
            "redis+sentinel://:hush@host/main/none",
            "redis://:pa?ss=hush@host",
            "redis://:hu#hush@host",
            "http://:hush@host",
            "hush",
        ] {
            assert!(!refused(url).contains("hush"), "{url}");
        }
    }
}
