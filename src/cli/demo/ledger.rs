//! Pure: what happened in one act, and what it adds up to. Every figure of the closing table is counted here.

use std::collections::HashMap;
use std::time::Duration;

/// Something that happened. Times count from the start of the act.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// COMMIT returned to the application.
    Committed {
        /// The orders of the transaction that a task was enqueued for.
        orders: Vec<u64>,
        /// Just before COMMIT was sent.
        asked: Duration,
    },
    /// ROLLBACK returned to the application.
    RolledBack {
        /// The orders of the transaction that a task was enqueued for.
        orders: Vec<u64>,
    },
    /// A savepoint with an order and its task was rolled back.
    SavepointUndone {
        /// The order.
        order: u64,
    },
    /// A process of the application was gone right after COMMIT.
    Died,
    /// A task came to the worker's queue.
    Dispatched {
        /// The order that it is about.
        order: u64,
        /// The task's identity.
        id: String,
        /// Its ordering key.
        key: Option<String>,
        /// When.
        at: Duration,
    },
    /// A worker ran a task: it looked for the order.
    Ran {
        /// The order.
        order: u64,
        /// Whether the row was there.
        found: bool,
        /// When the SELECT had returned.
        at: Duration,
    },
    /// The daemon was killed.
    Killed {
        /// When it was gone.
        at: Duration,
    },
    /// A new daemon reads from the slot.
    Back {
        /// When.
        at: Duration,
    },
}

/// What is known of one task, named by its order.
#[derive(Default)]
struct Life {
    fate: Option<Fate>,
    id: Option<String>,
    /// The first time it came to the worker's queue.
    dispatched: Option<Duration>,
    deliveries: u64,
    runs: u64,
    runs_without_row: u64,
    first_run: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Committed { asked: Duration },
    RolledBack,
}

/// All events of one act.
#[derive(Default)]
pub(super) struct Ledger {
    lives: HashMap<u64, Life>,
    transactions_committed: u64,
    transactions_rolled_back: u64,
    savepoints_undone: u64,
    died: u64,
    other_id: u64,
    out_of_order: u64,
    last_of_key: HashMap<String, u64>,
    outages: Vec<Outage>,
}

/// From a kill of the daemon to the time when a new one reads from the slot.
struct Outage {
    from: Duration,
    to: Option<Duration>,
}

/// What an act adds up to. Tasks, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Transactions committed.
    pub(super) transactions_committed: u64,
    /// Transactions rolled back as a whole.
    pub(super) transactions_rolled_back: u64,
    /// Savepoints rolled back inside transactions.
    pub(super) savepoints_undone: u64,
    /// Processes of the application that were gone right after COMMIT.
    pub(super) died: u64,
    /// Enqueued, and committed.
    pub(super) committed: u64,
    /// Enqueued, and rolled back with their transaction or savepoint.
    pub(super) rolled_back: u64,
    /// Times that a worker ran a task.
    pub(super) run: u64,
    /// Runs that found their row.
    pub(super) found: u64,
    /// Runs that found no row, though it was committed in the end.
    pub(super) not_found: u64,
    /// Runs for a row that was rolled back.
    pub(super) phantom: u64,
    /// Runs that found no row while the transaction was still open; they become one of the two above.
    pub(super) undecided: u64,
    /// Committed, and never run. Until the act has ended: not yet run.
    pub(super) lost: u64,
    /// Deliveries beyond a task's first.
    pub(super) twice: u64,
    /// Of them, those that came with another id than the first.
    pub(super) other_id: u64,
    /// First deliveries that came after a later task of their key.
    pub(super) out_of_order: u64,
    /// Keys that were seen.
    pub(super) keys: u64,
    /// From COMMIT being sent to the task in the worker's queue; ascending. Without those tasks that waited while
    /// the daemon was down.
    pub(super) latencies: Vec<Duration>,
    /// The same, of the tasks that waited while the daemon was down; ascending.
    pub(super) waited: Vec<Duration>,
}

