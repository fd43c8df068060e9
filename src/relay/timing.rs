//! Pure: which tasks are not for now.

use std::time::Duration;

use crate::outbox::{Field, Task};
use crate::pg::{Moment, Timestamp};

/// When a task is due that is not to be sent yet; `None` for one that may go at once.
///
/// Judged by the server's clock, at the task's commit: a clock of ours that is wrong dispatches nothing early, and the same
/// row is judged in the same way whenever it is read. What is no point in time (infinity, too) is for the sink to take or to
/// refuse.
pub(super) fn not_before(task: &Task, keeps: Duration) -> Option<Timestamp> {
    let keeps = i64::try_from(keeps.as_micros()).unwrap_or(i64::MAX);
    match Moment::parse(task.get(Field::RunAt)?) {
        Ok(Moment::At(at)) if at.0 > task.committed_at.0.saturating_add(keeps) => Some(at),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;

    #[test]
    fn is_judged_at_the_commit() {
        const SECOND: i64 = 1_000_000;
        let task = |run_at: Option<&str>| {
            let fields = run_at.map(|text| (Field::RunAt, text));
            // 2000-01-01 00:01:00
            Task::from_fields(fields, Position::default(), Timestamp(60 * SECOND))
        };
        let two = Duration::from_secs(2);
        for (run_at, due) in [
            (None, None),
            (Some("2000-01-01 00:00:00+00"), None),
            (Some("2000-01-01 00:01:02+00"), None),
            (Some("2000-01-01 00:01:02.000001+00"), Some(62 * SECOND + 1)),
            (
                Some("2000-01-01 01:01:02.5+01"),
                Some(62 * SECOND + SECOND / 2),
            ),
            (Some("infinity"), None),
            (Some("-infinity"), None),
            (Some("tomorrow"), None),
        ] {
            let found = not_before(&task(run_at), two);
            assert_eq!(found, due.map(Timestamp), "{run_at:?}");
        }
    }
}
