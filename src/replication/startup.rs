//! Getting in: each host in turn, TLS as `sslmode` says, the startup message, authentication, ready.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::auth::authenticate;
use super::error::{Context, Error, Kind, Place, TlsFault};
use super::policy::Policy;
use super::session::{Incoming, Session};
use super::socket::{Endpoint, Socket};
use super::target::{Address, Host, SslMode, Target};
use super::tls;

/// The server ends a walsender session that has sent it nothing for this long; it gets a status at least every
/// third of it.
pub const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(60);
const WAL_SENDER_TIMEOUT_SETTING: &str = "60s";

/// Settings that a role or database may have changed, and that our sessions rely on. Each may be set by any role, and
/// 14 knows them all: an unknown one would be fatal.
const PINNED: [(&str, &str); 14] = [
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // A client that is gone, as ours notice a server that is: nobody else tells the server when the network is down, and the
    // session would keep its locks, and the slot, for two hours.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    // From 18 a publication that was missing is only a warning, while its rows are skipped: it must reach us.
    ("client_min_messages", "warning"),
];

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Replication,
    Sql,
}

/// Opens a session on the first host that takes us.
///
/// A host that refuses us ends the search, as in libpq; one that is away, starting, stopping or a standby does not.
pub(super) async fn open(
    target: &Target,
    purpose: Purpose,
    application_name: &str,
) -> Result<Session, Error> {
    let mut away = None;
    for host in &target.hosts {
        let context = Context {
            server: host.to_string(),
            user: target.user.clone(),
            database: target.database.clone(),
        };
        let late = || Error::timeout(Place::Connect, target.connect_timeout);
        let endpoints = match timeout(target.connect_timeout, resolve(host)).await {
            Ok(resolved) => resolved,
            Err(_) => Err(late()),
        };
        let endpoints = match endpoints {
            Ok(endpoints) => endpoints,
            Err(e) => {
                away = Some(e.with(&context));
                continue;
            }
        };
        let attempt = Attempt {
            target,
            host,
            purpose,
            application_name,
            context: &context,
        };
        for endpoint in endpoints {
            let outcome = timeout(target.connect_timeout, attempt.run(&endpoint)).await;
            match outcome.unwrap_or_else(|_| Err(late())) {
                Ok(session) => return Ok(session),
                Err(e) if e.policy() != Policy::Reconnect => return Err(e.with(&context)),
                Err(e) => {
                    tracing::debug!(error = %e, "trying the next address");
                    away = Some(e.with(&context));
                }
            }
        }
    }
    Err(away.unwrap_or_else(|| Error::refused(Place::Connect, "no host to connect to")))
}

async fn resolve(host: &Host) -> Result<Vec<Endpoint>, Error> {
    let name = match &host.address {
        Address::Unix(_) => return Ok(vec![Endpoint::Unix(host.socket_path())]),
        Address::Tcp(name) => name,
    };
    let found = tokio::net::lookup_host((name.as_str(), host.port)).await;
    let endpoints: Vec<_> = match found {
        Ok(addresses) => addresses.map(Endpoint::Tcp).collect(),
        Err(e) => return Err(Error::new(Place::Connect, Kind::Dns(e))),
    };
    if endpoints.is_empty() {
        let none = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::new(Place::Connect, Kind::Dns(none)));
    }
    Ok(endpoints)
}

struct Attempt<'a> {
    target: &'a Target,
    host: &'a Host,
    purpose: Purpose,
    application_name: &'a str,
    context: &'a Context,
}

