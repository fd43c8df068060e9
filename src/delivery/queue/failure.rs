//! Pure: what becomes of a task that was not delivered, and of those of its key behind it.

use std::collections::VecDeque;
use std::time::Duration;

use super::{At, LaneQueue, Order, Tries, Waiting};
use crate::backoff::Backoff;
use crate::delivery::{Origin, Passage};
use crate::hold::{Buried, Park, Postponed, State};
use crate::sink::{Cause, Outcome};

/// What became of the first task of a key that failed in the batch in hand: those behind it follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It waits in place.
    Waits,
    /// It is held.
    Held,
    /// It is dead, and lets them go on.
    Gone,
}

/// What was decided about a task, for the log.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::delivery) enum Verdict {
    /// It is delivered.
    Delivered,
    /// It waits behind another one of its key.
    Behind,
    /// It is tried again in place.
    Again {
        /// Attempts so far.
        attempts: u32,
        /// Time until the next.
        pause: Duration,
    },
    /// It is held, and tried again when it is due.
    Held {
        /// Attempts so far.
        attempts: u32,
        /// Time until the next.
        pause: Duration,
    },
    /// It is held as dead.
    Dead {
        /// Why.
        words: String,
    },
}

impl LaneQueue {
    /// What the sink says of a task of the batch in hand. Called in the order of the batch; [`finish_batch`] follows.
    ///
    /// [`finish_batch`]: LaneQueue::finish_batch
    pub(in crate::delivery) fn outcome(
        &mut self,
        passage: Passage,
        outcome: Outcome,
        at: At,
    ) -> Verdict {
        let (cause, after) = match outcome {
            Outcome::Delivered => {
                self.delivered(&passage.task, passage.origin);
                return Verdict::Delivered;
            }
            Outcome::Retry(cause) => (cause, Duration::ZERO),
            Outcome::RetryIn(after, cause) => (cause, after),
            Outcome::Reject(cause) => {
                let attempts = self.attempts(&passage) + 1;
                return self.give_up(passage, attempts, cause.to_string());
            }
            Outcome::Unsent => return self.unsent(passage),
        };
        match self.fates.get(&Order::of(&passage.task)) {
            None => self.failed(passage, cause, after, at),
            Some(fate) => self.follow(passage, *fate),
        }
    }

    /// There was no time for a task. Before it, all of its key was delivered, or what has become of that is known.
    fn unsent(&mut self, mut passage: Passage) -> Verdict {
        // It may stay for long, while others come and go.
        passage.task.detach();
        let fate = match self.fates.is_empty() {
            true => None,
            false => self.fates.get(&Order::of(&passage.task)).copied(),
        };
        self.follow(passage, fate.unwrap_or(Fate::Gone))
    }

    /// A task follows those of its key before it.
    fn follow(&mut self, passage: Passage, fate: Fate) -> Verdict {
        match fate {
            Fate::Gone => self.again.push(passage),
            Fate::Held => self.set_aside(passage, 0, Duration::ZERO, None),
            Fate::Waits => {
                let order = Order::of(&passage.task);
                self.wait(order, passage);
            }
        }
        Verdict::Behind
    }

    /// The first task of its key in the batch has failed.
    fn failed(&mut self, passage: Passage, cause: Cause, after: Duration, at: At) -> Verdict {
        let order = Order::of(&passage.task);
        let rule = &self.rules[passage.route];
        let tries = self.tried.remove(&order);
        let attempts = match passage.origin {
            Origin::Stream(_) => tries.as_ref().map_or(0, |tries| tries.backoff.attempts()),
            Origin::Hold { attempts, .. } => attempts,
        };
        let mut backoff = Backoff::resume(rule.backoff, attempts);
        let pause = backoff.next(at.random).max(after);
        let attempts = backoff.attempts();
        if attempts >= rule.attempts {
            let words = format!("tried {attempts} times; the last time: {cause}");
            return self.give_up(passage, attempts, words);
        }
        let since = tries.map_or(at.now, |tries| tries.since);
        let in_place = at.now + pause <= since + rule.hold_after;
        match passage.origin {
            Origin::Stream(_) if in_place => {
                self.due.insert((at.now + pause, order.clone()));
                self.fates.insert(order.clone(), Fate::Waits);
                let waiting = Waiting {
                    tasks: VecDeque::new(),
                    tries: Tries { backoff, since },
                    cause,
                };
                self.waiting.insert(order.clone(), waiting);
                self.wait(order, passage);
                Verdict::Again { attempts, pause }
            }
            _ => {
                self.fates.insert(order, Fate::Held);
                self.set_aside(passage, attempts, pause, Some(cause.to_string()));
                Verdict::Held { attempts, pause }
            }
        }
    }

