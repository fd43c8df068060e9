//! Floor 1, pure: pauses that grow, with jitter. Randomness is passed in.

use std::time::Duration;

use crate::units::BackoffRange;

/// A pause that doubles with each attempt from the range's shortest to its longest.
#[derive(Clone, Debug)]
pub struct Backoff {
    range: BackoffRange,
    attempts: u32,
}

impl Backoff {
    /// The next pause is the shortest.
    pub fn new(range: BackoffRange) -> Backoff {
        Backoff { range, attempts: 0 }
    }

    /// As after so many attempts.
    pub fn resume(range: BackoffRange, attempts: u32) -> Backoff {
        Backoff { range, attempts }
    }

    /// Counts an attempt and says how long to wait before the next. `random` is in `0.0..1.0`; it spreads the pause
    /// between half and the whole of its nominal length, so that many do not come back at once.
    pub fn next(&mut self, random: f64) -> Duration {
        let doubled = self
            .range
            .min
            .saturating_mul(1u32.checked_shl(self.attempts.min(31)).unwrap_or(u32::MAX));
        self.attempts = self.attempts.saturating_add(1);
        doubled
            .min(self.range.max)
            .mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Attempts counted since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// It worked: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_starts_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(BackoffRange {
            min: ms(100),
            max: ms(1000),
        });
        let pauses: Vec<_> = (0..6).map(|_| backoff.next(1.0)).collect();
        assert_eq!(
            pauses,
            [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]
        );
        assert_eq!(backoff.attempts(), 6);
        assert_eq!(backoff.next(0.0), ms(500));
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= ms(1000));
        }
        backoff.reset();
        assert_eq!(backoff.next(0.0), ms(50));
    }
}
