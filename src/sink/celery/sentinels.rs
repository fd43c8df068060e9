//! Celery's URL of a Redis behind sentinels: `sentinel://:password@host:26379/0;sentinel://host2:26379` (Celery documentation,
//! "Using Redis", section "Connection URL"). User, password and database are those of the first one, as kombu takes them.

use secrecy::SecretString;

use crate::sink::redis_client::servers::{SENTINEL_PORT, Servers};
use crate::sink::redis_client::url::{self, Address};

const SCHEME: &str = "sentinel://";

/// Whether it is one.
pub(super) fn is_sentinel(url: &str) -> bool {
    url.starts_with(SCHEME)
}

/// Reads the URL. `service` is what the sentinels call the primary; `user` and `password` are for the sentinels.
///
/// # Errors
/// Says what is wrong, without showing the URL: it may hold a password.
pub(super) fn parse(
    url: &str,
    service: &str,
    user: Option<&str>,
    password: Option<&SecretString>,
) -> Result<Servers, String> {
    let mut login = None;
    let mut sentinels = Vec::new();
    for one in url.split(';').filter(|one| !one.is_empty()) {
        let rest = one
            .strip_prefix(SCHEME)
            .ok_or("names several brokers, of which not all are sentinel://")?;
        let address = url::parse_at(&format!("redis://{rest}"), SENTINEL_PORT)?;
        sentinels.push(Address {
            place: address.place.clone(),
            user: user.map(str::to_owned),
            password: password.cloned(),
            db: 0,
            tls: None,
        });
        login.get_or_insert(address);
    }
    Ok(Servers::Sentinel {
        sentinels,
        service: service.to_owned(),
        login: login.ok_or("names no sentinel")?,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn reads_what_celery_reads() {
        let url = "sentinel://:p%40ss@a:1/2;sentinel://b;sentinel://[::1]:3/";
        let password = SecretString::from("eye");
        let servers = parse(url, "main", Some("me"), Some(&password)).expect(url);
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
            ("sentinel://:s3cret@h?ssl_cert_reqs=none", "rediss:// only"),
        ] {
            let error = parse(url, "main", None, None).expect_err(url);
            assert!(
                error.contains(words) && !error.contains("s3cret"),
                "{url}: {error}"
            );
        }
    }
}
