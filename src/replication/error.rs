//! What went wrong with the server: where, what it said, and the SQLSTATE.
//!
//! What to do about it is decided in one place, [`Error::policy`].

use std::time::Duration;
use std::{error, fmt, io};

use super::message::ServerMessage;
use super::policy::Policy;
use crate::pg::Lsn;
use crate::tls;

/// What was under way when it went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// Finding and reaching the server, and its first answer.
    Connect,
    /// Proving who we are, and opening the session.
    Authentication,
    /// `START_REPLICATION`, before the stream has begun.
    StartReplication,
    /// The look at slot, publication and table.
    Preflight,
    /// The stream.
    Streaming,
    /// A query.
    Sql,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Connect => "cannot connect to Postgres",
            Place::Authentication => "cannot log in to Postgres",
            Place::StartReplication => "START_REPLICATION failed",
            Place::Preflight => "the server is not as it has to be",
            Place::Streaming => "the replication stream broke",
            Place::Sql => "a query failed",
        })
    }
}

/// Fails on the notice that says that rows are being skipped (Postgres 18); every other notice is harmless. So is one of the
/// same SQLSTATE which says that the server waits for a standby (`synchronized_standby_slots`, 17 and newer).
///
/// # Errors
/// SQLSTATE 55000, "skipped loading publication".
pub fn refuse_notice(place: Place, notice: ServerMessage) -> Result<(), Error> {
    match notice.sqlstate.as_str() {
        "55000" if notice.routine != "StandbySlotsHaveCaughtup" => {
            Err(Error::new(place, Kind::PublicationSkipped(notice)))
        }
        _ => Ok(()),
    }
}

/// What a failed TLS handshake, or a TLS session, was about.
#[derive(Debug)]
pub(super) enum TlsFault {
    /// The server's certificate is outside of its time: somebody will renew it, or a clock is wrong.
    OutOfTime,
    /// The server's certificate is not one to trust.
    Certificate,
    /// The server did not like ours.
    Refused,
    /// Anything else.
    Broken,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// The server said so.
    Server(ServerMessage),
    /// The server skips a publication.
    PublicationSkipped(ServerMessage),
    /// The socket.
    Io(io::Error),
    /// The server closed the connection without a word.
    Closed,
    /// No answer in time.
    Timeout(Duration),
    /// The host's name did not resolve.
    Dns(io::Error),
    Tls(TlsFault, rustls::Error),
    /// A standby, where we need the primary.
    InRecovery,
    /// Not what the protocol allows.
    Protocol(String),
    /// We refuse to go on; the words hold the remedy.
    Refused(String),
    /// Judged where it was found; the words hold the remedy.
    Judged(Policy, String),
}

/// Something went wrong with the server. Opaque: ask [`Error::policy`] what to do, and show it to the operator.
pub struct Error(Box<Inner>);

struct Inner {
    place: Place,
    kind: Kind,
    context: Option<Context>,
    query: Option<&'static str>,
    lsn: Option<Lsn>,
    remedy: Option<String>,
}

/// With whom we spoke.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) server: String,
    pub(super) user: String,
    pub(super) database: String,
}

impl Error {
    pub(super) fn new(place: Place, kind: Kind) -> Error {
        Error(Box::new(Inner {
            place,
            kind,
            context: None,
            query: None,
            lsn: None,
            remedy: None,
        }))
    }

    /// A failure of the socket, or of the TLS session on it.
    pub fn io(place: Place, e: io::Error) -> Error {
        let is_tls = e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        if !is_tls && e.kind() == io::ErrorKind::UnexpectedEof {
            return Error::closed(place);
        }
        if !is_tls {
            return Error::new(place, Kind::Io(e));
        }
        match e
            .into_inner()
            .map(|inner| inner.downcast::<rustls::Error>())
        {
            Some(Ok(inner)) => Error::tls(place, *inner),
            _ => Error::closed(place),
        }
    }

    /// The server closed the connection without a word.
    pub fn closed(place: Place) -> Error {
        Error::new(place, Kind::Closed)
    }

    /// The server did not answer for this long.
    pub fn timeout(place: Place, after: Duration) -> Error {
        Error::new(place, Kind::Timeout(after))
    }

    /// An ErrorResponse.
    pub fn server(place: Place, message: ServerMessage) -> Error {
        Error::new(place, Kind::Server(message))
    }

    /// The server sent what the protocol does not allow; the words say what.
    pub fn protocol(place: Place, words: impl Into<String>) -> Error {
        Error::new(place, Kind::Protocol(words.into()))
    }

    /// We refuse to go on with the configuration or the server as it is; the words hold the remedy.
    pub fn refused(place: Place, words: impl Into<String>) -> Error {
        Error::new(place, Kind::Refused(words.into()))
    }

    /// What was found means this; the words hold the remedy.
    pub fn judged(place: Place, policy: Policy, words: impl Into<String>) -> Error {
        Error::new(place, Kind::Judged(policy, words.into()))
    }

    /// A failed query of the SQL session; `query` says in a few words what it was for.
    pub fn sql(query: &'static str, e: tokio_postgres::Error) -> Error {
        let mut error = Error::from(e);
        error.0.query = Some(query);
        error
    }

