//! What Redis's refusals mean for a batch: one table.

use std::fmt;
use std::io;

use super::connection::Trouble;
use super::resp::Refusal;
use crate::sink::{Cause, Outage};
use crate::tls;

/// What a sink's operator has to do with: the words for a remedy.
#[derive(Debug)]
pub(in crate::sink) struct Wording {
    /// The setting that holds the URL.
    pub(in crate::sink) url: &'static str,
    /// What the keys are.
    pub(in crate::sink) kind: &'static str,
    /// Which rights the user needs, as `ACL SETUSER` takes them; and for keys.
    pub(in crate::sink) rights: &'static str,
    /// See `rights`.
    pub(in crate::sink) keys: &'static str,
    /// What to do where the URL turns out to name a node of a cluster.
    pub(in crate::sink) cluster: &'static str,
}

/// Whom a refusal is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::sink) enum Verdict {
    /// The broker as a whole: nothing can be delivered now.
    Outage(Cause),
    /// This key only, and the operator can mend it without a change to the row: its tasks are retried.
    KeyRetry(Cause),
    /// This key only, and these tasks cannot go there: they are rejected.
    KeyReject(Cause),
}

/// Judges the refusal of a push to `key`.
pub(in crate::sink) fn judge(refusal: &Refusal, key: &[u8], wording: &Wording) -> Verdict {
    let Wording { url, kind, .. } = wording;
    let outage = |words: &'static str| Verdict::Outage(Cause::new(words));
    let about = |words: String| Verdict::Outage(Cause::new(words));
    match refusal.code.as_str() {
        "OOM" => outage(
            "Redis is out of memory and takes no more: raise its maxmemory, or let workers catch up",
        ),
        "READONLY" => about(format!(
            "this Redis is a replica: {url} must name the primary (or a failover is under way)"
        )),
        "LOADING" => outage("Redis is loading its data after a start"),
        "BUSY" => outage("Redis is busy with a script: wait, or run SCRIPT KILL"),
        "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => {
            outage("Redis has lost its primary for the moment")
        }
        "MISCONF" => outage("Redis cannot save to its disk and refuses writes: see its log"),
        "NOREPLICAS" => {
            outage("Redis has fewer replicas than min-replicas-to-write, and refuses writes")
        }
        "NOAUTH" => about(format!("Redis asks for a password: put it into {url}")),
        "WRONGPASS" => about(format!("Redis refuses user or password of {url}")),
        "DENIED" => {
            outage("Redis is in protected mode: set a password, or bind it to a private address")
        }
        "MOVED" | "ASK" | "CROSSSLOT" => {
            about(format!("{url} names a Redis Cluster{}", wording.cluster))
        }
        "NOPERM" if refusal.text.contains(" key") => Verdict::KeyReject(Cause::new(format!(
            "{url}'s user may not use the key {}: ACL SETUSER ... {}",
            shown(key),
            wording.keys
        ))),
        "NOPERM" => about(format!(
            "{url}'s user lacks rights: ACL SETUSER ... {}",
            wording.rights
        )),
        "WRONGTYPE" => Verdict::KeyRetry(Cause::new(format!(
            "the Redis key {} is not a {kind}: another program uses it, delete or rename it",
            shown(key)
        ))),
        code => about(format!("Redis refuses: {}", worded(code, &refusal.text))),
    }
}

/// The outage that a broken or refused connection is; `place` is where it led to.
pub(in crate::sink) fn outage(
    trouble: Trouble,
    place: &dyn fmt::Display,
    wording: &Wording,
) -> Outage {
    let words = match trouble {
        Trouble::Unreachable(e) => format!("{place} cannot be reached: {}", with_remedy(&e)),
        Trouble::Lost(e) => format!("{place} has closed the connection: {}", with_remedy(&e)),
        Trouble::NotRedis => format!("what answers at {place} is no Redis"),
        Trouble::Refused(refusal) => match judge(&refusal, b"", wording) {
            Verdict::Outage(cause) => format!("{place}: {cause}"),
            Verdict::KeyRetry(_) | Verdict::KeyReject(_) => {
                format!(
                    "{place} refuses the login: {}",
                    worded(&refusal.code, &refusal.text)
                )
            }
        },
    };
    Outage::new(Cause::new(words))
}

/// What a socket says; where it is TLS that fails, with what helps.
fn with_remedy(e: &io::Error) -> String {
    let error = e.get_ref().and_then(|inner| inner.downcast_ref());
    match error.and_then(tls_remedy) {
        Some(remedy) => format!("{e}: {remedy}"),
        None => e.to_string(),
    }
}

