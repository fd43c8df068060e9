//! Pure: where the server is and how to get in.
//!
//! The keywords are those of libpq (Postgres documentation, chapter "Parameter Key Words"), as far as a daemon that
//! streams needs them; any other is an error, since ignoring one could weaken what the operator asked for. Neither
//! the environment nor `~/.pgpass` nor `~/.postgresql` is looked at.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::conninfo;
use super::keywords::Keywords;
use crate::tls::{Roots, Rules};

/// How long one address may take, from the first packet to a session that is ready.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 5432;

/// Where the server is and how to get in; parsed once from the URL.
///
/// `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Target {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) password: Option<SecretString>,
    pub(super) database: String,
    pub(super) ssl_mode: SslMode,
    pub(super) tls: Rules,
    pub(super) channel_binding: ChannelBinding,
    pub(super) connect_timeout: Duration,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    pub(super) recovery_allowed: bool,
}

/// One place to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) address: Address,
    pub(super) port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// A name or an IP address.
    Tcp(String),
    /// The directory that holds the server's socket.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Address::Tcp(name) => write!(f, "{name}:{}", self.port),
            Address::Unix(_) => write!(f, "{}", self.socket_path().display()),
        }
    }
}

impl Host {
    /// The file of the server's unix socket; empty for TCP.
    pub(super) fn socket_path(&self) -> PathBuf {
        match &self.address {
            Address::Tcp(_) => PathBuf::new(),
            Address::Unix(directory) => directory.join(format!(".s.PGSQL.{}", self.port)),
        }
    }
}

/// libpq's `sslmode` (Postgres documentation, chapter "Protection Provided in Different Modes").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only where the server refuses a session without.
    Allow,
    /// TLS where the server offers it.
    Prefer,
    /// TLS; the certificate is verified only where `sslrootcert` is given.
    Require,
    /// TLS, with a certificate from the given authority.
    VerifyCa,
    /// TLS, with a trusted certificate for this host name.
    VerifyFull,
}

/// libpq's `channel_binding`: SCRAM that also proves that both ends see the same TLS session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl Target {
    /// Reads `postgres://user[:password]@host[:port][,…]/database?…` or `host=… user=… dbname=…`.
    ///
    /// `password` is for a URL that has none.
    ///
    /// # Errors
    /// What is wrong and how to write it, in words that repeat no secret.
    pub fn parse(url: &str, password: Option<SecretString>) -> Result<Target, String> {
        let mut found = Keywords::default();
        for (key, value) in conninfo::split(url)? {
            found.set(&key, value)?;
        }
        let password = match (found.take("password"), password) {
            (Some(_), Some(_)) => {
                return Err(
                    "the URL holds a password, and password_file is set too: keep one of them"
                        .to_owned(),
                );
            }
            (inline, file) => inline.map(SecretString::from).or(file),
        };
        if password
            .as_ref()
            .is_some_and(|p| p.expose_secret().contains('\0'))
        {
            return Err("the password holds a zero byte".to_owned());
        }
        let user = found
            .take("user")
            .ok_or("the URL names no user: write postgres://user@host/database")?;
        let database = found.take("dbname").unwrap_or_else(|| user.clone());
        found.refuse_what_would_not_be_kept()?;
        let (ssl_mode, tls) = tls_rules(&mut found)?;
        Ok(Target {
            hosts: hosts(found.take("host"), found.take("port"))?,
            ssl_mode,
            tls,
            channel_binding: found
                .choice(
                    "channel_binding",
                    &[
                        ("disable", ChannelBinding::Disable),
                        ("prefer", ChannelBinding::Prefer),
                        ("require", ChannelBinding::Require),
                    ],
                )?
                .unwrap_or(ChannelBinding::Prefer),
            connect_timeout: connect_timeout(found.take("connect_timeout"))?,
            application_name: found.take("application_name"),
            options: found.take("options"),
            recovery_allowed: false,
            user,
            password,
            database,
        })
    }

    /// The same server, with this password if it has none yet.
    #[must_use]
    pub fn or_password(mut self, password: Option<SecretString>) -> Target {
        self.password = self.password.or(password);
        self
    }

    /// The same server, accepted also while it is in recovery: for a standby that workers read from.
    #[must_use]
    pub fn in_recovery_too(mut self) -> Target {
        self.recovery_allowed = true;
        self
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role that logs in.
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// The hosts that are tried in turn, for logs.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn hosts(names: Option<String>, ports: Option<String>) -> Result<Vec<Host>, String> {
    let names = names.ok_or("the URL names no host: write postgres://user@host/database")?;
    let names: Vec<_> = names.split(',').collect();
    let ports: Vec<_> = ports.as_deref().unwrap_or_default().split(',').collect();
    if ports.len() != 1 && ports.len() != names.len() {
        return Err("give one port, or one for each host".to_owned());
    }
    let port_of = |i: usize| {
        match ports.get(i).or(ports.first()).copied() {
        None | Some("") => Ok(DEFAULT_PORT),
        Some(text) => text
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("a port is not a number between 1 and 65535: percent-encode any of : / @ in the password"),
    }
    };
    let mut hosts = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        let address = match name {
            "" => return Err("a host name is empty".to_owned()),
            _ if name.starts_with('/') => Address::Unix(name.into()),
            _ => Address::Tcp(name.to_owned()),
        };
        let port = port_of(i)?;
        hosts.push(Host { address, port });
    }
    Ok(hosts)
}