    pub(super) fn tls(place: Place, e: rustls::Error) -> Error {
        use rustls::Error::{AlertReceived, InvalidCertificate};
        let fault = match &e {
            InvalidCertificate(bad) if tls::is_out_of_time(bad) => TlsFault::OutOfTime,
            InvalidCertificate(_) => TlsFault::Certificate,
            AlertReceived(alert) if tls::refuses_ours(*alert) => TlsFault::Refused,
            _ => TlsFault::Broken,
        };
        Error::new(place, Kind::Tls(fault, e))
    }

    pub(super) fn with(mut self, context: &Context) -> Error {
        self.0.context.get_or_insert_with(|| context.clone());
        self
    }

    /// The same error, with the position that was being read.
    #[must_use]
    pub fn at(mut self, lsn: Lsn) -> Error {
        self.0.lsn = Some(lsn);
        self
    }

    /// The same error, with the remedy that was found for it: a better one than what the error alone can tell.
    #[must_use]
    pub fn remedied(mut self, words: impl Into<String>) -> Error {
        self.0.remedy = Some(words.into());
        self
    }

    /// What was under way.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// The SQLSTATE, where the server spoke.
    pub fn sqlstate(&self) -> Option<&str> {
        self.message().map(|m| m.sqlstate.as_str())
    }

    /// What the server said, where it spoke.
    pub fn message(&self) -> Option<&ServerMessage> {
        match &self.0.kind {
            Kind::Server(message) | Kind::PublicationSkipped(message) => Some(message),
            _ => None,
        }
    }

    /// The peer was silent for too long: as we measure it, or as the kernel does.
    pub(super) fn is_silence(&self) -> bool {
        match self.kind() {
            Kind::Timeout(_) => true,
            Kind::Io(e) => e.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0.kind
    }

    pub(super) fn found_remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    pub(super) fn context(&self) -> Option<&Context> {
        self.0.context.as_ref()
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(e: tokio_postgres::Error) -> Error {
        let place = Place::Sql;
        if let Some(db) = e.as_db_error() {
            return Error::server(place, ServerMessage::from_db(db));
        }
        if e.is_closed() {
            return Error::closed(place);
        }
        let words = e.to_string();
        match e.into_source().map(|source| source.downcast::<io::Error>()) {
            // Its errors of parsing carry an io::Error of this kind.
            Some(Ok(source)) if source.kind() == io::ErrorKind::InvalidInput => {
                Error::protocol(place, words)
            }
            Some(Ok(source)) => Error::io(place, *source),
            _ => Error::protocol(place, words),
        }
    }
}

/// One message: what was under way, with whom, what happened, and the remedy.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            place,
            kind,
            context,
            query,
            lsn,
            ..
        } = &*self.0;
        write!(f, "{place}")?;
        if let Some(query) = query {
            write!(f, " ({query})")?;
        }
        if let Some(Context { server, .. }) = context {
            write!(f, " at {server}")?;
        }
        if let Some(lsn) = lsn {
            write!(f, " at LSN {lsn}")?;
        }
        match kind {
            // Before the stream there are no rows yet, and the value that is wrong is one of ours.
            Kind::Server(message)
                if message.class() == "22" && !matches!(place, Place::Streaming | Place::Sql) =>
            {
                write!(f, ": {} (SQLSTATE {})", message.message, message.sqlstate)
            }
            Kind::Server(message) | Kind::PublicationSkipped(message) => write!(f, ": {message}"),
            Kind::Io(e) => write!(f, ": {e}"),
            Kind::Closed => f.write_str(": the server closed the connection"),
            Kind::Timeout(after) => write!(f, ": no answer within {after:?}"),
            Kind::Dns(e) => write!(f, ": the host name does not resolve: {e}"),
            Kind::Tls(_, e) => write!(f, ": TLS: {e}"),
            Kind::InRecovery => f.write_str(": the server is a standby, in recovery"),
            Kind::Protocol(words) | Kind::Refused(words) | Kind::Judged(_, words) => {
                write!(f, ": {words}")
            }
        }?;
        match self.remedy() {
            Some(remedy) => write!(f, ". {remedy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, \"{self}\")", self.policy())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self.kind() {
            Kind::Io(e) | Kind::Dns(e) => Some(e),
            Kind::Tls(_, e) => Some(e),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(fields: &[u8]) -> ServerMessage {
        ServerMessage::parse(fields)
    }

    #[test]
    fn values_of_rows_are_not_shown() {
        for fields in [
            &b"C23505\0Mduplicate key\0DKey (id)=(tops3cret) already exists.\0"[..],
            b"C22P02\0Minvalid input syntax for type json: \"tops3cret\"\0DToken\0",
        ] {
            let error = Error::server(Place::Sql, body(fields)).at(Lsn(1));
            let shown = format!("{error} {error:?}");
            assert!(
                !shown.contains("s3cret") && shown.contains("0/1"),
                "{shown}"
            );
        }
    }

    #[test]
    fn only_the_notice_about_skipped_rows_is_fatal() {
        let harmless = body(b"VNOTICE\0C42P07\0Malready exists, skipping\0");
        assert!(refuse_notice(Place::Streaming, harmless).is_ok());
        let waits = body(
            b"VWARNING\0C55000\0Mreplication slot \"s\" does not have active_pid\0RStandbySlotsHaveCaughtup\0",
        );
        assert!(refuse_notice(Place::Streaming, waits).is_ok());
        let skipped = body(b"VWARNING\0C55000\0Mskipped loading publication \"p\"\0");
        let error = refuse_notice(Place::Streaming, skipped).expect_err("fatal");
        assert!(
            error.to_string().contains("Create the publication"),
            "{error}"
        );
    }
}