impl Ledger {
    /// Writes an event down. Returns it in words where a spectator may want to read it.
    pub(super) fn record(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Committed { orders, asked } => {
                self.transactions_committed += 1;
                let mut words = None;
                for order in orders {
                    let life = self.lives.entry(order).or_default();
                    life.fate = Some(Fate::Committed { asked });
                    if life.runs_without_row > 0 {
                        words = life.first_run.map(|run| too_early(order, run, asked));
                    }
                }
                words
            }
            Event::RolledBack { orders } => {
                self.transactions_rolled_back += 1;
                let mut words = None;
                for order in orders {
                    words = self.undo(order).or(words);
                }
                words
            }
            Event::SavepointUndone { order } => {
                self.savepoints_undone += 1;
                self.undo(order)
            }
            Event::Died => {
                self.died += 1;
                None
            }
            Event::Dispatched { order, id, key, at } => {
                self.dispatched(order, id, key, at);
                None
            }
            Event::Ran { order, found, at } => self.ran(order, found, at),
            Event::Killed { at } => {
                self.outages.push(Outage { from: at, to: None });
                Some("the daemon: kill -9, and started again".to_owned())
            }
            Event::Back { at } => {
                if let Some(outage) = self.outages.last_mut() {
                    outage.to = Some(at);
                }
                None
            }
        }
    }

    fn undo(&mut self, order: u64) -> Option<String> {
        let life = self.lives.entry(order).or_default();
        life.fate = Some(Fate::RolledBack);
        (life.runs > 0).then(|| format!("order {order}: run, then rolled back: it never existed"))
    }

    fn dispatched(&mut self, order: u64, id: String, key: Option<String>, at: Duration) {
        let life = self.lives.entry(order).or_default();
        life.deliveries += 1;
        if life.deliveries > 1 {
            self.other_id += u64::from(life.id.as_ref() != Some(&id));
            return;
        }
        life.id = Some(id);
        life.dispatched = Some(at);
        if let Some(key) = key {
            let last = self.last_of_key.entry(key).or_insert(order);
            self.out_of_order += u64::from(order < *last);
            *last = order.max(*last);
        }
    }

    fn ran(&mut self, order: u64, found: bool, at: Duration) -> Option<String> {
        let life = self.lives.entry(order).or_default();
        life.runs += 1;
        life.runs_without_row += u64::from(!found);
        life.first_run.get_or_insert(at);
        match life.fate {
            Some(Fate::RolledBack) => Some(format!("order {order}: run, but it was rolled back")),
            Some(Fate::Committed { asked }) if !found => Some(too_early(order, at, asked)),
            Some(Fate::Committed { asked }) if life.runs == 1 => Some(format!(
                "order {order}: the worker had read its row {} after COMMIT was sent",
                millis(at.saturating_sub(asked))
            )),
            Some(Fate::Committed { .. }) => Some(format!("order {order}: delivered again")),
            None => None,
        }
    }

    /// What it adds up to so far.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            transactions_committed: self.transactions_committed,
            transactions_rolled_back: self.transactions_rolled_back,
            savepoints_undone: self.savepoints_undone,
            died: self.died,
            other_id: self.other_id,
            out_of_order: self.out_of_order,
            keys: self.last_of_key.len() as u64,
            ..Counts::default()
        };
        for life in self.lives.values() {
            counts.run += life.runs;
            counts.twice += life.deliveries.saturating_sub(1);
            match life.fate {
                Some(Fate::Committed { asked }) => {
                    counts.committed += 1;
                    counts.not_found += life.runs_without_row;
                    counts.found += life.runs - life.runs_without_row;
                    counts.lost += u64::from(life.runs == 0);
                    if let Some(at) = life.dispatched {
                        let latency = at.saturating_sub(asked);
                        match self.outages.iter().any(|outage| outage.touches(asked, at)) {
                            true => counts.waited.push(latency),
                            false => counts.latencies.push(latency),
                        }
                    }
                }
                Some(Fate::RolledBack) => {
                    counts.rolled_back += 1;
                    counts.phantom += life.runs;
                }
                None => {
                    counts.undecided += life.runs_without_row;
                    counts.found += life.runs - life.runs_without_row;
                }
            }
        }
        counts.latencies.sort_unstable();
        counts.waited.sort_unstable();
        counts
    }
}

impl Outage {
    /// Whether a task that waited from one time to the other waited for this outage.
    fn touches(&self, from: Duration, to: Duration) -> bool {
        self.from <= to && self.to.is_none_or(|end| from <= end)
    }
}

impl Counts {
    /// The value that so many per cent of the latencies do not exceed (nearest rank); `None` where there are none.
    pub(super) fn percentile(&self, percent: u32) -> Option<Duration> {
        let rank = (self.latencies.len() * percent as usize).div_ceil(100);
        self.latencies.get(rank.max(1) - 1).copied()
    }
}

fn too_early(order: u64, run: Duration, asked: Duration) -> String {
    match asked.checked_sub(run) {
        Some(early) => format!(
            "order {order}: no such row; it was committed {} after the run",
            millis(early)
        ),
        None => format!("order {order}: no such row; its COMMIT had only just been sent"),
    }
}

/// A duration in words that fit beside a number.
pub(super) fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1_000.0;
    match millis {
        ..10.0 => format!("{millis:.1} ms"),
        ..1_000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1_000.0),
    }
}

#[cfg(test)]
mod tests;
