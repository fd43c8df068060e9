//! Looking for held tasks whose time has come.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::history::UnderWay;
use super::line::ended;
use super::round::fence;
use super::{Gone, News, Running};
use crate::backoff::Backoff;
use crate::hold::{self, Batch, Released};
use crate::intake::Session;
use crate::replication::{Error, Policy};
use crate::units::BackoffRange;

/// What others do to the hold table (an operator's retry, say) is noticed so soon.
const POLL: Duration = Duration::from_secs(1);
/// Released tasks that are under way at a time.
const UNDER_WAY: usize = 4_096;
/// Tasks of one look.
const LOOK_TASKS: usize = 1_024;
/// Pauses between the tasks that try whether a sink is back. Short enough that it is noticed within five seconds.
const PROBE: BackoffRange = BackoffRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(3),
};

/// A sink that goes away again so soon was not really back.
const STEADY: Duration = Duration::from_secs(5);
/// Rows that are being cancelled are left out of the looks of the next second; where there are many, for longer, by so
/// much for each.
const PASS_OVER_MORE: Duration = Duration::from_micros(100);

/// Rows that are being cancelled by a transaction which is still open. Each look would find them first, and, where they are
/// many, nothing else.
#[derive(Debug)]
pub(super) struct PassedOver {
    rows: Vec<i64>,
    until: Instant,
}

impl PassedOver {
    pub(super) fn new() -> PassedOver {
        PassedOver {
            rows: Vec::new(),
            until: Instant::now(),
        }
    }

    fn add(&mut self, mut rows: Vec<i64>, now: Instant) {
        if rows.is_empty() {
            return;
        }
        self.rows.append(&mut rows);
        let count = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.until = now + POLL + PASS_OVER_MORE * count;
    }

    /// Those that are to be left out now.
    fn rows(&mut self, now: Instant) -> &[i64] {
        if self.until <= now {
            self.rows.clear();
        }
        &self.rows
    }
}

/// When and how to try a sink that is away.
#[derive(Debug)]
pub(super) struct Probe {
    next: Instant,
    backoff: Backoff,
    last_away: Instant,
}

impl Probe {
    pub(super) fn new() -> Probe {
        let now = Instant::now();
        Probe {
            next: now,
            backoff: Backoff::new(PROBE),
            last_away: now,
        }
    }

    /// Whether to try now.
    fn is_due(&mut self, now: Instant) -> bool {
        if now.duration_since(self.last_away) >= STEADY {
            self.backoff.reset();
        }
        self.last_away = now;
        let due = self.next <= now;
        if due {
            self.next = now + self.backoff.next(fastrand::f64());
        }
        due
    }
}

impl Running {
    /// Looks for what is due, and hands it to the relay.
    pub(super) async fn look(&mut self, session: Session) -> Result<(), Gone> {
        let wishes = self.keeper.wishes.borrow().clone();
        if wishes.draining {
            self.next_look = Instant::now() + POLL;
            return Ok(());
        }
        let away = |index: usize| wishes.away.get(index).copied().unwrap_or_default();
        let line = self.keeper.line.clone();
        let due = tokio::select! {
            due = self.due(session, away) => due,
            () = ended(line, session) => {
                self.client = None;
                return Ok(());
            }
        };
        self.tell_lag().await?;
        match due {
            Ok((released, next_look)) => {
                self.next_look = next_look;
                self.trouble.reset();
                if released.is_empty() {
                    return Ok(());
                }
                debug!(tasks = released.len(), "held tasks are due");
                for task in &released {
                    let known = UnderWay::new(&task.task, session.identity);
                    self.under_way.insert(task.hold_id, known);
                    self.bytes += task.task.size();
                }
                self.tell(News::Released(released)).await
            }
            Err(error) if error.policy() == Policy::StandBy => self.not_ours().await,
            Err(error) => self.failed(error, "the hold table cannot be read").await,
        }
    }

    /// What is due, and when to look again.
    async fn due(
        &mut self,
        session: Session,
        away: impl Fn(usize) -> bool,
    ) -> Result<(Vec<Released>, Instant), Error> {
        let (slot, sinks) = (self.keeper.slot.clone(), self.keeper.sinks.clone());
        let now = Instant::now();
        let tasks = UNDER_WAY
            .saturating_sub(self.under_way.len())
            .min(LOOK_TASKS);
        let bytes = self.keeper.release_bytes.saturating_sub(self.bytes);
        if tasks == 0 || bytes == 0 && self.bytes > 0 {
            // What is under way makes room, and then there is a look.
            return Ok((Vec::new(), now + POLL));
        }
        let mut but: Vec<i64> = self.under_way.keys().copied().collect();
        but.extend(self.passed_over.rows(now));
        let batch = |tasks: usize| Batch {
            tasks: tasks as i64,
            bytes: bytes.max(1) as i64,
        };
        let client = self.client().await?;
        let (retained, next_due) = ask(client, &slot, session).await?;
        let mut next = now + next_due.unwrap_or(POLL).min(POLL);
        let names = |these: &dyn Fn(usize) -> bool| -> Vec<&str> {
            let chosen = sinks.iter().enumerate().filter(|(index, _)| these(*index));
            chosen.map(|(_, name)| &**name).collect()
        };
        let due = hold::due(client, &slot, &names(&away), &but, batch(tasks)).await?;
        let mut released = due.released;
        self.retained = retained;
        if released.len() + due.passed_over.len() >= tasks {
            next = now;
        }
        self.passed_over.add(due.passed_over, now);
        for index in (0..sinks.len()).filter(|index| away(*index)) {
            let probe = &mut self.probes[index];
            if probe.is_due(now)
                && let Some(client) = &mut self.client
            {
                let others = names(&|other| other != index);
                let due = hold::due(client, &slot, &others, &but, batch(1)).await?;
                released.extend(due.released);
                self.passed_over.add(due.passed_over, now);
            }
            next = next.min(probe.next);
        }
        Ok((released, next))
    }
}

/// How many bytes of WAL the slot retains, and when the next task is due; if we may ask.
async fn ask(
    client: &mut tokio_postgres::Client,
    slot: &str,
    session: Session,
) -> Result<(u64, Option<Duration>), Error> {
    let failed = |error| Error::sql("asking for held tasks", error);
    let transaction = client.transaction().await.map_err(failed)?;
    let retained = fence(transaction.client(), slot, session).await?;
    let next = hold::next_due(transaction.client(), slot).await?;
    transaction.commit().await.map_err(failed)?;
    Ok((retained, next))
}
