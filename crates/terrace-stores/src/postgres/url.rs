//! The parameters of a URL that the driver does not know in full, and those that nobody knows.

use std::path::PathBuf;

use terrace_core::{Error, Result};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::parameters::decode;

/// What the driver takes as it stands.
const DRIVER: [&str; 16] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "password",
    "port",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// What a URL says beside where the database is.
pub(super) struct Parameters {
    pub(super) ssl_mode: SslMode,
    pub(super) verify: bool,
    pub(super) root_certificates: Option<PathBuf>,
    /// The settings of `options`.
    pub(super) settings: Vec<(String, String)>,
    /// The names of those that the driver was given.
    names: Vec<String>,
}

impl Parameters {
    /// Whether the URL has this parameter of the driver's.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|it| it == name)
    }
}

/// What the driver makes of the URL, and the rest.
pub(super) fn parse(url: &str) -> Result<(Config, Parameters)> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Error::invalid(
            "the PostgreSQL URL must begin with postgres://; write \
             postgres://user:password@host:port/database",
        ));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    if query.contains('@') {
        // What seems to be the name of a parameter may be a part of the password.
        return Err(Error::invalid(
            "the PostgreSQL URL has an @ behind a ?; write %3F for a ? in the password, and %40 for \
             an @ in a parameter",
        ));
    }
    let (mut config, mut pairs): (Config, _) = (base.parse().map_err(unreadable)?, Vec::new());
    let (mut mode, mut roots, mut settings) = ("prefer", None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "sslmode" => mode = value,
            "sslrootcert" => roots = Some(PathBuf::from(decode(name, value)?)),
            "options" => settings = settings_of(&decode(name, value)?)?,
            _ if DRIVER.contains(&name) => {
                let valued = format!("{base}?{pair}").parse::<Config>();
                valued.map_err(|_driver_text_may_hold_the_url| {
                    Error::invalid(format!(
                        "the value of `{name}` in the PostgreSQL URL cannot be read; correct it"
                    ))
                })?;
                pairs.push(pair);
            }
            _ => return Err(unknown(name)),
        }
    }
    let (ssl_mode, verify) = match mode {
        "disable" => (SslMode::Disable, false),
        "prefer" => (SslMode::Prefer, false),
        "require" => (SslMode::Require, roots.is_some()),
        "verify-full" => (SslMode::Require, true),
        _ => {
            return Err(Error::invalid("sslmode must be disable, prefer, require or verify-full"));
        }
    };
    if !pairs.is_empty() {
        config = format!("{base}?{}", pairs.join("&")).parse().map_err(unreadable)?;
    }
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    let names = pairs.into_iter().map(name).collect();
    Ok((config, Parameters { ssl_mode, verify, root_certificates: roots, settings, names }))
}

fn unreadable(_driver_text_may_hold_the_url: tokio_postgres::Error) -> Error {
    Error::invalid(
        "the PostgreSQL URL cannot be read; write postgres://user:password@host:port/database",
    )
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!(
        "the PostgreSQL URL has the parameter `{name}`, which Terrace does not know; remove it (known: \
         sslmode, sslrootcert, options, {})",
        DRIVER.join(", ")
    ))
}

/// The settings of `-c name=value` and `--name=value`, as the server's own command line has them
/// (PostgreSQL manual, 34.1.2 "Parameter Key Words").
fn settings_of(options: &str) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(setting) => Some(setting.to_owned()),
            None if word == "-c" => words.next(),
            None => word.strip_prefix("-c").map(str::to_owned),
        };
        let Some((name, value)) = setting.as_deref().and_then(|it| it.split_once('=')) else {
            return Err(Error::invalid(format!(
                "the `options` of the PostgreSQL URL have {word}, which Terrace does not know; write \
                 -c name=value for each setting"
            )));
        };
        settings.push((name.replace('-', "_").to_lowercase(), value.to_owned()));
    }
    Ok(settings)
}

/// Words between blanks; a backslash takes the next character as it is.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            blank if blank.is_whitespace() => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_the_server_reads_them() {
        let set = |text: &str| settings_of(text).map_err(|error| error.to_string());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(set(""), Ok(vec![]));
        let asked = "-c a=1  -cb=x\\ y --lock-timeout=7s";
        assert_eq!(
            set(asked),
            Ok(vec![pair("a", "1"), pair("b", "x y"), pair("lock_timeout", "7s")])
        );
        for wrong in ["-e", "-c", "-c a", "a=1", "--a"] {
            assert!(set(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_taken_for_a_name() {
        for url in ["postgres://u:pa?ss=hush@h/d", "postgres://u:p@h/d?tricky@hush"] {
            let error = parse(url).map(drop).expect_err(url);
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        let error =
            parse("postgres://u@h/d?connect_timeout=soon").map(drop).expect_err("no number");
        assert!(error.to_string().contains("`connect_timeout`"), "{error}");
    }
}
