//! URLs of Redis in all its forms: one server, a primary that sentinels know, a cluster.
//!
//! - One server: as Celery writes it, see `url.rs`.
//! - `redis+sentinel://[[user]:password@]host[:26379][,host...]/service[/db]`: the form of redis-sentinel-url, Prefect and others.
//!   User and password are for Redis; `sentinel_username` and `sentinel_password` are options, for the sentinels.
//!   `sentinel_ssl=false` is for sentinels without TLS, in front of a Redis with it.
//! - `redis+cluster://[[user]:password@]host[:6379][,host...]`: some of its nodes; the others are found.
//! - `rediss+sentinel://` and `rediss+cluster://` with TLS to all of them, and the options of `rediss://`.

use std::fmt;

use secrecy::SecretString;

use super::url::{self, Address, Place};
use crate::sink::broker_url::decode;

/// Where sentinels listen.
pub(in crate::sink) const SENTINEL_PORT: u16 = 26379;

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum Servers {
    /// One server.
    One(Address),
    /// The primary that sentinels know under a name.
    Sentinel {
        /// The sentinels, and how to get in.
        sentinels: Vec<Address>,
        /// The name.
        service: String,
        /// How to get in at the primary; its place is told by the sentinels.
        login: Address,
    },
    /// A cluster.
    Cluster {
        /// Some of its nodes.
        seeds: Vec<Place>,
        /// How to get in at each.
        login: Address,
    },
}

impl Servers {
    /// How to get in at a place that was found.
    pub fn login_at(&self, place: &Place) -> Address {
        let (Servers::One(login)
        | Servers::Sentinel { login, .. }
        | Servers::Cluster { login, .. }) = self;
        Address {
            place: place.clone(),
            ..login.clone()
        }
    }

    /// Any address of them: for what all have in common.
    pub fn login(&self) -> &Address {
        match self {
            Servers::One(login)
            | Servers::Sentinel { login, .. }
            | Servers::Cluster { login, .. } => login,
        }
    }
}

/// For logs: without user, password and options.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = |address: &Address| if address.tls.is_some() { "s" } else { "" };
        let places = |f: &mut fmt::Formatter<'_>, places: &mut dyn Iterator<Item = &Place>| {
            for (nth, place) in places.enumerate() {
                let comma = if nth > 0 { "," } else { "" };
                write!(f, "{comma}{place}")?;
            }
            Ok(())
        };
        match self {
            Servers::One(address) => address.fmt(f),
            Servers::Sentinel {
                sentinels,
                service,
                login,
            } => {
                write!(f, "redis{}+sentinel://", secure(login))?;
                places(f, &mut sentinels.iter().map(|sentinel| &sentinel.place))?;
                write!(f, "/{service}/{}", login.db)
            }
            Servers::Cluster { seeds, login } => {
                write!(f, "redis{}+cluster://", secure(login))?;
                places(f, &mut seeds.iter())
            }
        }
    }
}

