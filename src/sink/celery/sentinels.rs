//! Celery's URL of a Redis behind sentinels: `sentinel://:password@host:26379/0;sentinel://host2:26379` (Celery documentation,
//! "Using Redis", section "Connection URL"). User, password and database are those of the first one, as kombu takes them, and so
//! are the `ssl_` options: with any of them Redis is spoken to over TLS, and the sentinels where `sentinel_ssl` says so.

use secrecy::SecretString;

use crate::sink::redis_client::servers::{SENTINEL_PORT, Servers};
use crate::sink::redis_client::url::{self, Address};

const SCHEME: &str = "sentinel://";

/// Whether it is one.
pub(super) fn is_sentinel(url: &str) -> bool {
    url.starts_with(SCHEME)
}

/// How to get in at the sentinels, and what they are to be asked for.
pub(super) struct Manner<'a> {
    /// What they call the primary.
    pub(super) service: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a SecretString>,
    /// Whether they speak TLS.
    pub(super) tls: bool,
}

/// Reads the URL.
///
/// # Errors
/// Says what is wrong, without showing the URL: it may hold a password.
pub(super) fn parse(url: &str, manner: &Manner<'_>) -> Result<Servers, String> {
    let mut login: Option<Address> = None;
    let mut sentinels = Vec::new();
    for one in url.split(';').filter(|one| !one.is_empty()) {
        let rest = one
            .strip_prefix(SCHEME)
            .ok_or("names several brokers, of which not all are sentinel://")?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        if login.is_some() && !options.is_empty() {
            return Err(
                "must give its options with the first sentinel://, where Celery reads them"
                    .to_owned(),
            );
        }
        let scheme = if options.is_empty() {
            "redis"
        } else {
            "rediss"
        };
        let address = url::parse_at(&format!("{scheme}://{rest}?{options}"), SENTINEL_PORT)?;
        let login = login.get_or_insert(address.clone());
        sentinels.push(Address {
            place: address.place,
            user: manner.user.map(str::to_owned),
            password: manner.password.cloned(),
            db: 0,
            tls: login.tls.clone().filter(|_| manner.tls),
            name: None,
        });
    }
    let login = login.ok_or("names no sentinel")?;
    if manner.tls && login.tls.is_none() {
        return Err("needs the ssl_ options of TLS behind a ? where sentinel_ssl is true: ssl_ca_certs=/ca.pem, or \
                    ssl_cert_reqs=required for the authorities of this system"
            .to_owned());
    }
    Ok(Servers::Sentinel {
        sentinels,
        service: manner.service.to_owned(),
        login,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn manner<'a>(login: Option<(&'a str, &'a SecretString)>, tls: bool) -> Manner<'a> {
        let (user, password) = login.unzip();
        Manner {
            service: "main",
            user,
            password,
            tls,
        }
    }

    #[test]
    fn reads_what_celery_reads() {
        let url = "sentinel://:p%40ss@a:1/2;sentinel://b;sentinel://[::1]:3/";
        let password = SecretString::from("eye");
        let manner = manner(Some(("me", &password)), false);
        let servers = parse(url, &manner).expect(url);
        assert_eq!(
            servers.to_string(),
            "redis+sentinel://a:1,b:26379,[::1]:3/main/2"
        );
        let Servers::Sentinel {
            sentinels, login, ..
        } = servers
        else {
            panic!("no sentinels");
        };
        let known = |address: &Address| {
            let password = address
                .password
                .as_ref()
                .map(|p| p.expose_secret().to_owned());
            (address.user.clone(), password)
        };
        assert_eq!(known(&login), (None, Some("p@ss".to_owned())));
        // A sentinel is not told Redis's password.
        let theirs = (Some("me".to_owned()), Some("eye".to_owned()));
        assert!(sentinels.iter().all(|sentinel| known(sentinel) == theirs));
        for (url, words) in [
            ("sentinel://:s3cret@h;redis://h", "not all are"),
            ("sentinel://:s3cret@h/x", "database number"),
            ("sentinel://:s3cret@h:99999", "port"),
            ("sentinel://:s3cret@h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
            ("sentinel://:s3cret@h?db=1", "not known"),
            (
                "sentinel://:s3cret@h;sentinel://h?ssl_ca_certs=/c",
                "with the first",
            ),
        ] {
            let error = parse(url, &manner).expect_err(url);
            assert!(
                error.contains(words) && !error.contains("s3cret"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn tls_is_for_redis_and_for_the_sentinels_only_if_that_is_said() {
        let manner = |tls| manner(None, tls);
        let url = "sentinel://a/1?ssl_ca_certs=/ca.pem;sentinel://b";
        for tls in [false, true] {
            let servers = parse(url, &manner(tls)).expect(url);
            assert_eq!(
                servers.to_string(),
                "rediss+sentinel://a:26379,b:26379/main/1"
            );
            let Servers::Sentinel {
                sentinels, login, ..
            } = servers
            else {
                panic!("no sentinels");
            };
            assert!(login.tls.is_some());
            for sentinel in sentinels {
                assert_eq!(sentinel.tls, login.tls.clone().filter(|_| tls));
            }
        }
        let error = parse("sentinel://a", &manner(true)).expect_err("no options");
        assert!(error.contains("ssl_cert_reqs=required"), "{error}");
    }
}
