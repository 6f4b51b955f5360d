//! URLs without their passwords.

/// The URL with its password replaced by `***`; text that has none stays as it is.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may hold any character but `/`, `?` and `#`, which end the authority.
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let shown = match authority.rsplit_once('@') {
        Some((user, hosts)) => match user.split_once(':') {
            Some((name, _)) => format!("{scheme}://{name}:***@{hosts}{path}"),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    };
    match shown.split_once("password=") {
        Some((before, after)) => {
            let tail = after.find('&').map_or("", |index| &after[index..]);
            format!("{before}password=***{tail}")
        }
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn no_password_is_shown() {
        let cases = [
            ("postgres://u:p@h:1/d", "postgres://u:***@h:1/d"),
            ("postgres://u:p@ss:w@h/d?x=1", "postgres://u:***@h/d?x=1"),
            ("redis://:secret@h", "redis://:***@h"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            (
                "redis+sentinel://u:p@h1,h2/main?sentinel_password=q&ca=c",
                "redis+sentinel://u:***@h1,h2/main?sentinel_password=***&ca=c",
            ),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("postgres://h/d?user=u&password=p&x=1", "postgres://h/d?user=u&password=***&x=1"),
            ("text", "text"),
        ];
        for (url, shown) in cases {
            assert_eq!(redacted(url), shown);
        }
    }
}
