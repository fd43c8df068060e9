//! What the URLs of brokers have in common, as Celery reads them (kombu documentation, chapter "Connections and transports"):
//! percent-encoding, login, host and port, and the `ssl_` options.

use std::path::PathBuf;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use secrecy::SecretString;

use super::Invalid;
use crate::tls::{self, Names, Roots, Rules};

/// What the options call the files of a TLS session.
const TLS_FILES: Names = Names {
    roots: "ssl_ca_certs",
    certificate: "ssl_certfile",
    key: "ssl_keyfile",
};

/// The options of a URL with TLS.
pub(super) struct TlsOptions {
    verify: bool,
    check_hostname: bool,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Default for TlsOptions {
    fn default() -> TlsOptions {
        TlsOptions {
            verify: true,
            check_hostname: true,
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

impl TlsOptions {
    /// What they say together.
    pub(super) fn rules(self) -> Result<Rules, String> {
        let client = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("must give ssl_certfile and ssl_keyfile together".to_owned()),
        };
        Ok(Rules {
            roots: match (self.verify, self.ca) {
                (false, _) => Roots::Unverified,
                (true, Some(file)) => Roots::File(file),
                (true, None) => Roots::System,
            },
            check_name: self.check_hostname,
            client,
        })
    }
}

/// Sets one of the `ssl_` options. `scheme` is the one with TLS, `others` says which options there are beside.
pub(super) fn tls_option(
    tls: Option<&mut TlsOptions>,
    name: &str,
    value: &str,
    scheme: &str,
    others: &str,
) -> Result<(), String> {
    let known = matches!(
        name,
        "ssl_cert_reqs" | "ssl_ca_certs" | "ssl_certfile" | "ssl_keyfile" | "ssl_check_hostname"
    );
    let tls = match tls {
        Some(tls) if known => tls,
        None if known => return Err(format!("has the option {name}, which is for {scheme} only")),
        _ => {
            return Err(format!(
                "has an option that is not known: ssl_cert_reqs, ssl_ca_certs, ssl_certfile, ssl_keyfile and \
                 ssl_check_hostname are{others}"
            ));
        }
    };
    let path = || filled(value.to_owned()).map(PathBuf::from);
    match name {
        "ssl_ca_certs" => tls.ca = path(),
        "ssl_certfile" => tls.certificate = path(),
        "ssl_keyfile" => tls.key = path(),
        "ssl_check_hostname" => tls.check_hostname = !value.eq_ignore_ascii_case("false"),
        // A server always shows a certificate, so "optional" is as good as "required".
        _ => match value {
            "CERT_REQUIRED" | "required" | "CERT_OPTIONAL" | "optional" => tls.verify = true,
            "CERT_NONE" | "none" => tls.verify = false,
            _ => return Err("must give ssl_cert_reqs as required, optional or none".to_owned()),
        },
    }
    Ok(())
}

/// What TLS needs, where a URL asks for it; reads the files that it names. `key` is the setting that holds the URL.
pub(super) fn client_config(
    key: &'static str,
    rules: Option<&Rules>,
) -> Result<Option<Arc<ClientConfig>>, Invalid> {
    let config = rules.map(|rules| tls::client_config(rules, TLS_FILES));
    let config = config.transpose();
    config
        .map(|config| config.map(Arc::new))
        .map_err(|words| Invalid::new(key, format!("names files that do not do: {words}")))
}

/// A text without its percent-encoding.
pub(super) fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "holds a percent-encoding that is no UTF-8".to_owned())
}

/// A text, unless it is empty.
pub(super) fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// User, password, and what is behind the `@`.
pub(super) fn login(
    authority: &str,
) -> Result<(Option<String>, Option<SecretString>, &str), String> {
    let Some((login, host)) = authority.rsplit_once('@') else {
        return Ok((None, None, authority));
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let password = filled(decode(password)?).map(SecretString::from);
    Ok((filled(decode(user)?), password, host))
}

/// A name or an address, without brackets, and a port.
pub(super) fn host_and_port(host: &str, default_port: u16) -> Result<(String, u16), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest
                .split_once(']')
                .ok_or("lacks the ] after an IPv6 address")?;
            (name, port.strip_prefix(':').unwrap_or(port))
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let port = if port.is_empty() {
        default_port
    } else {
        port.parse()
            .map_err(|_| "has a port that is no number from 1 to 65535".to_owned())?
    };
    let name = filled(decode(name)?).unwrap_or("127.0.0.1".to_owned());
    Ok((name, port))
}
