//! Any HTTP server: a POST for each task.
//!
//! - **Delivered** means: the receiver has answered 2xx. What it does with it then is its own.
//! - **Repeats**: a request whose answer was lost is sent again, under the same `webhook-id`, which is the task's id; so
//!   receivers drop repeats by it. After an outage what was answered before is not sent again, and neither is it
//!   after a stop; after a crash of the daemon what was in flight is.
//! - **Order**: tasks of one key one after the other, each when the one before was answered. Different keys, and tasks
//!   without one, side by side, `concurrency` at a time; a slow answer holds up its key and one of these, nobody else.
//! - **What the receiver can lose**: nothing that it has not answered for.
//!
//! | answer | what becomes of the task |
//! |---|---|
//! | 2xx | delivered |
//! | 3xx | retried: redirects are not followed, or a receiver could send us anywhere |
//! | 401, 407 | an outage: it does not let us in, and no task is to blame |
//! | 403, 404, 405, 408, 409, 421, 423, 425, 429, 5xx | retried, not before `Retry-After` (seconds or a date, a day at most) |
//! | 410 and all other 4xx | rejected: dead |
//! | no connection, or TLS refused | an outage |
//! | none in time, or no HTTP | retried; an outage when `concurrency` requests, and two at least, end so in a row, and from then on until there is an answer, or 16 more have ended so |
//!
//! With `batch` above 1 a request carries an array of tasks, one request after the other, and its answer counts for all of
//! them: one that the receiver rejects takes its neighbours along.
//!
//! **Where it connects to**: the name is resolved for each connection, all its addresses are checked, and the connection
//! goes to one of those: a name that points elsewhere a moment later (DNS rebinding) changes nothing. Private, loopback and
//! other special addresses need `allow_addresses`; link-local ones, where clouds keep their credentials, are never
//! connected to. Proxies are not used, whatever the environment says.

mod address;
mod answer;
mod arrays;
mod client;
mod connection;
mod message;
mod pace;
mod signature;
mod silence;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::Scheme;
use rustls_pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio_rustls::TlsConnector;

use self::address::Range;
use self::client::Endpoint;
pub use self::client::Webhook;
use self::connection::Place;
pub use self::message::Format;
use self::message::{Shape, parse_extra};
use self::pace::Pace;
use self::signature::Signer;
use self::silence::Silence;
use super::settings::{Either, check_timeout};
use super::{Invalid, SecretFile, Settings, Sink};
use crate::tls::{self, Roots, Rules};

/// No receiver wants more at a time.
const MOST_CONCURRENCY: u32 = 1024;
/// Nor more in a request.
const MOST_BATCH: u32 = 1000;

/// `[sink.webhook.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to post to.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// Secrets that requests are signed with, separated by white space; unsigned without.
    pub secret: Option<SecretString>,
    /// A file that holds them; instead of `secret`.
    pub secret_file: Option<PathBuf>,
    /// What the body is.
    #[serde(default)]
    pub format: Format,
    /// The `source` of CloudEvents.
    #[serde(default = "default_source")]
    pub source: String,
    /// Headers of every request: `"Name: value"`.
    #[serde(default)]
    pub extra_headers: Vec<SecretString>,
    /// Requests that are under way at a time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Tasks in a request.
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// How long it may take to connect.
    #[serde(
        default = "default_connect_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub connect_timeout: Duration,
    /// How long a request may take in all.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
    /// Ranges of addresses that are not public, and may be connected to.
    #[serde(default)]
    pub allow_addresses: Vec<String>,
    /// Certificates to trust, PEM; instead of those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

fn default_source() -> String {
    "aftercommit".to_owned()
}

fn default_concurrency() -> u32 {
    16
}

fn default_batch() -> u32 {
    1
}

fn default_connect_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_timeout() -> Duration {
    Duration::from_secs(15)
}

const TLS_FILES: tls::Names = tls::Names {
    roots: "ca_file",
    certificate: "certificate_file",
    key: "key_file",
};