fn tls_rules(found: &mut Keywords) -> Result<(SslMode, Rules), String> {
    let mode = found.choice(
        "sslmode",
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    )?;
    let root = found.take("sslrootcert");
    let (mode, roots) = match (mode, root.as_deref()) {
        (None | Some(SslMode::VerifyFull), Some("system")) | (Some(SslMode::VerifyFull), None) => {
            (SslMode::VerifyFull, Roots::System)
        }
        // Anybody can get a certificate from a public authority: without the name it proves nothing.
        (Some(SslMode::VerifyCa), None) | (Some(_), Some("system")) => {
            return Err(
                "with the system's certificate authorities only sslmode=verify-full protects: use it, or name \
                 your own authority's file in sslrootcert"
                    .to_owned(),
            );
        }
        (mode, None) => (mode.unwrap_or(SslMode::Prefer), Roots::Unverified),
        (mode, Some(file)) => (mode.unwrap_or(SslMode::Prefer), Roots::File(file.into())),
    };
    let client = match (found.take("sslcert"), found.take("sslkey")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err("sslcert and sslkey go together: give both or neither".to_owned()),
    };
    let check_name = mode == SslMode::VerifyFull;
    let rules = Rules {
        roots,
        check_name,
        client,
    };
    Ok((mode, rules))
}

fn connect_timeout(seconds: Option<String>) -> Result<Duration, String> {
    match seconds.map(|text| text.parse::<u32>()) {
        None => Ok(CONNECT_TIMEOUT),
        Some(Ok(seconds @ 1..)) => Ok(Duration::from_secs(u64::from(seconds))),
        Some(_) => Err("connect_timeout is a whole number of seconds, 1 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url, None).unwrap_or_else(|e| panic!("{url}: {e}"))
    }

    #[test]
    fn reads_hosts_in_order() {
        let shown = |url| target(url).to_string();
        assert_eq!(shown("postgres://u@a"), "a:5432");
        assert_eq!(shown("postgres://u@a:1,b/d"), "a:1, b:5432");
        assert_eq!(shown("postgres://u@a,b/d?port=7"), "a:7, b:7");
        assert_eq!(shown("host=a,b port=1,2 user=u"), "a:1, b:2");
        assert_eq!(shown("postgres://u@[::1]:6/d"), "[::1]:6");
        assert_eq!(
            shown("postgres://u@/d?host=/run/pg&port=6"),
            "/run/pg/.s.PGSQL.6"
        );
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let t = target("postgres://u@a");
        assert_eq!((t.user(), t.database()), ("u", "u"));
        assert_eq!(t.ssl_mode, SslMode::Prefer);
        assert_eq!(t.tls.roots, Roots::Unverified);
        assert_eq!(t.channel_binding, ChannelBinding::Prefer);
        assert_eq!(t.connect_timeout, Duration::from_secs(10));
        assert!(t.password.is_none() && !t.recovery_allowed);
    }

    #[test]
    fn tls_keywords_make_one_rule() {
        let file = || Roots::File("/ca".into());
        for (query, mode, roots) in [
            ("sslmode=disable", SslMode::Disable, Roots::Unverified),
            ("sslmode=allow", SslMode::Allow, Roots::Unverified),
            ("sslmode=require", SslMode::Require, Roots::Unverified),
            ("sslmode=require&sslrootcert=/ca", SslMode::Require, file()),
            (
                "sslmode=verify-ca&sslrootcert=/ca",
                SslMode::VerifyCa,
                file(),
            ),
            ("sslmode=verify-full", SslMode::VerifyFull, Roots::System),
            ("sslrootcert=system", SslMode::VerifyFull, Roots::System),
            (
                "sslmode=verify-full&sslrootcert=/ca",
                SslMode::VerifyFull,
                file(),
            ),
        ] {
            let t = target(&format!("postgres://u@a/d?{query}"));
            assert_eq!((t.ssl_mode, t.tls.roots), (mode, roots), "{query}");
        }
    }

    #[test]
    fn refuses_with_the_remedy() {
        for (url, words) in [
            ("postgres://a/d", "names no user"),
            ("postgres://u@/d", "names no host"),
            ("postgres://u@a,,b/d", "host name is empty"),
            ("postgres://u@a:0/d", "between 1 and 65535"),
            ("postgres://u@a:x/d", "between 1 and 65535"),
            ("host=a,b,c port=1,2 user=u", "one for each host"),
            ("postgres://u@a/d?sslmod=require", "did you mean sslmode?"),
            ("postgres://u@a/d?keepalives_idle=3", "these are understood"),
            (
                "postgres://u@a/d?sslmode=yes",
                "sslmode is none of disable, allow",
            ),
            (
                "postgres://u@a/d?sslmode=verify-ca",
                "only sslmode=verify-full",
            ),
            (
                "postgres://u@a/d?sslmode=require&sslrootcert=system",
                "only sslmode=verify-full",
            ),
            ("postgres://u@a/d?sslcert=/c", "go together"),
            ("postgres://u@a/d?connect_timeout=0", "1 or more"),
            ("postgres://u@a/d?gssencmode=require", "GSSAPI"),
            (
                "postgres://u@a/d?target_session_attrs=standby",
                "on the primary",
            ),
            ("postgres://u:a%00b@a/d", "zero byte"),
            ("host=a user=u password=a b=c", "an unknown key: these"),
        ] {
            let e = Target::parse(url, None).expect_err(url);
            assert!(e.contains(words), "{url}: {e}");
        }
        let both = Target::parse("postgres://u:p@a/d", Some("q".into()));
        assert!(both.expect_err("two passwords").contains("keep one"));
    }

    #[test]
    fn the_password_is_never_shown() {
        let inline = target("postgres://u:tops3cret@a/d");
        let file = Target::parse("postgres://u@a/d", Some("tops3cret".into())).expect("valid");
        for t in [inline, file] {
            assert_eq!(
                t.password.as_ref().map(|p| p.expose_secret()),
                Some("tops3cret")
            );
            assert!(!format!("{t:?} {t}").contains("s3cret"));
        }
    }
}
