//! The broker URL as Celery reads it (kombu documentation, chapter "Connections and transports").
//!
//! `redis://[[user]:password@]host[:port][/db]`, `rediss://` with `ssl_cert_reqs`, `ssl_ca_certs`, `ssl_certfile`,
//! `ssl_keyfile` and `ssl_check_hostname`, `redis+socket:///path?virtual_host=db`, `unix:///path?db=db`.
//! User, password, host and paths are percent-encoded.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

use crate::sink::broker_url::{TlsOptions, decode, host_and_port, login, tls_option};
use crate::tls::Rules;

/// Where a Redis broker is, and how to get in.
#[derive(Clone, Debug)]
pub struct Address {
    /// The socket.
    pub place: Place,
    /// The ACL user; Redis's `default`, if none.
    pub user: Option<String>,
    /// The password.
    pub password: Option<SecretString>,
    /// The database.
    pub db: u32,
    /// Set for `rediss://`.
    pub tls: Option<Rules>,
    /// The name that its certificate must be for, where that is not the place's host.
    pub name: Option<String>,
}

/// A socket.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// TCP.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Where Redis listens.
pub(super) const PORT: u16 = 6379;

/// Where the broker is, without user, password and options; for logs.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let (place, db) = (&self.place, self.db);
        match place {
            Place::Tcp { .. } => write!(f, "{scheme}://{place}/{db}"),
            Place::Unix(_) => write!(f, "redis+socket://{place}?virtual_host={db}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp { host, port } => write!(f, "{host}:{port}"),
            Place::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Reads a broker URL.
///
/// # Errors
/// Says what is wrong, without showing the URL: it may hold a password.
pub fn parse(url: &str) -> Result<Address, String> {
    parse_at(url, PORT)
}

/// The same, where another port is the usual one.
pub(in crate::sink) fn parse_at(url: &str, port: u16) -> Result<Address, String> {
    let (scheme, rest) = url.split_once("://").ok_or(
        "is no URL: write it as in the Celery application, redis://host:6379/0 for instance",
    )?;
    if url.contains(';') {
        return Err(
            // RabbitMQ's nodes share their queues.
            "names several brokers: two Redis are two sets of data, so name one, or its sentinels"
                .to_owned(),
        );
    }
    match scheme {
        "redis" | "rediss" | "redis+socket" | "unix" => {}
        _ => {
            return Err(
                "has a scheme that is not known: redis://, rediss://, redis+socket://, sentinel://, amqp:// and amqps:// are"
                    .to_owned(),
            );
        }
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let socket = matches!(scheme, "redis+socket" | "unix");
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, password, host) = login(authority)?;
    let mut address = Address {
        place: Place::Unix(PathBuf::new()),
        user,
        password,
        db: 0,
        tls: None,
        name: None,
    };
    let mut tls = (scheme == "rediss").then(TlsOptions::default);
    if socket {
        if !host.is_empty() || path.is_empty() {
            return Err(
                "needs the socket's full path after three slashes: redis+socket:///run/redis.sock"
                    .to_owned(),
            );
        }
        address.place = Place::Unix(PathBuf::from(format!("/{}", decode(path)?)));
    } else {
        address.place = tcp(host, port)?;
        address.db = database(&decode(path)?)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set_option(
            &mut address,
            tls.as_mut(),
            name,
            &decode(&value.replace('+', " "))?,
        )?;
    }
    address.tls = tls.map(TlsOptions::rules).transpose()?;
    Ok(address)
}

/// A socket of TCP.
pub(super) fn tcp(host: &str, default_port: u16) -> Result<Place, String> {
    let (host, port) = host_and_port(host, default_port)?;
    Ok(Place::Tcp { host, port })
}

fn database(text: &str) -> Result<u32, String> {
    let number = text.trim_matches('/');
    if number.is_empty() {
        return Ok(0);
    }
    number
        .parse()
        .map_err(|_| "must end in a database number, such as /0".to_owned())
}

fn set_option(
    address: &mut Address,
    tls: Option<&mut TlsOptions>,
    name: &str,
    value: &str,
) -> Result<(), String> {
    if matches!(name, "virtual_host" | "db") && matches!(address.place, Place::Unix(_)) {
        address.db = database(value)?;
        return Ok(());
    }
    tls_option(
        tls,
        name,
        value,
        "rediss://",
        ", and virtual_host for a socket",
    )
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::tls::Roots;

    fn login(address: &Address) -> (Option<&str>, Option<&str>) {
        let password = address.password.as_ref().map(|p| p.expose_secret());
        (address.user.as_deref(), password)
    }

    #[test]
    fn reads_what_celery_reads() {
        for (url, shown, user, password) in [
            ("redis://", "redis://127.0.0.1:6379/0", None, None),
            ("redis://localhost", "redis://localhost:6379/0", None, None),
            (
                "redis://localhost:6380/",
                "redis://localhost:6380/0",
                None,
                None,
            ),
            (
                "redis://localhost//3",
                "redis://localhost:6379/3",
                None,
                None,
            ),
            (
                "redis://:p%40ss%2Fw@h:1/15",
                "redis://h:1/15",
                None,
                Some("p@ss/w"),
            ),
            (
                "redis://me:a:b@h",
                "redis://h:6379/0",
                Some("me"),
                Some("a:b"),
            ),
            ("redis://me@h", "redis://h:6379/0", Some("me"), None),
            (
                "redis://:pw@[::1]:7000/2",
                "redis://[::1]:7000/2",
                None,
                Some("pw"),
            ),
            ("rediss://h:6380/1", "rediss://h:6380/1", None, None),
            (
                "redis+socket:///run/my%20redis.sock?virtual_host=4",
                "redis+socket:///run/my redis.sock?virtual_host=4",
                None,
                None,
            ),
            (
                "redis+socket://:pw@/run/redis.sock",
                "redis+socket:///run/redis.sock?virtual_host=0",
                None,
                Some("pw"),
            ),
            (
                "unix:///run/redis.sock?db=2",
                "redis+socket:///run/redis.sock?virtual_host=2",
                None,
                None,
            ),
        ] {
            let address = parse(url).unwrap();
            assert_eq!(address.to_string(), shown, "{url}");
            assert_eq!(login(&address), (user, password), "{url}");
            assert!(!format!("{address:?}").contains("p@ss"));
        }
        let address = parse(
            "rediss://h?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=%2Fetc%2Fca.pem&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=False",
        );
        let expected = Rules {
            roots: Roots::Unverified,
            check_name: false,
            client: Some(("/c".into(), "/k".into())),
        };
        assert_eq!(address.unwrap().tls, Some(expected));
        for (options, roots) in [
            ("", Roots::System),
            (
                "?ssl_ca_certs=/etc/ca.pem",
                Roots::File("/etc/ca.pem".into()),
            ),
        ] {
            let tls = parse(&format!("rediss://h{options}")).unwrap().tls.unwrap();
            assert_eq!((tls.roots, tls.check_name, tls.client), (roots, true, None));
        }
    }

    #[test]
    fn says_what_is_wrong_without_showing_the_password() {
        for (url, words) in [
            ("localhost:6379", "no URL"),
            ("sentinel://:s3cret@h", "scheme"),
            ("sqs://s3cret", "scheme"),
            ("redis://:s3cret@a/0;redis://:s3cret@b/0", "several brokers"),
            ("redis://:s3cret@h:port/0", "port"),
            ("redis://:s3cret@h:70000/0", "port"),
            ("redis://:s3cret@[::1/0", "IPv6"),
            ("redis://:s3cret@h/celery", "database number"),
            ("redis://:s3cret@h/-1", "database number"),
            ("redis://:s3cret%ff@h/0", "percent-encoding"),
            ("redis://:s3cret@h?ssl_cert_reqs=none", "rediss:// only"),
            ("redis://:s3cret@h?tiemout=1", "not known"),
            (
                "rediss://:s3cret@h?ssl_cert_reqs=maybe",
                "required, optional or none",
            ),
            ("rediss://:s3cret@h?ssl_certfile=/c", "together"),
            ("redis+socket://:s3cret@run/redis.sock", "three slashes"),
            ("redis+socket://", "three slashes"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{url}: {error}");
        }
    }
}
