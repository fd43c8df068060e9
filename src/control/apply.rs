//! Applies the plan over a connection.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::plan::{Kind, Step, Wanted, plan};
use super::wait::{Blocker, watched};

/// What [`apply()`] tells on its way.
#[derive(Debug)]
pub enum Event<'a> {
    /// The step has made its object.
    Created(&'a Step),
    /// There was nothing to do.
    AlreadyThere(&'a Step),
    /// This role may not make it; the SQL is for one that may. Everything else goes on.
    Left(&'a Step),
    /// Another `init` is at work on this database.
    WaitingForOther,
    /// The slot waits for these transactions to end.
    WaitingFor(&'a [Blocker]),
}

/// A step failed. Those before it have been applied, and are skipped when `init` runs again.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {message}{}{remedy}", if remedy.is_empty() { "" } else { "\n  " })]
pub struct ApplyError {
    /// The step's object, or what was being done.
    pub what: String,
    /// What to do about it; empty where the message says it all.
    pub remedy: String,
    message: String,
    #[source]
    source: Error,
}

impl ApplyError {
    /// The server's code, where the server answered.
    pub fn code(&self) -> Option<&SqlState> {
        self.source.code()
    }

    fn new(what: &str, source: Error) -> ApplyError {
        ApplyError {
            what: what.to_owned(),
            remedy: remedy(source.code()).to_owned(),
            message: in_words(&source),
            source,
        }
    }
}

/// The server's own message and code, which the error's text leaves out.
pub fn in_words(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

fn remedy(code: Option<&SqlState>) -> &'static str {
    match code {
        Some(c) if *c == SqlState::INSUFFICIENT_PRIVILEGE => {
            "run init as the owner of the database and of the table with CREATEROLE and REPLICATION, or as a \
             superuser (--url, or AFTERCOMMIT_ADMIN_URL); or give such a one the SQL of: aftercommit init --print"
        }
        Some(c) if *c == SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            "drop a slot that nobody uses (select slot_name, active from pg_replication_slots), or raise \
             max_replication_slots and restart the server"
        }
        _ => "",
    }
}

/// Applies the steps of [`plan()`] over `client`, each in a transaction of its own, and tells of each by `say`.
///
/// `observer` is a second connection to the same server: it looks who is in the way while `client` waits for the
/// slot. When the slot is waited for and the connection is lost, the server gives up, too, and leaves no slot behind.
///
/// # Errors
/// The first step that fails, but for roles and grants that this role may not make ([`Event::Left`]).
pub async fn apply(
    client: &Client,
    observer: &Client,
    wanted: &Wanted,
    say: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), ApplyError> {
    let session = |e| ApplyError::new("session", e);
    settle_session(client, say).await.map_err(session)?;
    let result = apply_steps(client, observer, wanted, say).await;
    let unlocked = client
        .batch_execute(&format!("select pg_advisory_unlock{LOCK}"))
        .await;
    result.and(unlocked.map_err(session))
}

/// Held while `init` is at work; per database.
const LOCK: &str = "(hashtext('aftercommit init'), 0)";

async fn apply_steps(
    client: &Client,
    observer: &Client,
    wanted: &Wanted,
    say: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), ApplyError> {
    for step in plan(wanted) {
        let failed = |e| ApplyError::new(&step.what, e);
        if probe(client, &step).await.map_err(failed)? {
            say(Event::AlreadyThere(&step));
            continue;
        }
        let made = match step.kind {
            Kind::Object => client.batch_execute(&step.sql).await.map(|()| true),
            Kind::Role => make_role(client, &step).await,
            Kind::Slot => make_slot(client, observer, &step, say).await.map(|()| true),
        };
        if made.map_err(failed)? {
            say(Event::Created(&step));
        } else {
            say(Event::Left(&step));
        }
    }
    Ok(())
}

/// No timeout of the role's or the database's ends a step; two runs do not meet; and the server looks every two
/// seconds whether we are still there, which not every platform can do.
async fn settle_session(
    client: &Client,
    say: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), Error> {
    client
        .batch_execute(
            "set client_min_messages = warning; set statement_timeout = 0; set lock_timeout = 0; \
             set idle_in_transaction_session_timeout = 0",
        )
        .await?;
    let watched = client
        .batch_execute("set client_connection_check_interval = '2s'")
        .await;
    match watched {
        Err(e) if e.is_closed() => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let free = client
        .query_typed_one(&format!("select pg_try_advisory_lock{LOCK}"), &[])
        .await?;
    if !free.try_get::<_, bool>(0)? {
        say(Event::WaitingForOther);
        client
            .batch_execute(&format!("select pg_advisory_lock{LOCK}"))
            .await?;
    }
    Ok(())
}

async fn probe(client: &Client, step: &Step) -> Result<bool, Error> {
    let row = client.query_typed_one(&step.probe, &[]).await?;
    row.try_get(0)
}

/// Whether it could be made.
async fn make_role(client: &Client, step: &Step) -> Result<bool, Error> {
    match client.batch_execute(&step.sql).await {
        Ok(()) => probe(client, step).await,
        // Missing rights, or the group that this role was not allowed to make a step before.
        Err(e)
            if e.code().is_some_and(|c| {
                *c == SqlState::INSUFFICIENT_PRIVILEGE || *c == SqlState::UNDEFINED_OBJECT
            }) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

async fn make_slot(
    client: &Client,
    observer: &Client,
    step: &Step,
    say: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), Error> {
    let pid = client
        .query_typed_one("select pg_backend_pid()", &[])
        .await?
        .try_get(0)?;
    watched(
        client.batch_execute(&step.sql),
        observer,
        pid,
        &mut |blockers| {
            say(Event::WaitingFor(blockers));
        },
    )
    .await
}
