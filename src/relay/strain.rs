//! Whether what waits is to go to the hold: there is no room for more, the slot lags, or the daemon drains.

use std::time::Duration;

use tokio::time::Instant;

/// A budget that is used up for so long is not just busy: some sink takes nothing, and others wait for it.
const FULL_FOR: Duration = Duration::from_millis(250);

/// How long there has been no room.
#[derive(Debug, Default)]
pub(super) struct Strain {
    full_since: Option<Instant>,
    /// The slot lags behind by more than it may.
    lags: bool,
    strained: bool,
}

impl Strain {
    /// What there is now; says whether that is a strain.
    pub(super) fn look(&mut self, room: bool, draining: bool) -> bool {
        let now = Instant::now();
        self.full_since = match room {
            true => None,
            false => self.full_since.or(Some(now)),
        };
        let full = self.full_since.is_some_and(|since| now >= since + FULL_FOR);
        self.strained = full || draining || self.lags;
        self.strained
    }

    /// The slot holds back more, or less, than it may.
    pub(super) fn set_lags(&mut self, lags: bool) {
        self.lags = lags;
    }

    /// When to look again.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.full_since.filter(|_| !self.strained)?;
        Some(since + FULL_FOR)
    }
}