/// A URL that was read.
struct Address {
    is_tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// As it stands in the URL: with brackets, and with a port if there is one.
    authority: HeaderValue,
    target: Uri,
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either::url(&self.url, &self.url_file).one("give one, or url_file")?;
        url.map(parse_url).transpose()?;
        let secret = Either {
            setting: ("secret", &self.secret),
            file: ("secret_file", &self.secret_file),
        };
        secret.at_most_one()?;
        self.signer()?;
        self.shape()?;
        self.allowed()?;
        if self.concurrency == 0 || self.concurrency > MOST_CONCURRENCY {
            let words = format!("must be 1 to {MOST_CONCURRENCY}");
            return Err(Invalid::new("concurrency", words));
        }
        if self.batch == 0 || self.batch > MOST_BATCH {
            return Err(Invalid::new("batch", format!("must be 1 to {MOST_BATCH}")));
        }
        if self.batch > 1 && self.format == Format::Cloudevents {
            let words = "needs another format: only one CloudEvent fits into headers: \
                         format = \"cloudevents-structured\"";
            return Err(Invalid::new("batch", words));
        }
        check_timeout("connect_timeout", self.connect_timeout)?;
        check_timeout("timeout", self.timeout)?;
        match (&self.certificate_file, &self.key_file) {
            (Some(_), None) => Err(Invalid::new("certificate_file", "needs key_file, too")),
            (None, Some(_)) => Err(Invalid::new("key_file", "needs certificate_file, too")),
            _ => Ok(()),
        }
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![
            SecretFile {
                key: "url_file",
                file: &mut self.url_file,
                secret: &mut self.url,
            },
            SecretFile {
                key: "secret_file",
                file: &mut self.secret_file,
                secret: &mut self.secret,
            },
        ]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        let url = self.url.as_ref().ok_or(Invalid::unread("url_file"))?;
        let address = parse_url(url)?;
        let tls = match address.is_tls {
            true => Some(self.tls(&address.host)?),
            false => None,
        };
        let batch = usize::try_from(self.batch).unwrap_or(1);
        Ok(Box::new(Webhook {
            endpoint: Endpoint {
                place: Place {
                    host: address.host,
                    port: address.port,
                    tls,
                    allowed: self.allowed()?,
                    connect_timeout: self.connect_timeout,
                },
                target: address.target,
                authority: address.authority,
                signer: self.signer()?,
                timeout: self.timeout,
            },
            shape: self.shape()?,
            concurrency: self.side_by_side(),
            idle: Vec::new(),
            silence: Silence::new(match batch {
                1 => self.side_by_side(),
                _ => 1,
            }),
            pace: Pace::new(batch),
            batch,
        }))
    }
}

impl Config {
    fn side_by_side(&self) -> usize {
        usize::try_from(self.concurrency).unwrap_or(1)
    }

    fn signer(&self) -> Result<Option<Signer>, Invalid> {
        let signer = self.secret.as_ref().map(Signer::new).transpose();
        signer.map_err(|words| Invalid::new("secret", words))
    }

    fn allowed(&self) -> Result<Vec<Range>, Invalid> {
        let ranges = self.allow_addresses.iter().map(|text| Range::parse(text));
        let ranges = ranges.collect::<Result<_, _>>();
        ranges.map_err(|words| Invalid::new("allow_addresses", words))
    }

    fn shape(&self) -> Result<Shape, Invalid> {
        let source = &self.source;
        if source.is_empty() || source.bytes().any(|byte| !byte.is_ascii_graphic()) {
            let words = "must be a URI, or a part of one: \"/shop\", \"https://example.com/shop\"";
            return Err(Invalid::new("source", words));
        }
        let mut extra = HeaderMap::new();
        extra.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("aftercommit/", env!("CARGO_PKG_VERSION"))),
        );
        for line in &self.extra_headers {
            let (name, value) = parse_extra(line.expose_secret())
                .map_err(|words| Invalid::new("extra_headers", words))?;
            extra.insert(name, value);
        }
        Ok(Shape {
            format: self.format,
            source: source.clone(),
            extra,
        })
    }

    fn tls(&self, host: &str) -> Result<(TlsConnector, ServerName<'static>), Invalid> {
        let rules = Rules {
            roots: self.ca_file.clone().map_or(Roots::System, Roots::File),
            check_name: true,
            client: self.certificate_file.clone().zip(self.key_file.clone()),
        };
        let mut config = tls::client_config(&rules, TLS_FILES)
            .map_err(|words| Invalid::new("url", format!("needs TLS: {words}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Invalid::new("url", "names a host that no certificate can be for"))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }
}

fn parse_url(url: &SecretString) -> Result<Address, Invalid> {
    let invalid = |words: &str| Invalid::new("url", words);
    let uri: Uri = url
        .expose_secret()
        .parse()
        .map_err(|_| invalid("is no URL: write \"https://example.com/hooks\""))?;
    let is_tls = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) if *scheme == Scheme::HTTP => false,
        _ => return Err(invalid("must begin with https:// or http://")),
    };
    let authority = uri.authority().ok_or_else(|| invalid("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(invalid(
            "holds a user: set extra_headers = [\"Authorization: Basic ...\"] instead",
        ));
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() {
        return Err(invalid("names no host"));
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok(Address {
        is_tls,
        host,
        port: authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 }),
        authority: HeaderValue::from_str(authority.as_str())
            .map_err(|_| invalid("names no host"))?,
        target: target
            .parse()
            .map_err(|_| invalid("has a path that is none"))?,
    })
}
