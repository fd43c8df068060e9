//! Opening a session: preflight, walsender, identity, START_REPLICATION.

use std::collections::HashSet;

use tokio_postgres::Client;
use tracing::{info, warn};

use super::heal::{self, Healing, Rows, Standing};
use super::replicas;
use super::{Channels, Identity, Intake, Session, Until};
use crate::hold;
use crate::outbox::{Assembler, Retention};
use crate::pg::Lsn;
use crate::preflight::{self, Class, Expectation, Facts, Finding, Severity};
use crate::replication::stream::Stream;
use crate::replication::{
    APPLICATION_NAME, Error, Place, Policy, Socket, Stop, Walsender, connect_sql,
};

/// What is remembered from session to session.
#[derive(Debug, Default)]
pub(super) struct History {
    /// System identifier and timeline of the last session.
    identity: Option<Identity>,
    generation: u64,
    sessions: u64,
    /// `--until`, once it is known as a position.
    until: Option<Lsn>,
    /// Where the slot stood when the last session began.
    stood: Lsn,
    /// Since then another daemon has moved it.
    overtaken: bool,
    /// The generation in which was told what stays in the outbox of another history.
    left_over: u64,
    /// The slot has failed us, whatever the catalogs say.
    pub lost: bool,
    /// The last healing of the slot.
    pub healing: Option<Healing>,
    /// Warnings that are in the log already.
    pub warned: Warned,
}

/// Warnings that are in the log already: what stays as it is, is told once.
#[derive(Clone, Debug, Default)]
pub(super) struct Warned(HashSet<String>);

/// A session that streams.
pub(super) struct Open<S> {
    pub stream: Stream<S>,
    pub assembler: Assembler,
    pub session: Session,
    /// What goes before the stream: the rows that are older than a slot that was made again.
    pub rows: Option<Rows>,
    /// Up to where something was received before the stream begins.
    pub received: Lsn,
}

/// Opens a session; says also what the preflight has seen.
pub(super) async fn open(
    intake: &Intake,
    history: &mut History,
    channels: &Channels,
) -> Result<(Open<Socket>, Facts), Error> {
    let sql = connect_sql(&intake.target, APPLICATION_NAME).await?;
    let (facts, standing) = heal::examine(intake, &sql, history, &channels.confirmed).await?;
    let mut walsender = match Walsender::connect(&intake.target, APPLICATION_NAME).await {
        Ok(walsender) => walsender,
        Err(refusal) => return Err(about_rights(intake, &sql, refusal).await),
    };
    let system = walsender.identify_system().await?;
    let identity = Identity {
        system_id: system.system_id,
        timeline: system.timeline,
    };
    let before = history.generation;
    if history.identity.as_ref() != Some(&identity) {
        if history.identity.is_some() {
            warn!(
                system = %system.system_id, timeline = system.timeline,
                "another server, or another timeline: positions from before mean nothing here; starting from the slot's own"
            );
        }
        history.identity = Some(identity);
        history.generation += 1;
        replicas::look(intake);
    } else if history.sessions > 0
        && !history.overtaken
        && slot_position(&facts) > history.stood.max(channels.confirmed.borrow().lsn.lsn())
    {
        // What we know of transactions is stale: one that was cut in the middle was taken whole by another, and will not
        // come again.
        warn!(
            slot = %intake.slot,
            "the slot stands further than we confirmed: another daemon has read on meanwhile; starting from the slot's own position"
        );
        history.overtaken = true;
        history.generation += 1;
    }
    let healed = match standing {
        Standing::Heal(cause) => {
            Some(heal::heal(intake, &sql, &mut walsender, &system, cause).await?)
        }
        Standing::Blank => {
            heal::note_beginning(intake, &sql, &system, slot_position(&facts)).await?;
            None
        }
        Standing::Sound => None,
    };
    if healed.is_some() {
        // What we know of transactions is of another slot.
        history.generation += u64::from(history.generation == before);
        history.lost = false;
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
        // After a crash the server may have forgotten what was confirmed; what we wrote down, it has not.
        false => checkpoint(intake, &sql, identity, system.xlog_pos).await?,
    };
    let version = walsender.server_version();
    let started = walsender
        .start_replication(&intake.slot, start, &intake.publication)
        .await;
    let copy = match started {
        Ok(copy) => copy,
        Err(refusal) => return Err(about_rights(intake, &sql, refusal).await),
    };
    let pid = i32::try_from(copy.backend_pid).unwrap_or_default();
    let findings = preflight::check_walsender(&sql, &expectation(intake), pid).await;
    let findings = findings.map_err(|error| Error::sql("the walsender's state", error))?;
    refuse(findings, &mut history.warned)?;
    if healed.is_none() {
        heal::look_again(intake, &sql, history, &channels.confirmed).await?;
    }
    history.sessions += 1;
    history.stood = match &healed {
        Some(healed) => healed.consistent_point,
        None => slot_position(&facts),
    };
    if healed.is_some() {
        let (at, confirmed) = (history.stood, channels.confirmed.clone());
        history.healing = Some(Healing::watch(intake, history.generation, at, confirmed));
    }
    history.overtaken = false;
    if !intake.heal && history.left_over != history.generation {
        let (generation, confirmed) = (history.generation, channels.confirmed.clone());
        heal::tell_leftover(intake, &sql, identity, generation, confirmed).await?;
        history.left_over = history.generation;
    }
    let session = Session {
        number: history.sessions,
        generation: history.generation,
        identity,
        walsender_pid: copy.backend_pid,
        start,
        until: history.until,
    };
    info!(
        slot = %intake.slot, publication = %intake.publication, server_version = version,
        system = %system.system_id, timeline = system.timeline, start = %start, walsender = copy.backend_pid,
        "streaming"
    );
    let open = Open {
        stream: Stream::new(copy.socket, copy.buffer),
        assembler: Assembler::new(intake.columns.clone()),
        session,
        received: healed
            .as_ref()
            .map_or(Lsn::ZERO, |healed| healed.consistent_point),
        rows: healed.map(|healed| healed.rows),
    };
    Ok((open, facts))
}

