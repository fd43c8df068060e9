//! Whether the daemon runs or drains, and how it ends.

use std::time::Duration;

use tokio::time::Instant;

use crate::intake::Halt;
use crate::replication::Stop;

/// How long a graceful stop may take to deliver what is in flight. Below the ten seconds that container runtimes give.
pub(super) const DRAIN_WITHIN: Duration = Duration::from_secs(8);

/// So long before that, what is not in a sink's hands goes to the hold. Meanwhile the sinks answer for what they have, and
/// all is written down: else some of it would come again.
const LEAVES_BEFORE: Duration = Duration::from_secs(4);

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

    /// While draining: when nothing more is handed to a sink.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        self.deadline().map(|deadline| deadline - LEAVES_BEFORE)
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
