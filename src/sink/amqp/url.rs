//! The URL of an AMQP broker, as Celery and RabbitMQ's own clients read it (kombu documentation, chapter "Connections and
//! transports"; RabbitMQ documentation, "URI specification").
//!
//! `amqp://[user[:password]@]host[:port][/vhost]`, `amqps://` with `ssl_cert_reqs`, `ssl_ca_certs`, `ssl_certfile`,
//! `ssl_keyfile` and `ssl_check_hostname`; `heartbeat` in seconds. User, password, host and virtual host are percent-encoded.
//! `pyamqp://` is `amqp://`. A client certificate without a user logs in by itself (EXTERNAL).
//!
//! Several of them with `;` between, each a whole URL, are the nodes of one cluster.

use std::fmt;

use secrecy::SecretString;

use crate::sink::broker_url::{TlsOptions, decode, filled, host_and_port, login, tls_option};
use crate::tls::Rules;

/// Where an AMQP broker is, and how to get in.
#[derive(Clone, Debug)]
pub struct Address {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// Who we are; `None` where our certificate says it.
    pub login: Option<Login>,
    /// Seconds between heartbeats, at most; the broker's, if none. 0 asks for none.
    pub heartbeat: Option<u16>,
    /// Set for `amqps://`.
    pub tls: Option<Rules>,
}

/// A user.
#[derive(Clone, Debug)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// Where the broker is, without user, password and options; for logs.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let vhost = match self.vhost.as_str() {
            "/" => "",
            vhost => &format!("/{vhost}"),
        };
        let port = self.port;
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{port}{vhost}", self.host),
            false => write!(f, "{scheme}://{}:{port}{vhost}", self.host),
        }
    }
}

/// Whether a URL is of an AMQP broker, by its scheme.
pub fn is_amqp(url: &str) -> bool {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    matches!(scheme, Some("amqp" | "amqps" | "pyamqp" | "librabbitmq"))
}

/// Reads the URL of a broker, or those of its nodes with `;` between; in their order, one at least.
///
/// # Errors
/// Says what is wrong, and with which one, without showing the URL: it may hold a password.
pub fn parse(urls: &str) -> Result<Vec<Address>, String> {
    let is_one = !urls.contains(';');
    let nodes = urls.split(';').enumerate();
    // Where a list is put together, a separator too many is nobody's node.
    let nodes = nodes.filter(|(_, url)| is_one || !url.is_empty());
    let read = |(index, url)| match node(url) {
        Err(words) if !is_one => {
            let number = index + 1;
            Err(format!(
                "names several brokers, and number {number} {words}"
            ))
        }
        read => read,
    };
    let nodes = nodes.map(read).collect::<Result<Vec<_>, _>>()?;
    match nodes.is_empty() {
        true => Err("names no broker".to_owned()),
        false => Ok(nodes),
    }
}