impl Attempt<'_> {
    /// One address, once; or twice where `sslmode` leaves a choice and the first way was barred.
    async fn run(&self, endpoint: &Endpoint) -> Result<Session, Error> {
        let (first, second) = match (endpoint, self.target.ssl_mode) {
            (Endpoint::Unix(_), _) | (_, SslMode::Disable) => (false, None),
            (_, SslMode::Allow) => (false, Some(true)),
            (_, SslMode::Prefer) => (true, Some(false)),
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (true, None),
        };
        let barred = match (self.once(endpoint, first).await, second) {
            (Err(e), Some(_)) if is_barred(&e) => e,
            (outcome, _) => return outcome,
        };
        match self.once(endpoint, !first).await {
            Err(e) if is_barred(&e) => Err(barred),
            outcome => outcome,
        }
    }

    async fn once(&self, endpoint: &Endpoint, with_tls: bool) -> Result<Session, Error> {
        let dialled = Socket::dial(endpoint).await;
        let socket = match dialled.map_err(|e| Error::io(Place::Connect, e).with(self.context))? {
            Socket::Tcp(stream) if with_tls => {
                let name = match &self.host.address {
                    Address::Tcp(name) => name,
                    Address::Unix(_) => return Err(Error::closed(Place::Connect)),
                };
                tls::negotiate(stream, name, self.target.ssl_mode, &self.target.tls)
                    .await
                    .map_err(|e| e.with(self.context))?
            }
            socket => socket,
        };
        let mut session = Session::new(socket, self.context.clone());
        self.greet(&mut session).await?;
        authenticate(&mut session, self.target).await?;
        until_ready(&mut session).await?;
        if !self.target.recovery_allowed && session.is_in_recovery() {
            return Err(Error::new(Place::Connect, Kind::InRecovery));
        }
        // Only from 17 on it can be pinned, and the version is known only now.
        if session.server_version() >= 170_000 {
            session.simple_query("set transaction_timeout = 0").await?;
        }
        session.place = Place::Sql;
        Ok(session)
    }

    async fn greet(&self, session: &mut Session) -> Result<(), Error> {
        let Target {
            user,
            database,
            options,
            ..
        } = self.target;
        let name = self.target.application_name.as_deref();
        let mut parameters = vec![
            ("user", user.as_str()),
            ("database", database.as_str()),
            ("application_name", name.unwrap_or(self.application_name)),
        ];
        if let Some(options) = options {
            parameters.push(("options", options));
        }
        // Settings of their own come after those in options, and win.
        parameters.extend(PINNED);
        if self.purpose == Purpose::Replication {
            parameters.push(("wal_sender_timeout", WAL_SENDER_TIMEOUT_SETTING));
            parameters.push(("replication", "database"));
        }
        let mut frame = BytesMut::new();
        frontend::startup_message(parameters, &mut frame)
            .map_err(|_| Error::refused(Place::Connect, "a name holds a zero byte"))?;
        session.send(&frame).await
    }
}

/// Barred before anything was proven: by pg_hba.conf, which may ask for TLS or for none; or by a handshake that fails
/// for another reason than a certificate. A certificate that is not to be trusted never leads to a session in the clear.
fn is_barred(e: &Error) -> bool {
    e.place() == Place::Connect
        && (e.sqlstate() == Some("28000") || matches!(e.kind(), Kind::Tls(TlsFault::Broken, _)))
}

async fn until_ready(session: &mut Session) -> Result<(), Error> {
    loop {
        match session.receive().await? {
            Incoming::Message(Message::BackendKeyData(body)) => {
                session.backend_pid = body.process_id().cast_unsigned();
            }
            Incoming::Message(Message::ReadyForQuery(_)) => return Ok(()),
            Incoming::Error(message) => return Err(session.failed(message)),
            Incoming::Message(_) | Incoming::CopyBoth => return Err(session.unexpected()),
        }
    }
}

impl Session {
    /// Reported by the server when the session opens, and whenever it changes (14 and newer).
    fn is_in_recovery(&self) -> bool {
        self.parameters
            .get("in_hot_standby")
            .is_some_and(|v| v == "on")
    }

    /// As `server_version_num`: 150018, 180000.
    pub(super) fn server_version(&self) -> u32 {
        self.parameters
            .get("server_version")
            .and_then(|text| version_number(text))
            .unwrap_or(0)
    }
}

/// `15.18 (Debian 15.18-1)`, `18beta1`.
fn version_number(text: &str) -> Option<u32> {
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let value = text.get(..digits)?.parse::<u32>().ok()?;
        Some((value, text.get(digits..)?.to_owned()))
    };
    let (major, rest) = number(text)?;
    let minor = rest
        .strip_prefix('.')
        .and_then(number)
        .map_or(0, |(minor, _)| minor);
    major.checked_mul(10_000)?.checked_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("14.0", Some(140_000)),
            ("18beta1", Some(180_000)),
            ("17", Some(170_000)),
            ("", None),
            ("devel", None),
            ("99999999999", None),
            ("999999.1", None),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn the_setting_is_the_constant() {
        let text = format!("{}s", WAL_SENDER_TIMEOUT.as_secs());
        assert_eq!(text, WAL_SENDER_TIMEOUT_SETTING);
    }
}
