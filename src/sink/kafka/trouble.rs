//! Pure: what librdkafka says of a connection that does not come about, in our words and with the remedy.

use rdkafka::error::RDKafkaErrorCode::{self, Authentication, SSL, SaslAuthenticationFailed};

/// What is wrong between us and the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// What it is, and where.
    pub(super) words: String,
    /// Another attempt comes to the same, until somebody mends it.
    pub(super) stays: bool,
}

const OUR_CERTIFICATE: &str = "ssl.certificate.location and ssl.key.location";

impl Trouble {
    pub(super) fn of(code: Option<RDKafkaErrorCode>, reason: &str) -> Trouble {
        let reason = timeless(threadless(reason));
        let Some((place, what)) = reason.split_once(": ") else {
            return passing(reason.to_owned());
        };
        // Behind the address comes what librdkafka calls the broker.
        let place = match place.rsplit_once('/') {
            Some((address, _)) if !address.ends_with('/') => address,
            _ => place,
        };
        let what = plain(what);
        let said = |words: &[&str]| words.iter().any(|words| what.contains(words));
        let stays = |words: String| Trouble { words, stays: true };
        // With TLS 1.3 what the broker makes of our certificate comes behind the handshake.
        if said(&[
            "certificate required",
            "client SSL authentication",
            "alert handshake failure",
        ]) {
            stays(format!(
                "{place} demands a certificate of ours: name it in {OUR_CERTIFICATE}"
            ))
        } else if said(&[
            "alert bad certificate",
            "alert unknown ca",
            "alert decrypt error",
            "alert certificate",
        ]) {
            stays(format!(
                "{place} does not take our certificate, see {OUR_CERTIFICATE}: {what}"
            ))
        } else if said(&["certificate verify failed"]) {
            stays(format!(
                "the certificate of {place} is not trusted: ssl.ca.location has to name its authority, and it has to be valid, and for this name"
            ))
        } else if matches!(code, Some(Authentication | SaslAuthenticationFailed)) {
            stays(format!(
                "{place} refuses the login, see sasl.mechanism, sasl.username and password: {what}"
            ))
        } else if code == Some(SSL) {
            stays(format!("no TLS with {place}: {what}"))
        } else if said(&["Disconnected"]) {
            let other = other_listener(place);
            passing(format!(
                "{place} hangs up: unless it is going down, its listener may be one {other}, see security.protocol"
            ))
        } else {
            passing(format!("{place}: {what}"))
        }
    }
}

/// What may listen there instead, as seen by how we have tried.
fn other_listener(place: &str) -> &'static str {
    match place.split_once("://") {
        Some(("ssl", _)) => "without TLS, or with a login",
        Some(("sasl_plaintext", _)) => "with TLS",
        Some(("sasl_ssl", _)) => "without TLS",
        _ => "with TLS, or with a login",
    }
}

fn passing(words: String) -> Trouble {
    Trouble {
        words,
        stays: false,
    }
}

/// Without the thread that a line of the log begins with: `[thrd:kafka:9092/bootstrap]: `.
fn threadless(reason: &str) -> &str {
    match reason.split_once("]: ") {
        Some((thread, rest)) if thread.starts_with("[thrd:") => rest,
        _ => reason,
    }
}

/// Without how long it took and how often it was: the same trouble is to be the same words.
fn timeless(reason: &str) -> &str {
    match reason.rfind(" (after ") {
        Some(at) if reason.ends_with(')') => reason.get(..at).unwrap_or(reason),
        _ => reason,
    }
}

/// Without OpenSSL's number and its names of rooms: `error:0A000086:SSL routines::certificate verify failed`.
fn plain(what: &str) -> String {
    let Some((before, error)) = what.split_once("error:") else {
        return what.to_owned();
    };
    match error.split_once("::") {
        Some((_, words)) => format!("{before}{words}"),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words() {
        for (code, reason, words, stays) in [
            (
                SSL,
                "ssl://kafka:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed (install ca-certificates package) (after 3ms in state SSL_HANDSHAKE)",
                "the certificate of ssl://kafka:9093 is not trusted: ssl.ca.location has to name its authority, and it has to be valid, and for this name",
                true,
            ),
            (
                SSL,
                "ssl://kafka:9093/2: SSL handshake failed: error:0A00010B:SSL routines::wrong version number (after 1ms in state SSL_HANDSHAKE, 4 identical error(s) suppressed)",
                "no TLS with ssl://kafka:9093: SSL handshake failed: wrong version number",
                true,
            ),
            (
                RDKafkaErrorCode::BrokerTransportFailure,
                "ssl://kafka:9093/2: Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116 (after 1ms in state APIVERSION_QUERY)",
                "ssl://kafka:9093 demands a certificate of ours: name it in ssl.certificate.location and ssl.key.location",
                true,
            ),
            (
                SSL,
                "ssl://kafka:9093/2: SSL handshake failed: error:0A000418:SSL routines::tlsv1 alert unknown ca: SSL alert number 48",
                "ssl://kafka:9093 does not take our certificate, see ssl.certificate.location and ssl.key.location: SSL handshake failed: tlsv1 alert unknown ca: SSL alert number 48",
                true,
            ),
            (
                Authentication,
                "sasl_ssl://kafka:9093/bootstrap: SASL authentication error: Invalid username or password (after 308ms in state AUTH_REQ)",
                "sasl_ssl://kafka:9093 refuses the login, see sasl.mechanism, sasl.username and password: SASL authentication error: Invalid username or password",
                true,
            ),
            (
                RDKafkaErrorCode::BrokerTransportFailure,
                "kafka:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
                "kafka:9092: Connect to ipv4#127.0.0.1:9092 failed: Connection refused",
                false,
            ),
            (
                RDKafkaErrorCode::BrokerTransportFailure,
                "sasl_ssl://kafka:9092/bootstrap: SSL handshake failed: Disconnected: connection closed by peer: connecting to a PLAINTEXT broker listener? (after 2ms in state SSL_HANDSHAKE)",
                "sasl_ssl://kafka:9092 hangs up: unless it is going down, its listener may be one without TLS, see security.protocol",
                false,
            ),
            (
                RDKafkaErrorCode::Fail,
                "nothing works",
                "nothing works",
                false,
            ),
        ] {
            let trouble = Trouble::of(Some(code), reason);
            assert_eq!(
                (trouble.words.as_str(), trouble.stays),
                (words, stays),
                "{reason}"
            );
        }
    }
}
