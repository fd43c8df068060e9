//! Several tasks in one request, where the operator wants that: a JSON array, and one answer for all of them.
//!
//! Arrays go one after the other, so that keys keep their order.

use std::collections::HashSet;

use super::client::{End, Webhook};
use crate::outbox::Task;
use crate::sink::{Cause, Outage, Outcome};

/// An array is not made longer than this by one more task.
const MOST_BYTES: usize = 1 << 20;

/// An array that is being made.
#[derive(Default)]
struct Array {
    body: Vec<u8>,
    /// The tasks in it, by their place in the batch.
    tasks: Vec<usize>,
}

/// What is known of a batch so far.
struct Known<'t> {
    outcomes: Vec<Option<Outcome>>,
    /// Keys of which a task was not delivered.
    stopped: HashSet<&'t [u8]>,
}

impl Known<'_> {
    fn set(&mut self, index: usize, outcome: Outcome) {
        if let Some(place) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
    }
}

impl Webhook {
    pub(super) async fn deliver_arrays(&mut self, batch: &[Task]) -> Result<Vec<Outcome>, Outage> {
        let mut known = Known {
            outcomes: vec![None; batch.len()],
            stopped: HashSet::new(),
        };
        let mut array = Array::default();
        for (index, task) in batch.iter().enumerate() {
            if task.key().is_some_and(|key| known.stopped.contains(key)) {
                continue;
            }
            let start = array.body.len();
            array
                .body
                .push(if array.tasks.is_empty() { b'[' } else { b',' });
            if let Err(unfit) = self.shape.write_element(&mut array.body, task) {
                array.body.truncate(start);
                known.set(index, Outcome::Reject(Cause::new(unfit.into_words())));
                known.stopped.extend(task.key());
                continue;
            }
            array.tasks.push(index);
            if array.tasks.len() >= self.batch || array.body.len() >= MOST_BYTES {
                let array = std::mem::take(&mut array);
                if let Err(outage) = self.send_array(array, batch, &mut known).await {
                    return Err(outage.amid(known.outcomes));
                }
            }
        }
        if let Err(outage) = self.send_array(array, batch, &mut known).await {
            return Err(outage.amid(known.outcomes));
        }
        let behind = || Outcome::Retry(Cause::new("an earlier task of its key was not delivered"));
        let outcomes = known.outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or_else(behind))
            .collect())
    }

    async fn send_array<'t>(
        &mut self,
        array: Array,
        batch: &'t [Task],
        known: &mut Known<'t>,
    ) -> Result<(), Outage> {
        let Array { mut body, tasks } = array;
        if tasks.is_empty() {
            return Ok(());
        }
        body.push(b']');
        let in_it = || tasks.iter().filter_map(|index| batch.get(*index));
        let message = self.shape.array(in_it().map(Task::id), body);
        let outcome = match self.endpoint.request(message) {
            Err(cause) => Outcome::Reject(cause),
            Ok(request) => match self.endpoint.send(self.idle.pop(), request).await {
                End::Answer(outcome, link) => {
                    self.silence.is_broken();
                    self.idle.extend(link);
                    outcome
                }
                End::Silence(cause) if self.silence.is_away() => return Err(Outage::new(cause)),
                End::Silence(cause) => Outcome::Retry(cause),
                End::Away(cause) => return Err(Outage::new(cause)),
            },
        };
        for (index, task) in tasks.iter().zip(in_it()) {
            if outcome != Outcome::Delivered {
                known.stopped.extend(task.key());
            }
            known.set(*index, outcome.clone());
        }
        Ok(())
    }
}
