//! The walsender session: replication commands up to START_REPLICATION.
//!
//! Postgres documentation, chapter "Streaming Replication Protocol". With `replication=database` the session takes
//! replication commands and simple queries, and after START_REPLICATION only the stream.

use std::fmt;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::error::{Error, Place};
use super::session::{Incoming, Session};
use super::socket::Socket;
use super::sql::ANSWER_WITHIN;
use super::startup::{self, Purpose};
use super::target::Target;
use crate::pg::Lsn;

/// The walsender session.
pub struct Walsender {
    session: Session,
}

impl fmt::Debug for Walsender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walsender")
            .field("backend_pid", &self.backend_pid())
            .finish_non_exhaustive()
    }
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemIdentity {
    /// Unique to the cluster and its standbys.
    pub system_id: u64,
    /// Changes with every promotion.
    pub timeline: u32,
    /// How far the WAL is flushed.
    pub xlog_pos: Lsn,
    /// The database of the session.
    pub database: String,
}

/// The stream: from here on both sides send CopyData.
#[derive(Debug)]
pub struct CopyBoth {
    /// The connection.
    pub socket: Socket,
    /// Bytes that were read already, behind CopyBothResponse.
    pub buffer: BytesMut,
    /// The walsender's process.
    pub backend_pid: u32,
}

impl SystemIdentity {
    fn from_row(row: &[Option<String>]) -> Option<SystemIdentity> {
        let text = |column: usize| row.get(column)?.as_deref();
        Some(SystemIdentity {
            system_id: text(0)?.parse().ok()?,
            timeline: text(1)?.parse().ok()?,
            xlog_pos: text(2)?.parse().ok()?,
            database: text(3)?.to_owned(),
        })
    }
}

impl Walsender {
    /// Opens a session with `replication=database` and pinned settings on the primary.
    ///
    /// `application_name` is for a URL that gives none.
    ///
    /// # Errors
    /// Those of every step from DNS to the server's readiness; [`Error::policy`] says what to do.
    pub async fn connect(target: &Target, application_name: &str) -> Result<Walsender, Error> {
        let session = startup::open(target, Purpose::Replication, application_name).await?;
        Ok(Walsender { session })
    }

    /// The walsender's process, as in `pg_stat_replication`.
    pub fn backend_pid(&self) -> u32 {
        self.session.backend_pid
    }

    /// As `server_version_num`: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.session.server_version()
    }

    /// A setting that the server has reported, such as `server_encoding`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// Asks which cluster this is, and where its WAL stands.
    ///
    /// # Errors
    /// The server's, the socket's, or an answer that is not understood.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = in_time(Place::Sql, self.session.simple_query("IDENTIFY_SYSTEM")).await?;
        rows.first()
            .and_then(|row| SystemIdentity::from_row(row))
            .ok_or_else(|| self.session.unexpected())
    }

    /// Runs statements or a replication command, and returns the rows as text. There is no time limit: making a slot
    /// waits for every open transaction.
    ///
    /// If the future is dropped before it is done, the session is of no more use.
    ///
    /// # Errors
    /// The server's, or the socket's.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        self.session.simple_query(sql).await
    }

    /// Starts the stream at `start`, or at the slot's confirmed position if that is later; returns when it has begun.
    ///
    /// # Errors
    /// SQLSTATE 55006 (another has the slot), 42704 (no such slot), 55000 (invalidated) and more; see
    /// [`Error::policy`].
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: Lsn,
        publication: &str,
    ) -> Result<CopyBoth, Error> {
        self.session.place = Place::StartReplication;
        let command = start_command(slot, start, publication);
        let answer = async {
            self.session.send_query(&command).await?;
            self.session.receive().await
        };
        match in_time(Place::StartReplication, answer).await? {
            Incoming::CopyBoth => {}
            Incoming::Error(message) => return Err(self.session.failed(message)),
            Incoming::Message(_) => return Err(self.session.unexpected()),
        }
        let Session {
            socket,
            buffer,
            backend_pid,
            ..
        } = self.session;
        Ok(CopyBoth {
            socket,
            buffer,
            backend_pid,
        })
    }

    pub(super) fn unexpected(&self) -> Error {
        self.session.unexpected()
    }

    /// Says goodbye, so that the server logs no lost connection. Errors do not matter any more.
    pub async fn close(mut self) {
        let mut frame = BytesMut::new();
        frontend::terminate(&mut frame);
        let _ = self.session.send(&frame).await;
    }
}

/// The answer, unless the server is silent for too long.
async fn in_time<T>(
    place: Place,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let answer = timeout(ANSWER_WITHIN, answer).await;
    answer.unwrap_or_else(|_| Err(Error::timeout(place, ANSWER_WITHIN)))
}

/// `publication_names` is a list of identifiers inside a literal: quoted twice.
fn start_command(slot: &str, start: Lsn, publication: &str) -> String {
    let identifier = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names '{}')",
        identifier(slot),
        identifier(publication).replace('\'', "''"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_their_place() {
        assert_eq!(
            start_command("s", Lsn(0x10_0000_0002), "p"),
            r#"START_REPLICATION SLOT "s" LOGICAL 10/2 (proto_version '1', publication_names '"p"')"#
        );
        assert_eq!(
            start_command("a\"b", Lsn::ZERO, "o'br\"ien, x"),
            r#"START_REPLICATION SLOT "a""b" LOGICAL 0/0 (proto_version '1', publication_names '"o''br""ien, x"')"#
        );
    }
}