fn node(url: &str) -> Result<Address, String> {
    let (scheme, rest) = url
        .split_once("://")
        .filter(|_| is_amqp(url))
        .ok_or("is no URL of an AMQP broker: amqp://user:password@host:5672/vhost")?;
    let mut tls = (scheme == "amqps").then(TlsOptions::default);
    let default_port = if tls.is_some() { 5671 } else { 5672 };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, password, host) = login(authority)?;
    let (host, port) = host_and_port(host, default_port)?;
    let vhost = filled(decode(path)?).unwrap_or("/".to_owned());
    let mut heartbeat = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(&value.replace('+', " "))?;
        if name == "heartbeat" {
            let seconds = value
                .parse()
                .map_err(|_| "must give heartbeat in whole seconds, up to 65535")?;
            heartbeat = Some(seconds);
            continue;
        }
        tls_option(tls.as_mut(), name, &value, "amqps://", ", and heartbeat")?;
    }
    let tls = tls.map(TlsOptions::rules).transpose()?;
    let has_certificate = tls.as_ref().is_some_and(|rules| rules.client.is_some());
    let login = match user {
        None if has_certificate => None,
        // RabbitMQ's own first user, who may come from the same machine only.
        user => Some(Login {
            user: user.unwrap_or("guest".to_owned()),
            password: password.unwrap_or("guest".into()),
        }),
    };
    if vhost.len() > usize::from(u8::MAX) {
        return Err("has a virtual host of more than 255 bytes".to_owned());
    }
    Ok(Address {
        host,
        port,
        vhost,
        login,
        heartbeat,
        tls,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::tls::Roots;

    #[test]
    fn reads_what_celery_reads() {
        let guest = Some(("guest", "guest"));
        for (url, shown, vhost, login) in [
            ("amqp://", "amqp://127.0.0.1:5672", "/", guest),
            ("pyamqp://h//", "amqp://h:5672", "/", guest),
            ("amqp://h/", "amqp://h:5672", "/", guest),
            ("amqp://h/%2F", "amqp://h:5672", "/", guest),
            ("amqp://h:1/shop", "amqp://h:1/shop", "shop", guest),
            ("amqp://h//shop", "amqp://h:5672//shop", "/shop", guest),
            (
                "amqp://me:p%40ss%2Fw@[::1]/a%20b",
                "amqp://[::1]:5672/a b",
                "a b",
                Some(("me", "p@ss/w")),
            ),
            ("amqps://me@h", "amqps://h:5671", "/", Some(("me", "guest"))),
            (
                "amqps://h?ssl_certfile=/c&ssl_keyfile=/k",
                "amqps://h:5671",
                "/",
                None,
            ),
        ] {
            let address = node(url).unwrap();
            let found = address.login.as_ref();
            let found = found.map(|l| (l.user.as_str(), l.password.expose_secret()));
            assert_eq!(
                (address.to_string().as_str(), address.vhost.as_str(), found),
                (shown, vhost, login),
                "{url}"
            );
            assert!(!format!("{address:?}").contains("p@ss"));
        }
        let address =
            node("amqps://me:x@h?ssl_cert_reqs=none&ssl_certfile=/c&ssl_keyfile=/k&heartbeat=10")
                .unwrap();
        assert_eq!(address.heartbeat, Some(10));
        assert!(address.login.is_some());
        let rules = address.tls.unwrap();
        assert_eq!(rules.roots, Roots::Unverified);
        assert_eq!(rules.client, Some(("/c".into(), "/k".into())));
    }

    #[test]
    fn several_are_read_as_one_each() {
        let urls = "amqp://u:p@a/vh;amqps://me:s3cret@b:1/vh?heartbeat=5&ssl_cert_reqs=none;pyamqp://[::1];";
        let nodes = parse(urls).unwrap();
        let shown: Vec<String> = nodes.iter().map(Address::to_string).collect();
        assert_eq!(
            shown,
            ["amqp://a:5672/vh", "amqps://b:1/vh", "amqp://[::1]:5672"]
        );
        // Nothing of one goes over to the next.
        let of_each = |node: &Address| {
            let user = node.login.as_ref().map(|login| login.user.clone());
            let roots = node.tls.as_ref().map(|rules| rules.roots.clone());
            (user.unwrap_or_default(), node.heartbeat, roots)
        };
        let of_each: Vec<_> = nodes.iter().map(of_each).collect();
        let expected = [
            ("u".to_owned(), None, None),
            ("me".to_owned(), Some(5), Some(Roots::Unverified)),
            ("guest".to_owned(), None, None),
        ];
        assert_eq!(of_each, expected);
        assert_eq!(parse("amqp://a").unwrap().len(), 1);
    }

    #[test]
    fn says_what_is_wrong_without_showing_the_password() {
        for (url, words) in [
            ("h:5672", "no URL"),
            ("redis://:s3cret@h", "no URL of an AMQP broker"),
            (";", "no broker"),
            (
                "amqp://u:s3cret@a;b",
                "several brokers, and number 2 is no URL of an AMQP broker",
            ),
            (
                "amqp://u:s3cret@a;redis://:s3cret@b",
                "number 2 is no URL of an AMQP broker",
            ),
            (
                "amqp://u:s3cret@a;; amqp://u:s3cret@b",
                "number 3 is no URL of an AMQP broker",
            ),
            ("amqp://u:s3cret@a:port;amqp://b", "number 1 has a port"),
            ("amqp://u:s3c;ret@a", "number 1 has a port"),
            (
                "amqps://a?ssl_cert_reqs=none;amqp://b?ssl_cert_reqs=none",
                "number 2 has the option",
            ),
            ("amqp://u:s3cret@h:port", "port"),
            ("amqp://u:s3cret@h/%ff", "percent-encoding"),
            ("amqp://u:s3cret@h?ssl_cert_reqs=none", "amqps:// only"),
            ("amqp://u:s3cret@h?heartbeat=s3cret", "whole seconds"),
            ("amqp://u:s3cret@h?tiemout=1", "not known"),
            ("amqps://u:s3cret@h?ssl_certfile=/c", "together"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{url}: {error}");
        }
    }
}