/// Reads a URL of any form.
///
/// # Errors
/// Says what is wrong, without showing the URL: it may hold a password.
pub fn parse(url: &str) -> Result<Servers, String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or("is no URL: write redis://host:6379/0 for instance")?;
    let base = match scheme {
        "redis+sentinel" | "redis+cluster" => "redis",
        "rediss+sentinel" | "rediss+cluster" => "rediss",
        "redis" | "rediss" | "redis+socket" | "unix" => return url::parse(url).map(Servers::One),
        _ => {
            return Err(
                "has a scheme that is not known: redis://, rediss://, redis+socket://, redis+sentinel:// and \
                 redis+cluster:// are (rediss+... with TLS)"
                    .to_owned(),
            );
        }
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (userinfo, hosts) = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => (format!("{userinfo}@"), hosts),
        None => (String::new(), authority),
    };
    let (for_sentinels, query): (Vec<&str>, Vec<&str>) = query
        .split('&')
        .partition(|pair| pair.starts_with("sentinel_"));
    let query = query.join("&");
    let login = |userinfo: &str, db: &str| url::parse(&format!("{base}://{userinfo}/{db}?{query}"));
    if scheme.ends_with("cluster") {
        if !path.trim_matches('/').is_empty() && path.trim_matches('/') != "0" {
            return Err("names a database, and a cluster has none but 0".to_owned());
        }
        if !for_sentinels.is_empty() {
            return Err("has an option for sentinels, and names a cluster".to_owned());
        }
        let seed = |host: &str| url::tcp(host, url::PORT);
        return Ok(Servers::Cluster {
            seeds: hosts.split(',').map(seed).collect::<Result<_, _>>()?,
            login: login(&userinfo, "")?,
        });
    }
    let (service, db) = path.split_once('/').unwrap_or((path, ""));
    if service.is_empty() {
        return Err(
            "lacks the name under which the sentinels know the primary: \
             redis+sentinel://host:26379/mymaster/0 for instance"
                .to_owned(),
        );
    }
    let mut sentinel = login("", "")?;
    for pair in for_sentinels {
        match pair.split_once('=') {
            Some(("sentinel_username", user)) => sentinel.user = Some(decode(user)?),
            Some(("sentinel_password", password)) => {
                sentinel.password = Some(SecretString::from(decode(password)?));
            }
            Some(("sentinel_ssl", "true")) if sentinel.tls.is_some() => {}
            Some(("sentinel_ssl", "false")) => sentinel.tls = None,
            Some(("sentinel_ssl", _)) => {
                return Err(
                    "must give sentinel_ssl as true, with rediss+sentinel:// only, or as false"
                        .to_owned(),
                );
            }
            _ => {
                return Err(
                    "has an option that is not known: sentinel_username, sentinel_password and sentinel_ssl are"
                        .to_owned(),
                );
            }
        }
    }
    let at = |host: &str| {
        Ok::<_, String>(Address {
            place: url::tcp(host, SENTINEL_PORT)?,
            ..sentinel.clone()
        })
    };
    Ok(Servers::Sentinel {
        sentinels: hosts.split(',').map(at).collect::<Result<_, _>>()?,
        service: decode(service)?,
        login: login(&userinfo, db)?,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn password(address: &Address) -> Option<&str> {
        address.password.as_ref().map(|p| p.expose_secret())
    }

    #[test]
    fn reads_all_forms() {
        for (url, shown) in [
            ("redis://:pw@h/3", "redis://h:6379/3"),
            (
                "redis+socket:///run/r.sock",
                "redis+socket:///run/r.sock?virtual_host=0",
            ),
            (
                "redis+sentinel://me:pw@a,b:1,[::1]:2/main/4",
                "redis+sentinel://a:26379,b:1,[::1]:2/main/4",
            ),
            (
                "rediss+sentinel://:pw@a/main?ssl_check_hostname=false",
                "rediss+sentinel://a:26379/main/0",
            ),
            (
                "redis+cluster://:pw@a,b:7001",
                "redis+cluster://a:6379,b:7001",
            ),
            ("rediss+cluster://[::1]/0", "rediss+cluster://[::1]:6379"),
        ] {
            let servers = parse(url).expect(url);
            assert_eq!(servers.to_string(), shown);
            assert_eq!(servers.login().tls.is_some(), url.starts_with("rediss"));
            assert_eq!(
                password(servers.login()),
                url.contains("pw").then_some("pw")
            );
        }
        let url = "redis+sentinel://:pw@a/main?sentinel_password=p%40ss&sentinel_username=eye";
        let Ok(Servers::Sentinel {
            sentinels, login, ..
        }) = parse(url)
        else {
            panic!("no sentinels");
        };
        let [sentinel] = &sentinels[..] else {
            panic!("{sentinels:?}");
        };
        assert_eq!(sentinel.user.as_deref(), Some("eye"));
        assert_eq!(password(sentinel), Some("p@ss"));
        assert_eq!(
            (login.user.as_deref(), password(&login)),
            (None, Some("pw"))
        );
        for (url, expected) in [
            ("rediss+sentinel://a/m", true),
            ("rediss+sentinel://a/m?sentinel_ssl=true", true),
            ("rediss+sentinel://a/m?sentinel_ssl=false", false),
            ("redis+sentinel://a/m?sentinel_ssl=false", false),
        ] {
            let Ok(Servers::Sentinel { sentinels, .. }) = parse(url) else {
                panic!("{url}");
            };
            assert!(
                sentinels.iter().all(|s| s.tls.is_some() == expected),
                "{url}"
            );
        }
        // A sentinel is not told Redis's password.
        let Ok(Servers::Sentinel { sentinels, .. }) = parse("redis+sentinel://u:pw@a/main") else {
            panic!("no sentinels");
        };
        assert!(
            sentinels
                .iter()
                .all(|s| s.user.is_none() && s.password.is_none())
        );
    }

    #[test]
    fn says_what_is_wrong_without_showing_the_password() {
        for (url, words) in [
            ("s3cret", "no URL"),
            ("sentinel://:s3cret@h", "scheme"),
            ("redis+sentinel://:s3cret@h", "lacks the name"),
            ("redis+sentinel://:s3cret@h/m/x", "database number"),
            ("redis+sentinel://:s3cret@h:99999/m", "port"),
            (
                "redis+sentinel://:s3cret@h/m?sentinel_tiemout=1",
                "not known",
            ),
            (
                "redis+sentinel://:s3cret@h/m?sentinel_ssl=true",
                "rediss+sentinel:// only",
            ),
            (
                "redis+sentinel://:s3cret@h/m?ssl_cert_reqs=none",
                "rediss:// only",
            ),
            ("redis+cluster://:s3cret@h/2", "a cluster has none"),
            (
                "redis+cluster://:s3cret@h?sentinel_password=x",
                "names a cluster",
            ),
            ("redis+cluster://:s3cret@a,b:c", "port"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{url}: {error}");
        }
    }
}