fn tls_remedy(e: &rustls::Error) -> Option<&'static str> {
    use rustls::{CertificateError as Bad, Error};
    Some(match e {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "give the authority that has issued it in ssl_ca_certs"
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "name the host as its certificate does (nodes of a cluster do with cluster-announce-hostname, sentinels with \
             sentinel announce-hostnames), or set ssl_check_hostname=false"
        }
        Error::InvalidCertificate(bad) if tls::is_out_of_time(bad) => "renew it, or set the clock",
        Error::AlertReceived(alert) if tls::refuses_ours(*alert) => {
            "give a certificate that it trusts in ssl_certfile and ssl_keyfile"
        }
        Error::InvalidMessage(_) => "is this the port of TLS?",
        _ => return None,
    })
}

/// A refusal that we have no words for. Redis repeats the arguments of a command that it does not know: not for a log.
pub(in crate::sink) fn worded(code: &str, text: &str) -> String {
    let text = text.split(", with args").next().unwrap_or_default();
    let (code, text): (String, String) = (
        code.chars().take(32).collect(),
        text.chars().take(120).collect(),
    );
    format!("{code} {text}")
}

/// A list's key, with the bytes before its priority step made visible.
pub(in crate::sink) fn shown(list: &[u8]) -> String {
    list.escape_ascii().to_string().chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDING: Wording = Wording {
        url: "broker_url",
        kind: "list",
        rights: "+lpush",
        keys: "~<queue>*",
        cluster: ": name a single Redis",
    };

    fn refusal(line: &str) -> Refusal {
        let (code, text) = line.split_once(' ').unwrap_or((line, ""));
        Refusal {
            code: code.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_refusal_has_one_meaning() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script.",
            "MASTERDOWN Link with MASTER is down",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOREPLICAS Not enough good replicas to write.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "DENIED Redis is running in protected mode",
            "MOVED 3999 127.0.0.1:6381",
            "NOPERM User x has no permissions to run the 'lpush' command",
            "NOPERM this user has no permissions to run the 'lpush' command or its subcommand",
            "ERR max number of clients reached",
            "SOMETHING new",
        ] {
            assert!(
                matches!(
                    judge(&refusal(line), b"celery", &WORDING),
                    Verdict::Outage(_)
                ),
                "{line}"
            );
        }
        for line in [
            "NOPERM No permissions to access a key",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
        ] {
            assert!(
                matches!(
                    judge(&refusal(line), b"celery", &WORDING),
                    Verdict::KeyReject(_)
                ),
                "{line}"
            );
        }
        let wrong = judge(
            &refusal("WRONGTYPE Operation against a key"),
            b"high\x06\x163",
            &WORDING,
        );
        let Verdict::KeyRetry(cause) = wrong else {
            panic!("{wrong:?}");
        };
        assert!(cause.to_string().contains("high\\x06\\x163"), "{cause}");
    }

    #[test]
    fn where_tls_fails_it_says_what_helps() {
        use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
        for (error, words) in [
            (CertificateError::UnknownIssuer.into(), "ssl_ca_certs"),
            (
                CertificateError::NotValidForName.into(),
                "ssl_check_hostname=false",
            ),
            (CertificateError::Expired.into(), "renew"),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "ssl_certfile and ssl_keyfile",
            ),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "the port of TLS?",
            ),
        ] {
            let said = error.to_string();
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            let Outage { cause, .. } = outage(Trouble::Unreachable(error), &"h:1", &WORDING);
            let cause = cause.to_string();
            assert!(cause.starts_with("h:1 cannot be reached"), "{cause}");
            assert!(cause.contains(&said) && cause.contains(words), "{cause}");
        }
        let plain = io::Error::from(io::ErrorKind::ConnectionRefused);
        let Outage { cause, .. } = outage(Trouble::Lost(plain), &"h:1", &WORDING);
        assert_eq!(
            cause.to_string(),
            "h:1 has closed the connection: connection refused"
        );
    }

    #[test]
    fn a_refusal_does_not_repeat_a_payload() {
        let line = "ERR unknown command 'LPUSH', with args beginning with: 'celery' 's3cret'";
        let Verdict::Outage(cause) = judge(&refusal(line), b"celery", &WORDING) else {
            panic!("no outage");
        };
        assert_eq!(
            cause.to_string(),
            "Redis refuses: ERR unknown command 'LPUSH'"
        );
    }
}
