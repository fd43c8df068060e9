//! What presses the daemon: there is no room for more, the slot lags, or the daemon drains.

use std::time::Duration;

use tokio::time::Instant;

use super::phase::Phase;
use crate::delivery::Strain;

/// A budget that is used up for so long is not just busy: some sink takes nothing, and others wait for it.
const FULL_FOR: Duration = Duration::from_millis(250);

/// Measures the strain.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// How long there has been no room.
    full_since: Option<Instant>,
    /// The slot lags behind by more than it may.
    lags: bool,
    strain: Strain,
    /// While the daemon drains: when the strain becomes more.
    more_at: Option<Instant>,
}

impl Gauge {
    /// What there is now, and what strain that is.
    pub(super) fn look(&mut self, room: bool, phase: &Phase) -> Strain {
        let now = Instant::now();
        self.full_since = match room {
            true => None,
            false => self.full_since.or(Some(now)),
        };
        let full = self.full_since.is_some_and(|since| now >= since + FULL_FOR);
        (self.strain, self.more_at) = match phase.strain(now) {
            Some(step) => step,
            None if full || self.lags => (Strain::Short, None),
            None => (Strain::None, None),
        };
        self.strain
    }

    /// The slot holds back more, or less, than it may.
    pub(super) fn set_lags(&mut self, lags: bool) {
        self.lags = lags;
    }

    /// When to look again.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.strain {
            Strain::None => self.full_since.map(|since| since + FULL_FOR),
            _ => self.more_at,
        }
    }
}
