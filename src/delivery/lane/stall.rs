//! A sink that does not answer: what is behind its batch does not wait for it, where that takes the room of other sinks.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Running, take_in};
use crate::delivery::Strain;
use crate::outbox::Task;
use crate::sink::{Cause, Outage, Outcome, Sink};

/// A sink that has not answered for longer is not just slow.
pub(super) const STALLS_AFTER: Duration = Duration::from_secs(1);
/// Then, and as long as there is strain, what has come is sent to the hold so often.
const EVERY: Duration = Duration::from_millis(100);

impl Running {
    /// Hands tasks to the sink. While it does not answer and the daemon is short of room, or it was away before, what comes
    /// behind goes to the hold; but not the tasks of keys that are in the sink's hands, whose order is not known yet. Nor does
    /// a stop wait for the answer for ever. `None`: nobody would hear it any more.
    pub(super) async fn deliver(
        &mut self,
        sink: &mut dyn Sink,
        tasks: &[Task],
    ) -> Option<Result<Vec<Outcome>, Outage>> {
        let Running {
            marking,
            inbox,
            reports,
            strain,
            queue,
            away,
            open,
            ..
        } = self;
        let tries = away.as_ref().is_some_and(|away| away.spilled);
        let mut delivery = match marking.terms() {
            Some(terms) => sink.deliver_once(tasks, terms),
            None => sink.deliver(tasks),
        };
        let mut in_hand: Option<HashSet<u64>> = None;
        let mut look_at = Instant::now() + if tries { EVERY } else { STALLS_AFTER };
        let waits = Cause::new("the sink does not answer");
        loop {
            tokio::select! {
                biased;
                answer = &mut delivery => return Some(answer),
                () = reports.closed() => return None,
                () = sleep_until(look_at) => look_at = Instant::now() + EVERY,
            }
            let pressed = *strain.borrow();
            if pressed == Strain::Abandons {
                drop(delivery);
                self.abandons(tasks.len());
                return Some(Ok(vec![Outcome::Unsent; tasks.len()]));
            }
            if !tries && pressed == Strain::None {
                continue;
            }
            take_in(inbox, open, queue, marking, true);
            let in_hand = in_hand.get_or_insert_with(|| {
                let keys = tasks.iter().filter_map(Task::key);
                keys.map(|key| queue.hash_of(key)).collect()
            });
            queue.spill_beside(Instant::now().into_std(), in_hand, &waits);
            if let Some(report) = queue.take_report() {
                // A relay that is gone ends the lane after the answer.
                let _ = reports.send(report).await;
            }
        }
    }
}
