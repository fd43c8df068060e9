//! Pure: from an error to what to do about it, and to the remedy in words. One match decides both.

use std::borrow::Cow;
use std::io;

use super::error::{Error, Kind, Place, TlsFault};
use super::message::ServerMessage;

/// What to do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Going or coming: connect again with backoff, for ever.
    Reconnect,
    /// Another daemon has the slot: wait for it to go.
    StandBy,
    /// Trying again would not help, or would harm.
    Stop(Stop),
}

/// Why to stop; each class has its exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stop {
    /// The slot is gone, or its WAL is: rows may have been missed.
    SlotLost,
    /// The publication is gone: rows may have been missed.
    PublicationLost,
    /// The configuration, or the server's, has to change first.
    Configuration,
    /// The server, or the stream, is damaged.
    Runtime,
}

type Verdict = (Policy, Option<Cow<'static, str>>);

impl Error {
    /// What to do about it.
    pub fn policy(&self) -> Policy {
        self.verdict().0
    }

    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<Cow<'_, str>> {
        match self.found_remedy() {
            Some(words) => Some(words.into()),
            None => self.verdict().1,
        }
    }

    fn verdict(&self) -> Verdict {
        let place = self.place();
        match self.kind() {
            Kind::Server(message) => self.verdict_on(message),
            Kind::PublicationSkipped(_) => stop(
                Stop::PublicationLost,
                "The server skips the rows of this publication: it did not exist when they were written. Create the \
                 publication first and the slot after it (aftercommit init does)",
            ),
            // A permission on a socket's directory does not come back by itself; a firewall's may.
            Kind::Io(e)
                if place == Place::Connect
                    && e.kind() == io::ErrorKind::PermissionDenied
                    && self.context().is_some_and(|c| c.server.starts_with('/')) =>
            {
                stop(
                    Stop::Configuration,
                    "Give the user that aftercommit runs as access to the socket's directory",
                )
            }
            Kind::Io(_) | Kind::Closed | Kind::Timeout(_) | Kind::Dns(_) => {
                (Policy::Reconnect, None)
            }
            Kind::InRecovery => reconnect(
                "The slot is on the primary: point the URL at it, or wait for this server's promotion",
            ),
            Kind::Tls(TlsFault::OutOfTime, _) => {
                reconnect("Renew the server's certificate, or set this machine's clock")
            }
            Kind::Tls(TlsFault::Certificate, _) => stop(
                Stop::Configuration,
                "Name the file of the authority that issued the server's certificate in sslrootcert, and connect \
                 by a name that stands in its subjectAltName",
            ),
            Kind::Tls(TlsFault::Refused, _) => stop(
                Stop::Configuration,
                "The server refused our certificate: check sslcert and sslkey against its ssl_ca_file",
            ),
            Kind::Tls(TlsFault::Broken, _) => (Policy::Reconnect, None),
            Kind::Protocol(_) if matches!(place, Place::Connect | Place::Authentication) => stop(
                Stop::Configuration,
                "Check that the URL points at a Postgres server",
            ),
            Kind::Protocol(_) => (Policy::Stop(Stop::Runtime), None),
            Kind::Judged(policy, _) => (*policy, None),
            Kind::Refused(_) => (Policy::Stop(Stop::Configuration), None),
        }
    }

    /// By SQLSTATE (Postgres documentation, appendix "PostgreSQL Error Codes").
    fn verdict_on(&self, message: &ServerMessage) -> Verdict {
        use Place::{Connect, Sql, Streaming};
        let place = self.place();
        let (user, database) = match self.context() {
            Some(context) => (quoted(&context.user), quoted(&context.database)),
            None => ("\"role\"".to_owned(), "\"database\"".to_owned()),
        };
        match (message.class(), message.sqlstate.as_str()) {
            (_, "55006") => (Policy::StandBy, None),
            (_, "42704") => match lost_object(place, message) {
                Some(Stop::SlotLost) => stop(
                    Stop::SlotLost,
                    "The slot does not exist in this server. If it never did, aftercommit init creates it; if it \
                     was dropped, rows committed since then were not seen: [postgres] heal = true makes it again and takes \
                     them from the outbox",
                ),
                Some(lost) => stop(
                    lost,
                    "Create the publication, and after it a new slot: this slot cannot be decoded from before the \
                     publication existed",
                ),
                None => (Policy::Stop(Stop::Configuration), None),
            },
            (_, "55000") => prerequisite(place, message),
            (_, "58P01") if wal_is_gone(place, message) => stop(
                Stop::SlotLost,
                "The WAL that the slot needs is gone: rows were missed. [postgres] heal = true makes the slot again and takes \
                 them from the outbox. Raise max_slot_wal_keep_size",
            ),
            (_, "53300") => reconnect(
                "Raise max_wal_senders or max_connections, or the role's connection limit, or close what holds them",
            ),
            (_, "08P01") if place != Streaming && message.message.contains("startup parameter") => {
                stop(
                    Stop::Configuration,
                    "This is a pooler, which does not pass replication: point the URL straight at the server",
                )
            }
            (_, "28P01") => stop(
                Stop::Configuration,
                format!(
                    "Check the password in the URL or in password_file for role {user}; psql sets a new one with \
                     \\password {user}"
                ),
            ),
            (_, "28000") if place == Connect => stop(
                Stop::Configuration,
                format!(
                    "Add a line to pg_hba.conf and reload, such as: hostssl {database} {user} <our address>/32 \
                     scram-sha-256 (the database's own name: the keyword replication does not match this session)"
                ),
            ),
            (_, "28000") => stop(
                Stop::Configuration,
                format!(
                    "As a superuser: create role {user} login replication, if there is none; alter role {user} \
                     login, if it may not log in; else look at what pg_hba.conf asks of it"
                ),
            ),
            (_, "3D000") => stop(
                Stop::Configuration,
                format!("Create database {database}, or name another one in the URL"),
            ),
            (_, "42501") if message.routine == "CheckMyDatabase" => stop(
                Stop::Configuration,
                format!("As the database's owner: grant connect on database {database} to {user}"),
            ),
            (_, "42501") if place != Sql => stop(
                Stop::Configuration,
                format!(
                    "As a superuser: alter role {user} replication; on Amazon RDS: grant rds_replication to {user}"
                ),
            ),
            (_, "42501") => stop(
                Stop::Configuration,
                format!("Role {user} lacks a right: aftercommit init --print shows the grants"),
            ),
            (_, "58P01") => stop(
                Stop::Configuration,
                "A file of the server's installation is missing",
            ),
            ("22", _) if matches!(place, Streaming | Sql) => runtime(),
            ("0A" | "22" | "28" | "42" | "3D" | "3F" | "F0", _) => {
                (Policy::Stop(Stop::Configuration), None)
            }
            ("XX", _) => runtime(),
            // 08 connection, 25 and 40 transactions, 53 resources, 55 locks, 57 intervention, 58 system: they pass.
            // One that we don't know loses nothing by another try.
            _ => (Policy::Reconnect, None),
        }
    }
}