    fn wait(&mut self, order: Order, mut passage: Passage) {
        passage.task.detach();
        if let Some(waiting) = self.waiting.get_mut(&order) {
            waiting.tasks.push_back(passage);
        }
    }

    /// How often a task was tried.
    pub(super) fn attempts(&self, passage: &Passage) -> u32 {
        match passage.origin {
            Origin::Hold { attempts, .. } => attempts,
            Origin::Stream(_) => {
                let tries = self.tried.get(&Order::of(&passage.task));
                tries.map_or(0, |tries| tries.backoff.attempts())
            }
        }
    }

    /// A task is dead: it is kept in the hold with the reason.
    pub(super) fn give_up(
        &mut self,
        mut passage: Passage,
        attempts: u32,
        words: String,
    ) -> Verdict {
        let order = Order::of(&passage.task);
        self.tried.remove(&order);
        let rule = &self.rules[passage.route];
        let hash = self.hash(&passage);
        let blocks = rule.dead_blocks && hash.is_some();
        match passage.origin {
            Origin::Hold { hold_id, .. } => {
                self.report.rows.buried.push(Buried {
                    hold_id,
                    attempts,
                    error: words.clone(),
                    blocks,
                });
                if blocks {
                    self.hold_key(hash);
                }
                // The hold table says who is next; what came with it goes back.
                self.stop_key(hash);
                self.fates.insert(order, Fate::Held);
            }
            Origin::Stream(ticket) => {
                passage.task.detach();
                let park = Park {
                    task: passage.task,
                    sink: self.sink.clone(),
                    route: rule.route.clone(),
                    state: State::Dead,
                    due_in: None,
                    due_at: None,
                    blocks,
                    attempts,
                    error: Some(words.clone()),
                };
                self.report.parks.push((ticket, park));
                if blocks {
                    self.hold_key(hash);
                }
                let fate = if blocks { Fate::Held } else { Fate::Gone };
                self.fates.insert(order, fate);
            }
        }
        Verdict::Dead { words }
    }

    /// A task goes to the hold, or, if it came from there, back to it: with attempts it is put off, without it stays as it
    /// is.
    pub(super) fn set_aside(
        &mut self,
        mut passage: Passage,
        attempts: u32,
        due_in: Duration,
        error: Option<String>,
    ) {
        let hash = self.hash(&passage);
        match passage.origin {
            Origin::Hold { hold_id, .. } => {
                match error {
                    Some(error) if attempts > 0 => {
                        self.report.rows.postponed.push(Postponed {
                            hold_id,
                            due_in,
                            attempts,
                            error,
                        });
                        self.hold_key(hash);
                    }
                    _ => self.report.rows.returned.push(hold_id),
                }
                self.stop_key(hash);
            }
            Origin::Stream(ticket) => {
                passage.task.detach();
                let park = Park {
                    task: passage.task,
                    sink: self.sink.clone(),
                    route: self.rules[passage.route].route.clone(),
                    state: State::Retrying,
                    due_in: Some(due_in),
                    due_at: None,
                    blocks: hash.is_some(),
                    attempts,
                    error,
                };
                self.report.parks.push((ticket, park));
                self.hold_key(hash);
            }
        }
    }
}
