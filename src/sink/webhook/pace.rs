//! Pure: how many tasks are good for one batch, where a place takes its time with each.
//!
//! What became of a batch is only known at its end: until then its tasks are not settled, a graceful stop has to wait for
//! it, and a crash repeats them. So a batch is not to take long.

use std::time::Duration;

/// A batch should take no longer.
const AT_MOST: Duration = Duration::from_millis(200);
/// More than a lane hands over.
const MOST: usize = 4096;

/// Follows how fast a place is.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    least: usize,
    most: usize,
}

impl Pace {
    /// A place that does `least` tasks side by side, and so takes as many however long they take.
    pub(super) fn new(least: usize) -> Pace {
        Pace { least, most: least }
    }

    /// Tasks of the next batch, at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// It does nothing: what is handed to it will lie there for as long as it takes to see that.
    pub(super) fn away(&mut self) {
        self.most = self.least;
    }

    /// A batch of so many tasks took so long.
    pub(super) fn took(&mut self, tasks: usize, time: Duration) {
        if time > AT_MOST {
            let part = AT_MOST.as_secs_f64() / time.as_secs_f64();
            self.most = (tasks as f64 * part) as usize;
        } else if time < AT_MOST / 2 && tasks >= self.most {
            self.most = self.most.saturating_mul(2);
        }
        self.most = self.most.min(MOST).max(self.least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_place() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(4);
        assert_eq!(pace.most(), 4);
        for expected in [8, 16, 32] {
            pace.took(pace.most(), ms(10));
            assert_eq!(pace.most(), expected);
        }
        pace.took(5, ms(10));
        assert_eq!(pace.most(), 32, "a small batch tells nothing");
        pace.took(32, ms(150));
        assert_eq!(pace.most(), 32);
        pace.took(32, ms(800));
        assert_eq!(pace.most(), 8);
        pace.took(8, Duration::from_secs(3600));
        assert_eq!(pace.most(), 4);
        for _ in 0..20 {
            pace.took(usize::MAX, Duration::ZERO);
        }
        assert_eq!(pace.most(), MOST);
        pace.away();
        assert_eq!(pace.most(), 4);
    }
}
