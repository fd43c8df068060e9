//! Floor 0: named points at which a test lets the daemon die, as by kill -9.
//!
//! `AFTERCOMMIT_FAILPOINT=acknowledged:3` ends the process when it reaches this point for the third time. It does so by
//! [`std::process::abort`]: no destructor runs, no buffer is flushed, no thread goes on, nothing is said to any peer. That is
//! kill -9 in all but the signal's number, and needs no unsafe code.
//!
//! There is none of it in a default release build: only debug builds, and those with the feature `failpoints`, look at
//! that variable.

/// A point in the life of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The rows of a transaction are on their way, and its commit has not come.
    InTransaction,
    /// The broker has acknowledged a batch; nobody but the lane knows.
    Acknowledged,
    /// The watermark knows of it; the server does not.
    Recorded,
    /// What is settled is about to be committed: deletes, held rows, the checkpoint.
    Settling,
    /// It is committed, and nobody knows.
    Settled,
    /// A batch was acknowledged after SIGTERM.
    Draining,
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    struct Armed {
        point: Point,
        /// How often it is still passed before the process dies there.
        left: AtomicU64,
    }

    impl Point {
        fn named(name: &str) -> Option<Point> {
            match name {
                "in-transaction" => Some(Point::InTransaction),
                "acknowledged" => Some(Point::Acknowledged),
                "recorded" => Some(Point::Recorded),
                "settling" => Some(Point::Settling),
                "settled" => Some(Point::Settled),
                "draining" => Some(Point::Draining),
                _ => None,
            }
        }
    }

    /// What the variable says. A test that names no point would pass for nothing: it panics.
    fn armed() -> Option<Armed> {
        let text = std::env::var("AFTERCOMMIT_FAILPOINT").ok()?;
        let parsed = text.split_once(':').and_then(|(name, count)| {
            Some(Armed {
                point: Point::named(name)?,
                left: AtomicU64::new(count.parse().ok().filter(|count| *count > 0)?),
            })
        });
        Some(
            parsed
                .unwrap_or_else(|| panic!("AFTERCOMMIT_FAILPOINT={text:?} is no point and count")),
        )
    }

    /// The process is at this point; it may be its last.
    pub fn reach(point: Point) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let Some(armed) = ARMED.get_or_init(armed) else {
            return;
        };
        if armed.point == point && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            std::process::abort();
        }
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub use armed::reach;

/// Nothing, in this build.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline(always)]
pub fn reach(_: Point) {}
