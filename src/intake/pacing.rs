//! Pure: when the reader pauses.
//!
//! A walsender sends each message on its own, and each wakes the reader, which takes CPU from both. Under load a reader
//! that pauses a moment after a short read finds hundreds of messages at the next one, and the walsender is not
//! interrupted meanwhile: 2 to 3.5 times the rate, for a tenth of the CPU. At low rates the pause would be pure latency,
//! so it is there only while bytes come fast.

use std::time::{Duration, Instant};

/// How long the pause is. tokio's timer makes a millisecond of it, and then most of the gain is gone: the reader's
/// thread really sleeps.
pub const PAUSE: Duration = Duration::from_micros(200);
/// A read of this size or more is not short: the socket's buffer holds more, and a pause would only wait.
const SHORT: usize = 64 << 10;
/// The time over which the rate is averaged.
const WINDOW: Duration = Duration::from_millis(2);
/// Pause above this rate: bytes in a window. 32 KiB in 2 ms are about 40,000 small transactions a second, when messages
/// arrive more often than the reader can sleep between them.
const BUSY: f64 = 32.0 * 1024.0;

/// Decides after each read.
#[derive(Debug)]
pub struct Pacing {
    /// Bytes in the window, decaying exponentially.
    recent: f64,
    last: Instant,
}

impl Pacing {
    /// Begins at rest.
    pub fn new(now: Instant) -> Pacing {
        Pacing {
            recent: 0.0,
            last: now,
        }
    }

    /// Takes note of a read of `bytes`; the pause to make before the next one, if any.
    pub fn after_read(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        self.recent = self.recent * (-elapsed / WINDOW.as_secs_f64()).exp() + bytes as f64;
        (bytes < SHORT && self.recent > BUSY).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of `bytes` arrive every `gap`, for a second; a read takes all that have arrived since the last one. Says
    /// how many reads were followed by a pause.
    fn pauses(bytes: usize, gap: Duration) -> (usize, usize) {
        let start = Instant::now();
        let mut pacing = Pacing::new(start);
        let (mut now, mut taken, mut reads, mut paused) = (start, 0, 0, 0);
        while now < start + Duration::from_secs(1) {
            now = now.max(start + gap * (taken + 1));
            let arrived = ((now - start).as_nanos() / gap.as_nanos()) as u32;
            let read = bytes * (arrived - taken) as usize;
            taken = arrived;
            reads += 1;
            if let Some(pause) = pacing.after_read(read, now) {
                paused += 1;
                now += pause;
            }
        }
        (paused, reads)
    }

    #[test]
    fn pauses_under_load_only() {
        for (bytes, gap_us, busy) in [
            (1_000, 10_000, false), // 100 transactions a second
            (1_000, 1_000, false),
            (1_000, 200, false), // 5,000 a second, one by one
            (500, 10, true),     // message after message
            (30_000, 300, true),
            (100_000, 300, false), // large reads: nothing to wait for
        ] {
            let (paused, reads) = pauses(bytes, Duration::from_micros(gap_us));
            let share = paused as f64 / reads as f64;
            assert_eq!(
                share > 0.5,
                busy,
                "{bytes} bytes every {gap_us} µs: {paused} pauses in {reads} reads"
            );
            assert!(
                busy || paused == 0,
                "{bytes} bytes every {gap_us} µs: {paused} pauses in {reads} reads"
            );
        }
    }
}