/// Where our own checkpoint says that everything is settled. On another server, or in another history of it, the same LSN
/// is another place. And one beyond what the server has written is not ours: the server would skip what is still to come.
async fn checkpoint(
    intake: &Intake,
    sql: &Client,
    identity: Identity,
    written: Lsn,
) -> Result<Lsn, Error> {
    let ours = hold::read_checkpoint(sql, &intake.slot)
        .await?
        .filter(|it| it.system_id == identity.system_id && it.timeline == identity.timeline);
    match ours {
        Some(ours) if ours.lsn > written => {
            warn!(
                slot = %intake.slot, checkpoint = %ours.lsn, %written,
                "the row in aftercommit.checkpoint is beyond what the server has written: somebody has changed it; \
                 starting from the slot's own position"
            );
            Ok(Lsn::ZERO)
        }
        ours => Ok(ours.map_or(Lsn::ZERO, |it| it.lsn)),
    }
}

/// A walsender that was refused for want of a right: with what the catalogs say that our role lacks, and the SQL for it.
async fn about_rights(intake: &Intake, sql: &Client, refusal: Error) -> Error {
    if !matches!(refusal.sqlstate(), Some("42501" | "28000")) {
        return refusal;
    }
    let expected = Expectation {
        role: Some(intake.target.user().to_owned()),
        ..expectation(intake)
    };
    let facts = preflight::facts(sql, &expected).await;
    match facts.ok().as_ref().and_then(preflight::judge_role) {
        Some(finding) => refusal.remedied(format!("By the catalogs, {finding}")),
        None => refusal,
    }
}

/// Up to where the slot is confirmed.
fn slot_position(facts: &Facts) -> Lsn {
    let slot = facts.slot.as_ref();
    let position = slot.and_then(|slot| slot.confirmed_flush_lsn.as_deref()?.parse().ok());
    position.unwrap_or_default()
}

/// The preflight: logs each new warning; the fatal findings are the error.
pub(super) async fn check(
    intake: &Intake,
    sql: &Client,
    warned: &mut Warned,
) -> Result<Facts, Error> {
    let report = preflight::preflight(sql, &expectation(intake)).await;
    let report = report.map_err(|error| Error::sql("the preflight", error))?;
    refuse(report.findings, warned)?;
    Ok(report.facts)
}

pub(super) fn expectation(intake: &Intake) -> Expectation {
    Expectation {
        deletes: intake.retention == Retention::Delete,
        partitions: intake.retention == Retention::Partition,
        ..Expectation::new(&intake.columns, &intake.slot, &intake.publication)
    }
}

/// New warnings go to the log; fatal findings, told together, are the error.
pub(super) fn refuse(findings: Vec<Finding>, warned: &mut Warned) -> Result<(), Error> {
    let Some(class) = preflight::worst(&findings) else {
        for words in findings.iter().map(Finding::to_string) {
            if !warned.0.contains(&words) {
                warn!("{words}");
                warned.0.insert(words);
            }
        }
        return Ok(());
    };
    let fatal = findings
        .iter()
        .filter(|finding| finding.severity != Severity::Warning);
    let words = fatal.map(Finding::to_string).collect::<Vec<_>>().join("\n");
    let policy = match class {
        Class::Temporary => Policy::Reconnect,
        Class::Configuration => Policy::Stop(Stop::Configuration),
        Class::SlotLost => Policy::Stop(Stop::SlotLost),
        Class::PublicationLost => Policy::Stop(Stop::PublicationLost),
    };
    Err(Error::judged(Place::Preflight, policy, words))
}
