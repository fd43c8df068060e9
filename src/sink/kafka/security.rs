//! Pure: whether what is said of TLS and of the login goes together, and is in this build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};

use crate::sink::{Invalid, Sight};

/// How we talk to Kafka.
const PROTOCOL: &str = "security.protocol";

/// The two names of the same property.
const MECHANISM: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];

const USER: &str = "sasl.username";

/// Those that name a file to be read when a client is made.
const FILES: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
];

/// The mechanisms that we have, and whether they need OpenSSL.
const MECHANISMS: [(&str, bool); 3] = [
    ("PLAIN", false),
    ("SCRAM-SHA-256", true),
    ("SCRAM-SHA-512", true),
];

/// Whether this build has OpenSSL.
pub(super) const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// What the operator has said of TLS and of the login.
pub(super) struct Security<'a> {
    properties: &'a BTreeMap<String, SecretString>,
    protocol: String,
    has_password: bool,
}

impl<'a> Security<'a> {
    pub(super) fn of(
        properties: &'a BTreeMap<String, SecretString>,
        has_password: bool,
    ) -> Security<'a> {
        let protocol = properties.get(PROTOCOL);
        let protocol = protocol.map_or("plaintext", |it| it.expose_secret());
        Security {
            properties,
            protocol: protocol.to_ascii_lowercase(),
            has_password,
        }
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        let value = self.properties.get(name);
        value.map(|value| value.expose_secret())
    }

    fn has_tls(&self) -> bool {
        matches!(self.protocol.as_str(), "ssl" | "sasl_ssl")
    }

    fn has_login(&self) -> bool {
        matches!(self.protocol.as_str(), "sasl_plaintext" | "sasl_ssl")
    }

    /// Says what does not go together, in a build that has TLS or has not.
    pub(super) fn check(&self, build_has_tls: bool) -> Result<(), Invalid> {
        let protocol = &self.protocol;
        if !matches!(
            protocol.as_str(),
            "plaintext" | "ssl" | "sasl_plaintext" | "sasl_ssl"
        ) {
            return wrong(format!(
                "has a {PROTOCOL} that there is not: ssl, sasl_ssl, sasl_plaintext or plaintext"
            ));
        }
        let about_tls = |name: &&String| {
            name.starts_with("ssl.") || *name == "enable.ssl.certificate.verification"
        };
        let about_tls = self.properties.keys().find(about_tls);
        match (self.has_tls(), about_tls) {
            (true, _) if !build_has_tls => {
                return wrong(without_tls(&format!("{PROTOCOL} = {protocol}")));
            }
            (_, Some(name)) if !build_has_tls => return wrong(without_tls(name)),
            (false, Some(name)) => {
                return wrong(format!(
                    "has {name}, but {PROTOCOL} = {protocol} is without TLS: say ssl, or sasl_ssl"
                ));
            }
            _ => {}
        }
        match self.has_login() {
            true => self.check_login(build_has_tls),
            false => match MECHANISM
                .into_iter()
                .chain([USER])
                .find(|name| self.value(name).is_some())
            {
                Some(name) => wrong(format!(
                    "has {name}, but {PROTOCOL} = {protocol} is without a login: say sasl_ssl, or sasl_plaintext"
                )),
                None => Ok(()),
            },
        }
    }

    fn check_login(&self, build_has_tls: bool) -> Result<(), Invalid> {
        let Some(mechanism) = MECHANISM.into_iter().find_map(|name| self.value(name)) else {
            return wrong(
                "has no sasl.mechanism: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN, as the brokers have it",
            );
        };
        let known = MECHANISMS.into_iter().find(|(name, _)| *name == mechanism);
        match (known, mechanism) {
            (Some((_, true)), _) if !build_has_tls => {
                return wrong(without_tls(&format!("sasl.mechanism = {mechanism}")));
            }
            (Some(_), _) => {}
            (None, "OAUTHBEARER" | "GSSAPI") => {
                return wrong(format!(
                    "has sasl.mechanism = {mechanism}, which no build of aftercommit has: take SCRAM-SHA-512, PLAIN, or a certificate of our own (ssl.certificate.location)"
                ));
            }
            (None, _) => {
                return wrong(
                    "has a sasl.mechanism that there is not: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
                );
            }
        }
        if self.value(USER).is_none_or(str::is_empty) {
            return wrong(format!("has no {USER}, which {mechanism} needs"));
        }
        match self.has_password {
            true => Ok(()),
            false => Err(Invalid::new(
                "password",
                format!("is missing: {mechanism} needs it, from here or from password_file"),
            )),
        }
    }

    /// The files that a client is going to read, and the properties that name them.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        FILES.into_iter().filter_map(|name| {
            let path = self.value(name)?;
            // The word by which librdkafka looks for the system's store by itself.
            let is_word = name == "ssl.ca.location" && path == "probe";
            (!is_word).then(|| (name, Path::new(path).to_owned()))
        })
    }

    /// What is left open to whoever stands on the way.
    pub(super) fn risks(&self) -> Vec<Sight> {
        let mut sights = Vec::new();
        let mut risk = |words: &str, remedy: &str| {
            sights.push(Sight::Risk(words.to_owned(), remedy.to_owned()))
        };
        let is_off =
            |value: &str| ["false", "f", "0"].contains(&value.to_ascii_lowercase().as_str());
        if self
            .value("enable.ssl.certificate.verification")
            .is_some_and(is_off)
        {
            risk(
                "nobody's certificate is checked: whoever stands on the way can be Kafka",
                "name the brokers' authority in ssl.ca.location, and leave enable.ssl.certificate.verification out",
            );
        } else if self.value("ssl.endpoint.identification.algorithm") == Some("none") {
            risk(
                "the names in the brokers' certificates are not checked: whoever has one of the same authority can be Kafka",
                "give the brokers certificates for the names that they advertise, and leave ssl.endpoint.identification.algorithm out",
            );
        }
        match self.protocol.as_str() {
            "sasl_plaintext"
                if MECHANISM
                    .iter()
                    .any(|name| self.value(name) == Some("PLAIN")) =>
            {
                risk(
                    "the password goes over the network as it is",
                    "set security.protocol to sasl_ssl, where the brokers have a listener for it",
                )
            }
            "plaintext" | "ssl" if self.has_password => risk(
                "there is a password, and nobody asks for it",
                "set security.protocol to sasl_ssl, with sasl.mechanism and sasl.username; or leave password out",
            ),
            _ => {}
        }
        sights
    }
}

