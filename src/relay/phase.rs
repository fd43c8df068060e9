//! Whether the daemon runs or drains, and how it ends.

use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::Strain;
use crate::intake::Halt;
use crate::replication::Stop;

/// How long a graceful stop may take to deliver what is in flight. Below the ten seconds that container runtimes give.
pub(super) const DRAIN_WITHIN: Duration = Duration::from_secs(8);

/// So long before that, what is not in a sink's hands goes to the hold, and the sinks answer for what they have.
const LEAVES_BEFORE: Duration = Duration::from_secs(4);
/// So long before that, what they have not answered for goes there, too. What is left is for writing that down: a transaction
/// of which one task is left comes again, all of it.
const ABANDONS_BEFORE: Duration = Duration::from_secs(1);

/// How the daemon ends.
#[derive(Debug)]
pub enum End {
    /// As asked, by a signal or by `--until`.
    Clean,
    /// Only the operator can help.
    Halted(Halt),
}

impl End {
    pub(super) fn halted(stop: Stop, words: impl Into<String>) -> End {
        End::Halted(Halt {
            stop,
            words: words.into(),
        })
    }

    pub(super) fn part_died() -> End {
        End::halted(
            Stop::Runtime,
            "a part of the daemon has ended unexpectedly; see the log above",
        )
    }
}

/// What the daemon is about.
#[derive(Debug)]
pub(super) enum Phase {
    Running,
    /// Nothing new begins; what is in flight is delivered, until the deadline.
    Draining {
        deadline: Instant,
        end: End,
    },
}

impl Phase {
    pub(super) fn is_draining(&self) -> bool {
        matches!(self, Phase::Draining { .. })
    }

    /// When draining is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Phase::Draining { deadline, .. } => Some(*deadline),
            Phase::Running => None,
        }
    }

    /// While draining: what strain that is now, and when it becomes more.
    pub(super) fn strain(&self, now: Instant) -> Option<(Strain, Option<Instant>)> {
        let deadline = self.deadline()?;
        let steps = [
            (Strain::Drains, deadline - LEAVES_BEFORE),
            (Strain::Leaves, deadline - ABANDONS_BEFORE),
        ];
        let step = steps.into_iter().find(|(_, until)| now < *until);
        Some(match step {
            Some((strain, until)) => (strain, Some(until)),
            None => (Strain::Abandons, None),
        })
    }

    /// Begins to drain. What was there first decides how the daemon ends, but an error is not hidden by a signal.
    pub(super) fn drain(&mut self, end: End) {
        match self {
            Phase::Running => {
                let deadline = Instant::now() + DRAIN_WITHIN;
                *self = Phase::Draining { deadline, end };
            }
            Phase::Draining {
                end: first @ End::Clean,
                ..
            } => *first = end,
            Phase::Draining { .. } => {}
        }
    }

    /// How it ends, once drained.
    pub(super) fn take_end(&mut self) -> End {
        match std::mem::replace(self, Phase::Running) {
            Phase::Draining { end, .. } => end,
            Phase::Running => End::Clean,
        }
    }
}
