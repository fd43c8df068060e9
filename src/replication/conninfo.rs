//! Pure: the syntax of a connection string, as keywords and values.
//!
//! Both forms of libpq (Postgres documentation, chapter "Connection Strings"): `postgres://…` and `host=… user=…`.
//! What the keywords mean is the business of [`super::target`]. No error repeats any part of the text, since any
//! part of a mistyped text may be the password.

use percent_encoding::percent_decode_str;

/// Keywords and values in the order of the text; where one comes twice, the last one counts.
pub(super) type Pairs = Vec<(String, String)>;

/// Splits a connection string of either form.
pub(super) fn split(text: &str) -> Result<Pairs, String> {
    let text = text.trim();
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"));
    match rest {
        Some(rest) => split_url(rest),
        None if text.contains("://") => Err(
            "the URL has a scheme that is not Postgres's: write postgres://user@host/database"
                .to_owned(),
        ),
        None => split_keywords(text),
    }
}

fn split_url(rest: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = match rest.split_once('/') {
        Some((authority, database)) => (authority, database),
        None => (rest, ""),
    };
    // A password with a raw / ? or @ in it would be cut up, and its parts shown as names.
    if database.contains('@') || query.is_some_and(|q| q.contains('@')) {
        return Err(
            "the URL has an @ behind the host: percent-encode any of : / @ ? in the password, and any @ in a \
             parameter"
                .to_owned(),
        );
    }
    let hosts = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => {
            let (user, password) = match userinfo.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (userinfo, None),
            };
            push(&mut pairs, "user", user)?;
            if let Some(password) = password {
                push(&mut pairs, "password", password)?;
            }
            hosts
        }
        None => authority,
    };
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = split_port(host)?;
        names.push(name);
        ports.push(port);
    }
    push(&mut pairs, "host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        push(&mut pairs, "port", &ports.join(","))?;
    }
    push(&mut pairs, "dbname", database)?;
    for parameter in query.into_iter().flat_map(|q| q.split('&')) {
        if parameter.is_empty() {
            continue;
        }
        let (key, value) = parameter.split_once('=').ok_or_else(|| {
            "a parameter after the URL's ? has no value: write key=value".to_owned()
        })?;
        pairs.push((decode(key)?, decode(value)?));
    }
    Ok(pairs)
}

/// `host`, `host:port`, `[::1]`, `[::1]:port`.
fn split_port(host: &str) -> Result<(&str, &str), String> {
    let bad = || {
        "a host of the URL is not understood: write host:port, or [address]:port for IPv6, and percent-encode \
         any of : / @ ? in the password"
            .to_owned()
    };
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if rest.is_empty() => Ok((address, "")),
            None => Err(bad()),
        };
    }
    match host.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(bad()),
        Some((name, port)) => Ok((name, port)),
        None => Ok((host, "")),
    }
}

fn push(pairs: &mut Pairs, key: &str, value: &str) -> Result<(), String> {
    if !value.is_empty() {
        pairs.push((key.to_owned(), decode(value)?));
    }
    Ok(())
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| "the URL has a percent-encoded part that is not UTF-8".to_owned())
}

/// `key = value` or `key = 'a value'`; a quote or a backslash is written with a backslash before it.
fn split_keywords(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') || key.is_empty() {
            return Err(
                "the text is not a connection string: write postgres://user@host/database, or \
                 host=… user=… dbname=…"
                    .to_owned(),
            );
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if c.is_whitespace() && !quoted => break,
                Some(c) => value.push(c),
                None if quoted => {
                    return Err(
                        "a quoted value of the connection string has no closing quote".to_owned(),
                    );
                }
                None => break,
            }
        }
        pairs.push((key, value));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Result<Pairs, String> {
        Ok(pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect())
    }

    #[test]
    fn splits_both_forms() {
        for (text, pairs) in [
            ("postgres://", &[] as &[(&str, &str)]),
            ("postgresql://db", &[("host", "db")]),
            (
                "postgres://u:p%40%2f@a:1,[::1]:2/d%20b?sslmode=require&x=%25",
                &[
                    ("user", "u"),
                    ("password", "p@/"),
                    ("host", "a,::1"),
                    ("port", "1,2"),
                    ("dbname", "d b"),
                    ("sslmode", "require"),
                    ("x", "%"),
                ],
            ),
            (
                "postgres://u@/d?host=/run/pg",
                &[("user", "u"), ("dbname", "d"), ("host", "/run/pg")],
            ),
            (
                "postgres://u@%2Frun%2Fpg/d",
                &[("user", "u"), ("host", "/run/pg"), ("dbname", "d")],
            ),
            (
                "postgres://u@a,b:7/d",
                &[
                    ("user", "u"),
                    ("host", "a,b"),
                    ("port", ",7"),
                    ("dbname", "d"),
                ],
            ),
            (
                r"host = /run user='o\'brien x' password=a\ b\\c options=''",
                &[
                    ("host", "/run"),
                    ("user", "o'brien x"),
                    ("password", r"a b\c"),
                    ("options", ""),
                ],
            ),
        ] {
            assert_eq!(split(text), owned(pairs), "{text}");
        }
    }

    #[test]
    fn no_error_repeats_the_text() {
        for bad in [
            "mysql://u:tops3cret@h/d",
            "postgres://u:tops3cret:x@[::1/d",
            "postgres://u:tops3cret/x@h/d",
            "postgres://u:to?ps3cret=x@h/d",
            "postgres://u:t@o?ps3cret=x@h/d",
            "postgres://u:%ff@h/d",
            "postgres://u:tops3cret@h/d?sslmode",
            "tops3cret",
            "host=a password='tops3cret",
            "=tops3cret",
        ] {
            let words = split(bad).expect_err(bad);
            assert!(!words.contains("s3cret"), "{words}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(postgres://)?[\\PC]{0,40}") {
            let _ = split(&text);
        }
    }
}