fn wrong(words: impl Into<String>) -> Result<(), Invalid> {
    Err(Invalid::new("properties", words))
}

fn without_tls(what: &str) -> String {
    format!("has {what}, and this build has no TLS for Kafka: build it with --features kafka-tls")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, SecretString> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), SecretString::from(*value)))
            .collect()
    }

    fn verdict(pairs: &[(&str, &str)], has_password: bool, build_has_tls: bool) -> String {
        let properties = properties(pairs);
        match Security::of(&properties, has_password).check(build_has_tls) {
            Ok(()) => "good".to_owned(),
            Err(invalid) => invalid.to_string(),
        }
    }

    #[test]
    fn what_goes_together() {
        let login = |protocol, mechanism| {
            [
                ("security.protocol", protocol),
                ("sasl.mechanism", mechanism),
                ("sasl.username", "u"),
            ]
        };
        for (pairs, password, with_tls, without) in [
            (&[][..], false, "good", "good"),
            (&[], true, "good", "good"),
            (
                &[("security.protocol", "SSL")],
                false,
                "good",
                "properties has security.protocol = ssl, and this build has no TLS for Kafka: build it with --features kafka-tls",
            ),
            (
                &[("security.protocol", "tls")],
                false,
                "properties has a security.protocol that there is not",
                "properties has a security.protocol that there is not",
            ),
            (
                &[("ssl.ca.location", "/ca.pem")],
                false,
                "properties has ssl.ca.location, but security.protocol = plaintext is without TLS",
                "properties has ssl.ca.location, and this build has no TLS",
            ),
            (&login("sasl_plaintext", "PLAIN"), true, "good", "good"),
            (
                &login("sasl_plaintext", "PLAIN"),
                false,
                "password is missing: PLAIN needs it",
                "password is missing: PLAIN needs it",
            ),
            (
                &login("sasl_plaintext", "SCRAM-SHA-256"),
                true,
                "good",
                "properties has sasl.mechanism = SCRAM-SHA-256, and this build has no TLS for Kafka: build it with --features kafka-tls",
            ),
            (
                &login("sasl_ssl", "SCRAM-SHA-512"),
                true,
                "good",
                "properties has security.protocol = sasl_ssl, and this build has no TLS",
            ),
            (
                &login("sasl_plaintext", "OAUTHBEARER"),
                true,
                "properties has sasl.mechanism = OAUTHBEARER, which no build",
                "properties has sasl.mechanism = OAUTHBEARER, which no build",
            ),
            (
                &login("sasl_plaintext", "scram-sha-256"),
                true,
                "properties has a sasl.mechanism that there is not: SCRAM-SHA-512",
                "properties has a sasl.mechanism that there is not: SCRAM-SHA-512",
            ),
            (
                &[("security.protocol", "sasl_plaintext")],
                true,
                "properties has no sasl.mechanism",
                "properties has no sasl.mechanism",
            ),
            (
                &[
                    ("security.protocol", "sasl_plaintext"),
                    ("sasl.mechanisms", "PLAIN"),
                ],
                true,
                "properties has no sasl.username, which PLAIN needs",
                "properties has no sasl.username, which PLAIN needs",
            ),
            (
                &login("ssl", "PLAIN"),
                true,
                "properties has sasl.mechanism, but security.protocol = ssl is without a login",
                "properties has security.protocol = ssl, and this build",
            ),
        ] {
            let (said, said_without) = (
                verdict(pairs, password, true),
                verdict(pairs, password, false),
            );
            assert!(said.starts_with(with_tls), "{pairs:?}: {said}");
            assert!(
                said_without.starts_with(without),
                "{pairs:?}: {said_without}"
            );
        }
    }

    #[test]
    fn what_is_left_open() {
        let login = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
        ];
        for (pairs, has_password, words) in [
            (&[][..], false, None),
            (&[], true, Some("nobody asks for it")),
            (&login, true, Some("goes over the network as it is")),
            (&[("security.protocol", "ssl")], false, None),
            (
                &[
                    ("security.protocol", "ssl"),
                    ("enable.ssl.certificate.verification", "False"),
                ],
                false,
                Some("nobody's certificate"),
            ),
            (
                &[
                    ("security.protocol", "ssl"),
                    ("ssl.endpoint.identification.algorithm", "none"),
                ],
                false,
                Some("the names in the brokers' certificates"),
            ),
        ] {
            let properties = properties(pairs);
            let sights = Security::of(&properties, has_password).risks();
            match (&sights[..], words) {
                ([], None) => {}
                ([Sight::Risk(said, _)], Some(words)) => assert!(said.contains(words), "{said}"),
                _ => panic!("{pairs:?}: {sights:?}"),
            }
        }
    }
}
