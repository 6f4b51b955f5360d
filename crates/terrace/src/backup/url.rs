//! URLs of databases, for programs that are not Terrace.

use percent_encoding::percent_decode_str;

/// What a URL is made of: scheme, login, what follows the login up to the parameters, parameters.
fn parts(url: &str) -> (&str, Option<&str>, &str, Vec<&str>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (login, base) = match base.rsplit_once('@') {
        Some((login, base)) => (Some(login), base),
        None => (None, base),
    };
    (scheme, login, base, query.split('&').filter(|pair| !pair.is_empty()).collect())
}

/// The URL without its password, and the password.
pub(super) fn without_password(url: &str) -> (String, Option<String>) {
    let (scheme, login, base, pairs) = parts(url);
    let (user, mut password) = match login.map(|login| login.split_once(':').unwrap_or((login, "")))
    {
        Some((user, "")) => (format!("{user}@"), None),
        Some((user, password)) => (format!("{user}@"), Some(password)),
        None => (String::new(), None),
    };
    password = pairs.iter().find_map(|pair| pair.strip_prefix("password=")).or(password);
    let rest = pairs.into_iter().filter(|pair| !pair.starts_with("password=")).collect::<Vec<_>>();
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    (format!("{scheme}://{user}{base}{query}"), password.map(decoded))
}

/// The same database, with the same login, on a private server of this machine.
pub(super) fn on_port(url: &str, port: u16) -> String {
    let (scheme, login, base, pairs) = parts(url);
    let login = login.map(|login| format!("{login}@")).unwrap_or_default();
    let database = base.split_once('/').map_or("", |(_, name)| name);
    let kept = ["user=", "password=", "dbname="];
    let kept = pairs.into_iter().filter(|pair| kept.iter().any(|name| pair.starts_with(name)));
    let query = kept.chain(["sslmode=disable"]).collect::<Vec<_>>().join("&");
    format!("{scheme}://{login}127.0.0.1:{port}/{database}?{query}")
}

#[cfg(test)]
mod tests {
    use super::{on_port, without_password};

    #[test]
    fn no_password_is_left_in_the_url() {
        let taken = |url, password: Option<&str>| (String::from(url), password.map(String::from));
        for (url, expected) in [
            ("postgres://u:p%40q@a:1,b/d", taken("postgres://u@a:1,b/d", Some("p@q"))),
            ("postgres://u@a/d?sslmode=require", taken("postgres://u@a/d?sslmode=require", None)),
            ("postgres://a/d?user=u&password=x", taken("postgres://a/d?user=u", Some("x"))),
            ("postgres://a", taken("postgres://a", None)),
        ] {
            assert_eq!(without_password(url), expected);
        }
    }

    #[test]
    fn a_restored_copy_has_the_same_login() {
        assert_eq!(
            on_port("postgres://u:p@a:1,b:2/d?sslmode=verify-full&application_name=x", 7),
            "postgres://u:p@127.0.0.1:7/d?sslmode=disable"
        );
    }
}
