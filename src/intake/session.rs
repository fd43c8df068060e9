//! Opening a session: preflight, walsender, identity, START_REPLICATION.

use tokio_postgres::Client;
use tracing::{info, warn};

use super::{Channels, Intake, Message, Session, Until};
use crate::outbox::assembler::Assembler;
use crate::pg::Lsn;
use crate::preflight::{self, Facts};
use crate::replication::stream::Stream;
use crate::replication::{Error, Socket, Walsender, connect_sql};

/// The name that the server shows for our connections. Not the cluster's standby names: a walsender that is picked as a
/// synchronous standby would make commits wait for us, and us for commits.
const APPLICATION_NAME: &str = "aftercommit";

/// What is remembered from session to session.
#[derive(Debug, Default)]
pub(super) struct History {
    /// System identifier and timeline of the last session.
    identity: Option<(String, u32)>,
    generation: u64,
    /// `--until`, once it is known as a position.
    until: Option<Lsn>,
}

/// A session that streams.
pub(super) struct Open {
    pub stream: Stream<Socket>,
    pub assembler: Assembler,
    pub session: Session,
    pub facts: Facts,
}

/// Opens a session and announces it to the relay.
pub(super) async fn open(intake: &Intake, history: &mut History, channels: &Channels) -> Result<Open, Error> {
    let sql = connect_sql(&intake.target, APPLICATION_NAME).await?;
    let facts = check(intake, &sql).await?;
    let mut walsender = Walsender::connect(&intake.target, APPLICATION_NAME).await?;
    let system = walsender.identify_system().await?;
    let identity = (system.system_id.clone(), system.timeline);
    if history.identity.as_ref() != Some(&identity) {
        if history.identity.is_some() {
            warn!(
                system = %system.system_id, timeline = system.timeline,
                "another server, or another timeline: positions from before mean nothing here; starting from the slot's own"
            );
        }
        history.identity = Some(identity);
        history.generation += 1;
    }
    if history.until.is_none() {
        history.until = match intake.until {
            Some(Until::Now) => Some(system.xlog_pos),
            Some(Until::Lsn(lsn)) => Some(lsn),
            None => None,
        };
    }
    // A position of ours counts on the same system and timeline only; elsewhere it could be above the slot's, and the server
    // would skip what lies between without a word.
    let confirmed = *channels.confirmed.borrow();
    let start = match confirmed.generation == history.generation {
        true => confirmed.lsn.lsn(),
        false => Lsn::ZERO,
    };
    let version = walsender.server_version();
    let copy = walsender.start_replication(&intake.slot, start, &intake.publication).await?;
    preflight::check_walsender(&sql, copy.backend_pid).await?;
    let session = Session { generation: history.generation, walsender_pid: copy.backend_pid, until: history.until };
    info!(
        slot = %intake.slot, publication = %intake.publication, server_version = version,
        system = %system.system_id, timeline = system.timeline, start = %start, walsender = copy.backend_pid,
        "streaming"
    );
    // A relay that is gone is noticed by whoever sends next.
    let _ = channels.messages.send(Message::Session(session)).await;
    Ok(Open {
        stream: Stream::new(copy.socket, copy.buffer),
        assembler: Assembler::new(intake.mapping.clone()),
        session,
        facts,
    })
}

/// The preflight: logs each finding; the first fatal one is the error.
pub(super) async fn check(intake: &Intake, sql: &Client) -> Result<Facts, Error> {
    let expectation = preflight::Expectation {
        slot: intake.slot.clone(),
        publication: intake.publication.clone(),
        mapping: intake.mapping.clone(),
    };
    let report = preflight::preflight(sql, &expectation).await.map_err(Error::sql)?;
    report.into_facts()
}