/// Slot or publication? The publications are loaded when the first change is decoded, after the stream has begun.
fn lost_object(place: Place, message: &ServerMessage) -> Option<Stop> {
    let says =
        |word| message.message.contains(word) || message.routine.to_lowercase().contains(word);
    match place {
        _ if says("publication") => Some(Stop::PublicationLost),
        _ if says("slot") => Some(Stop::SlotLost),
        Place::StartReplication => Some(Stop::SlotLost),
        Place::Streaming => Some(Stop::PublicationLost),
        Place::Connect | Place::Authentication | Place::Preflight | Place::Sql => None,
    }
}

/// 55000: the slot is invalidated, or of another kind or database, or the server cannot decode at all.
fn prerequisite(place: Place, message: &ServerMessage) -> Verdict {
    let says = |words: &str| message.message.contains(words);
    if says("wal_level")
        || message.routine == "CheckLogicalDecodingRequirements" && !says("recovery")
    {
        return stop(
            Stop::Configuration,
            "Set wal_level = logical in postgresql.conf and restart the server",
        );
    }
    if says("recovery") {
        return (Policy::Reconnect, None);
    }
    if says("physical") || says("was not created in this database") {
        return stop(
            Stop::Configuration,
            "The slot belongs to something else: name another one in [postgres] slot",
        );
    }
    match place {
        Place::StartReplication | Place::Streaming => stop(
            Stop::SlotLost,
            "Look at the slot in pg_replication_slots: if it is invalidated (wal_status lost), its WAL is gone and \
             rows were missed: [postgres] heal = true makes the slot again and takes them from the outbox. Raise \
             max_slot_wal_keep_size before",
        ),
        Place::Connect | Place::Authentication | Place::Preflight | Place::Sql => {
            (Policy::Stop(Stop::Configuration), None)
        }
    }
}

/// 58P01 is a missing file: a WAL segment, or a library.
fn wal_is_gone(place: Place, message: &ServerMessage) -> bool {
    matches!(place, Place::StartReplication | Place::Streaming)
        && (message.message.contains("WAL") || message.routine.to_lowercase().contains("segment"))
}

fn runtime() -> Verdict {
    stop(
        Stop::Runtime,
        "Nothing was skipped and the slot keeps its place; the server's log says more",
    )
}

fn stop(why: Stop, remedy: impl Into<Cow<'static, str>>) -> Verdict {
    (Policy::Stop(why), Some(remedy.into()))
}

fn reconnect(remedy: &'static str) -> Verdict {
    (Policy::Reconnect, Some(remedy.into()))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests;
