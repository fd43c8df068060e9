//! Each fault, what is to be done about it, and what is said.

use std::io;
use std::time::Duration;

use super::*;
use crate::replication::error::Context;

fn said(place: Place, sqlstate: &str, message: &str) -> Error {
    Error::server(
        place,
        ServerMessage {
            severity: "ERROR".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            ..ServerMessage::default()
        },
    )
}

#[test]
fn every_sqlstate_has_its_policy() {
    use Place::{Authentication, Connect, Sql, StartReplication, Streaming};
    use Policy::{Reconnect, StandBy};
    const CONFIGURATION: Policy = Policy::Stop(Stop::Configuration);
    const RUNTIME: Policy = Policy::Stop(Stop::Runtime);
    const SLOT: Policy = Policy::Stop(Stop::SlotLost);
    const PUBLICATION: Policy = Policy::Stop(Stop::PublicationLost);
    for (place, sqlstate, message, policy) in [
        (
            StartReplication,
            "55006",
            "slot is active for PID 3",
            StandBy,
        ),
        (
            StartReplication,
            "42704",
            "replication slot \"s\" does not exist",
            SLOT,
        ),
        (
            StartReplication,
            "42704",
            "Replikations-Slot »s« existiert nicht",
            SLOT,
        ),
        (
            Streaming,
            "42704",
            "publication \"p\" does not exist",
            PUBLICATION,
        ),
        (
            Streaming,
            "42704",
            "Publikation »p« existiert nicht",
            PUBLICATION,
        ),
        (Sql, "42704", "replication slot \"s\" does not exist", SLOT),
        (Sql, "42704", "type \"t\" does not exist", CONFIGURATION),
        (
            StartReplication,
            "55000",
            "can no longer get changes from replication slot \"s\"",
            SLOT,
        ),
        (
            StartReplication,
            "55000",
            "logical decoding requires wal_level >= logical",
            CONFIGURATION,
        ),
        (
            StartReplication,
            "55000",
            "cannot use physical replication slot for logical decoding",
            CONFIGURATION,
        ),
        (
            StartReplication,
            "55000",
            "replication slot \"s\" was not created in this database",
            CONFIGURATION,
        ),
        (Sql, "55000", "recovery is in progress", Reconnect),
        (
            Streaming,
            "57P01",
            "terminating connection due to administrator command",
            Reconnect,
        ),
        (Sql, "57P02", "", Reconnect),
        (
            Connect,
            "57P03",
            "the database system is starting up",
            Reconnect,
        ),
        (
            Sql,
            "57014",
            "canceling statement due to user request",
            Reconnect,
        ),
        (Sql, "08006", "", Reconnect),
        (Connect, "08P01", "protocol violation", Reconnect),
        (
            Connect,
            "08P01",
            "unsupported startup parameter: wal_sender_timeout",
            CONFIGURATION,
        ),
        (
            Connect,
            "53300",
            "sorry, too many clients already",
            Reconnect,
        ),
        (Sql, "53100", "disk full", Reconnect),
        (Sql, "40P01", "deadlock detected", Reconnect),
        (Sql, "58030", "could not read file", Reconnect),
        (Connect, "28000", "no pg_hba.conf entry", CONFIGURATION),
        (
            Authentication,
            "28000",
            "role \"u\" is not permitted to log in",
            CONFIGURATION,
        ),
        (Authentication, "28P01", "", CONFIGURATION),
        (Authentication, "3D000", "", CONFIGURATION),
        (
            Authentication,
            "42501",
            "must be superuser or replication role",
            CONFIGURATION,
        ),
        (Sql, "42P01", "relation \"x\" does not exist", CONFIGURATION),
        (StartReplication, "42601", "syntax error", CONFIGURATION),
        (StartReplication, "0A000", "", CONFIGURATION),
        (
            StartReplication,
            "22023",
            "client sent proto_version=9",
            CONFIGURATION,
        ),
        (
            Streaming,
            "58P01",
            "requested WAL segment 0001 has already been removed",
            SLOT,
        ),
        (
            StartReplication,
            "58P01",
            "could not access file \"pgoutput\"",
            CONFIGURATION,
        ),
        (Streaming, "XX000", "could not find record", RUNTIME),
        (Streaming, "XX001", "", RUNTIME),
        (Streaming, "22021", "invalid byte sequence", RUNTIME),
        (Streaming, "", "", Reconnect),
    ] {
        let error = said(place, sqlstate, message);
        assert_eq!(error.policy(), policy, "{error}");
        assert_eq!(error.sqlstate(), Some(sqlstate));
    }
}

#[test]
fn every_other_fault_has_its_policy() {
    let io = |kind| Error::io(Place::Connect, io::Error::from(kind));
    let at_socket = Context {
        server: "/run/postgresql/.s.PGSQL.5432".to_owned(),
        user: String::new(),
        database: String::new(),
    };
    let stop = Policy::Stop(Stop::Configuration);
    for (error, policy) in [
        (io(io::ErrorKind::ConnectionRefused), Policy::Reconnect),
        (io(io::ErrorKind::NotFound), Policy::Reconnect),
        (io(io::ErrorKind::PermissionDenied), Policy::Reconnect),
        (io(io::ErrorKind::PermissionDenied).with(&at_socket), stop),
        (io(io::ErrorKind::UnexpectedEof), Policy::Reconnect),
        (Error::closed(Place::Streaming), Policy::Reconnect),
        (
            Error::timeout(Place::Connect, Duration::from_secs(1)),
            Policy::Reconnect,
        ),
        (Error::protocol(Place::Connect, "HTTP"), stop),
        (
            Error::protocol(Place::Streaming, "?"),
            Policy::Stop(Stop::Runtime),
        ),
        (Error::refused(Place::Connect, "no"), stop),
        (
            Error::new(Place::Connect, Kind::InRecovery),
            Policy::Reconnect,
        ),
    ] {
        assert_eq!(error.policy(), policy, "{error}");
    }
}

#[test]
fn a_missing_right_is_named_with_the_sql_that_grants_it() {
    let context = Context {
        server: "db:5432".to_owned(),
        user: "o\"r".to_owned(),
        database: "app".to_owned(),
    };
    for (sqlstate, routine, words) in [
        (
            "42501",
            "CheckMyDatabase",
            r#"grant connect on database "app" to "o""r""#,
        ),
        ("42501", "InitPostgres", r#"alter role "o""r" replication"#),
        (
            "28000",
            "InitializeSessionUserId",
            r#"alter role "o""r" login"#,
        ),
        ("28P01", "auth_failed", r#"\password "o""r""#),
    ] {
        let message = ServerMessage {
            sqlstate: sqlstate.to_owned(),
            routine: routine.to_owned(),
            ..ServerMessage::default()
        };
        let error = Error::server(Place::Authentication, message).with(&context);
        let remedy = error.remedy().expect("a remedy").into_owned();
        assert!(remedy.contains(words), "{remedy}");
        let policy = error.policy();
        let error = error.remedied("Do this instead");
        assert_eq!(error.policy(), policy);
        let shown = error.to_string();
        assert!(shown.ends_with(". Do this instead"), "{shown}");
    }
}
