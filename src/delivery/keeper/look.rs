//! Looking for held tasks whose time has come.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::line::ended;
use super::round::fence;
use super::{Gone, News, Running};
use crate::backoff::Backoff;
use crate::hold::{self, Place, Queue, Released};
use crate::intake::Session;
use crate::replication::{self, Error, Policy};
use crate::units::BackoffRange;

/// What others do to the hold table (an operator's retry, say) is noticed so soon.
const POLL: Duration = Duration::from_secs(1);
/// Queues that are looked after at a time. While there is much to do, they wait for their turn: what comes for their keys
/// is held meanwhile, and most of them will be touched again.
const LOOK_QUEUES: usize = 10_000;
/// Pauses between the tasks that try whether a sink is back. Short enough that it is noticed within five seconds.
const PROBE: BackoffRange = BackoffRange {
    min: Duration::from_millis(200),
    max: Duration::from_secs(1),
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
    fn rows(&mut self, now: Instant) -> impl Iterator<Item = i64> {
        if self.until <= now {
            self.rows.clear();
        }
        self.rows.iter().copied()
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
            Ok(found) => {
                self.trouble.reset();
                self.found(found, session).await
            }
            Err(error) if error.policy() == Policy::StandBy => self.not_ours().await,
            Err(error) => self.failed(error, "the hold table cannot be read").await,
        }
    }

    /// A look is over: what it has found goes to the relay.
    async fn found(&mut self, found: Found, session: Session) -> Result<(), Gone> {
        self.next_look = found.next;
        if found.started_over {
            self.starts_over = Instant::now() + POLL;
        }
        for (sink, place) in found.places {
            self.under_way.came_to(sink, place);
        }
        self.under_way.looked_after(&found.looked_after);
        let freed: Vec<(usize, u64)> = found
            .empty
            .iter()
            .filter_map(|queue| {
                let sink = self
                    .keeper
                    .sinks
                    .iter()
                    .position(|name| *name == queue.sink)?;
                Some((sink, self.keeper.hasher.hash(queue.key.as_bytes())))
            })
            .collect();
        if !freed.is_empty() {
            self.tell(News::Freed(freed)).await?;
        }
        if found.released.is_empty() {
            return Ok(());
        }
        debug!(tasks = found.released.len(), "held tasks are due");
        let mut tasks = Vec::with_capacity(found.released.len());
        for (sink, task) in found.released {
            self.under_way.start(sink, &task, session.identity);
            tasks.push(task);
        }
        self.tell(News::Released(tasks)).await
    }

    /// Looks for what is due, and after the queues from which rows were taken.
    async fn due(
        &mut self,
        session: Session,
        away: impl Fn(usize) -> bool,
    ) -> Result<Found, Error> {
        let failed = |error| Error::sql("asking for held tasks", error);
        let now = Instant::now();
        let mut found = Found {
            released: Vec::new(),
            places: Vec::new(),
            started_over: self.starts_over <= now,
            looked_after: Vec::new(),
            empty: Vec::new(),
            next: now + POLL,
        };
        self.client().await?;
        let Running {
            client: Some(client),
            keeper,
            under_way,
            passed_over,
            probes,
            ..
        } = self
        else {
            return Err(Error::closed(replication::Place::Sql));
        };
        let transaction = client.transaction().await.map_err(failed)?;
        let db = transaction.client();
        let retained = fence(db, &keeper.slot, session).await?;
        let mut is_busy = false;
        for outlook in hold::outlook(db, &keeper.slot).await? {
            found.next = found.next.min(now + outlook.next.unwrap_or(POLL));
            if !outlook.is_due {
                continue;
            }
            let known = keeper.sinks.iter().position(|name| *name == outlook.sink);
            let sink = known.unwrap_or(keeper.sinks.len());
            let Some(mut batch) = under_way.room(sink) else {
                // What is under way makes room, and then there is a look.
                is_busy = true;
                continue;
            };
            let is_away = away(sink);
            if is_away {
                let probe = &mut probes[sink];
                let is_due = probe.is_due(now);
                found.next = found.next.min(probe.next);
                if !is_due {
                    continue;
                }
                batch.tasks = 1;
            }
            let after = match found.started_over || is_away {
                true => Place::START,
                false => under_way.place(sink),
            };
            let but: Vec<i64> = match after == Place::START {
                true => {
                    let but = under_way.rows(sink).chain(passed_over.rows(now));
                    but.collect()
                }
                false => Vec::new(),
            };
            let mut due = hold::due(db, &keeper.slot, &outlook.sink, after, &but, batch).await?;
            if !is_away {
                if due.found as i64 >= batch.tasks {
                    is_busy = true;
                    found.next = now;
                }
                found.places.extend(due.last.map(|place| (sink, place)));
            }
            under_way.leave_out(&mut due.released);
            let released = due.released.into_iter().map(|task| (sink, task));
            found.released.extend(released);
            passed_over.add(due.passed_over, now);
        }
        if !is_busy || found.started_over {
            found.looked_after = under_way.touched(LOOK_QUEUES);
            let queues = found.looked_after.clone();
            let settled = hold::settle_queues(db, &keeper.slot, queues).await?;
            found.empty = settled.empty;
            if settled.moved > 0 || found.looked_after.len() == LOOK_QUEUES {
                found.next = now;
            }
        }
        transaction.commit().await.map_err(failed)?;
        self.retained = retained;
        Ok(found)
    }
}

/// What a look has found.
struct Found {
    /// What is due, with the index of its sink.
    released: Vec<(usize, Released)>,
    /// How far the look has come, by the index of the sink.
    places: Vec<(usize, Place)>,
    /// It has looked from the start.
    started_over: bool,
    /// Queues that it has looked after.
    looked_after: Vec<Queue>,
    /// Those of them that are empty.
    empty: Vec<Queue>,
    /// When to look again.
    next: Instant,
}
