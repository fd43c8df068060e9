//! Where the servers are: `nats://[user:password@|token@]host[:port]`, `tls://...`, several of one cluster with commas.

use std::fmt;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

/// A server, and how its URL says that we log in.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// It begins with `tls://`.
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    /// The password; the token, where there is no user.
    pub(super) secret: Option<SecretString>,
}

/// Without user and secret; for logs.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// Reads a list of URLs.
///
/// # Errors
/// Says what is wrong, without showing the URL: it may hold a password. Begins with a verb.
pub(super) fn parse(urls: &str) -> Result<Vec<Server>, String> {
    urls.split(',').map(|url| server(url.trim())).collect()
}

fn server(url: &str) -> Result<Server, String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or("is no URL: write it as nats://host:4222, several with commas between")?;
    let tls = match scheme {
        "nats" => false,
        "tls" => true,
        "ws" | "wss" => {
            return Err(format!(
                "begins with {scheme}://, and WebSockets are not offered: name the server's own port"
            ));
        }
        _ => return Err("has a scheme that is not known: nats:// and tls:// are".to_owned()),
    };
    if rest.contains('?') {
        return Err("has options after a ?: they are keys of their own here".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err("has a path, which NATS has no use for".to_owned());
    }
    let (login, address) = match rest.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, rest),
    };
    let (user, secret) = match login.map(|login| login.split_once(':').ok_or(login)) {
        None => (None, None),
        Some(Ok((user, password))) => (Some(decode(user)?), Some(decode(password)?)),
        Some(Err(token)) => (None, Some(decode(token)?)),
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .ok_or("lacks the ] after an IPv6 address")?;
            (host, port.strip_prefix(':').unwrap_or(port))
        }
        None => address.split_once(':').unwrap_or((address, "")),
    };
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    let port = match port {
        "" => 4222,
        port => port
            .parse()
            .map_err(|_| "has a port that is no number from 1 to 65535".to_owned())?,
    };
    Ok(Server {
        host: host.to_owned(),
        port,
        tls,
        user,
        secret: secret.map(SecretString::from),
    })
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "holds a percent-encoding that is no UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn urls() {
        for (urls, shown, user, secret) in [
            ("nats://localhost", "nats://localhost:4222", None, None),
            ("nats://h:1/", "nats://h:1", None, None),
            ("tls://h", "tls://h:4222", None, None),
            (
                "nats://me:p%40ss@h",
                "nats://h:4222",
                Some("me"),
                Some("p@ss"),
            ),
            ("nats://t0ken@h:2", "nats://h:2", None, Some("t0ken")),
            ("nats://[::1]:3", "nats://[::1]:3", None, None),
            ("nats://[::1]", "nats://[::1]:4222", None, None),
        ] {
            let servers = parse(urls).unwrap();
            let [server] = servers.as_slice() else {
                panic!("one server")
            };
            assert_eq!(server.to_string(), shown);
            assert_eq!(server.user.as_deref(), user);
            let found = server.secret.as_ref().map(|secret| secret.expose_secret());
            assert_eq!(found, secret);
            assert!(!format!("{server:?}").contains("p@ss"));
        }
        assert_eq!(parse("nats://a:1, tls://b").unwrap().len(), 2);
    }

    #[test]
    fn says_what_is_wrong_without_showing_the_password() {
        for (urls, words) in [
            ("", "no URL"),
            ("localhost:4222", "no URL"),
            ("nats://u:s3cret@h,", "no URL"),
            ("ws://u:s3cret@h", "WebSockets"),
            ("http://u:s3cret@h", "scheme"),
            ("nats://u:s3cret@h?tls=1", "options"),
            ("nats://u:s3cret@h/a/b", "path"),
            ("nats://u:s3cret@", "names no host"),
            ("nats://u:s3cret@h:port", "port"),
            ("nats://u:s3cret@h:70000", "port"),
            ("nats://u:s3cret@[::1", "IPv6"),
            ("nats://u:s3cret%ff@h", "percent-encoding"),
        ] {
            let error = parse(urls).unwrap_err();
            assert!(error.contains(words), "{urls}: {error}");
            assert!(!error.contains("s3cret"), "{urls}: {error}");
        }
    }
}
