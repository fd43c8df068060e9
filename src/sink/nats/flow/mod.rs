//! In which order a batch is sent, and what the answers make of it, pure.
//!
//! Tasks of different keys go side by side. Of one key a *run* goes at once, each of it but the first behind a guard: the
//! stream takes it only while the last message that it has is the one before (`Nats-Expected-Last-Msg-Id`). So nothing of a
//! key can overtake one that was not stored, whatever happened to that one, and many are on their way together. Where
//! another writer's message came between, the guard refuses the rest of the run, which is sent again; and as long as that
//! happens often, runs are short. A run of one needs no guard: it goes when all before it have been stored.

use std::collections::{HashMap, VecDeque};

use crate::outbox::Task;
use crate::sink::{Cause, Outcome};

/// The longest run.
const LONGEST: usize = 256;

/// How much of a key may be under way at once: learnt from what guards say, and kept from batch to batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    run: usize,
    most: usize,
}

impl Pace {
    /// One after the other.
    pub(super) const SINGLE: Pace = Pace { run: 1, most: 1 };
    /// Runs, as long as they go well.
    pub(super) const RUNS: Pace = Pace {
        run: LONGEST,
        most: LONGEST,
    };

    fn slower(&mut self) {
        self.run = (self.run / 2).max(1);
    }

    fn faster(&mut self) {
        self.run = (self.run + 1).min(self.most);
    }
}

/// What the server has said of a task that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is in the stream.
    Stored,
    /// Its guard has refused it.
    Overtaken,
    /// It is not in the stream, or that is not known.
    Failed(Outcome),
}

/// A task to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) task: usize,
    /// Its guard: the task that has to be the stream's last one.
    pub(super) behind: Option<usize>,
}

/// How far a task has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    UnderWay,
    Answered(Answer),
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) pace: Pace,
    /// By task: the next one of its key.
    next: Vec<Option<usize>>,
    /// By task: its key.
    key_of: Vec<usize>,
    states: Vec<State>,
    keys: Vec<Key>,
    /// Keys of which something may be sent.
    ready: VecDeque<usize>,
    in_flight: usize,
}

/// The tasks of one key, or one without a key.
#[derive(Debug)]
struct Key {
    /// The first one that is not known to be stored.
    first: Option<usize>,
    /// The first one that was not sent.
    unsent: Option<usize>,
    /// The last one that was sent in this run.
    last_sent: Option<usize>,
    in_flight: usize,
    /// It is among the ready ones.
    queued: bool,
}

impl Flow {
    /// Of a batch of which nothing was sent yet.
    pub(super) fn new(batch: &[Task], pace: Pace) -> Flow {
        let mut flow = Flow {
            pace,
            next: vec![None; batch.len()],
            key_of: Vec::with_capacity(batch.len()),
            states: vec![State::Unsent; batch.len()],
            keys: Vec::new(),
            ready: VecDeque::new(),
            in_flight: 0,
        };
        let mut last: HashMap<&[u8], usize> = HashMap::new();
        for (index, task) in batch.iter().enumerate() {
            let before = task.key().and_then(|key| last.insert(key, index));
            match before.and_then(|before| flow.next.get_mut(before)) {
                Some(next) => {
                    *next = Some(index);
                    flow.key_of
                        .extend(before.and_then(|before| flow.key_of.get(before).copied()));
                }
                None => {
                    flow.key_of.push(flow.keys.len());
                    flow.ready.push_back(flow.keys.len());
                    flow.keys.push(Key {
                        first: Some(index),
                        unsent: Some(index),
                        last_sent: None,
                        in_flight: 0,
                        queued: true,
                    });
                }
            }
        }
        flow
    }

    /// What is to be sent now; each needs an answer.
    pub(super) fn send(&mut self) -> Option<Send> {
        while let Some(key) = self.ready.front().and_then(|key| self.keys.get_mut(*key)) {
            match key.unsent.filter(|_| key.in_flight < self.pace.run) {
                Some(task) => {
                    let behind = key.last_sent.replace(task);
                    key.unsent = self.next.get(task).copied().flatten();
                    key.in_flight += 1;
                    self.in_flight += 1;
                    if let Some(state) = self.states.get_mut(task) {
                        *state = State::UnderWay;
                    }
                    return Some(Send { task, behind });
                }
                None => {
                    key.queued = false;
                    self.ready.pop_front();
                }
            }
        }
        None
    }

    /// Whether nothing is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight == 0
    }

    /// The tasks that are on their way.
    pub(super) fn unanswered(&self) -> Vec<usize> {
        let states = self.states.iter().enumerate();
        let under_way = states.filter(|(_, state)| **state == State::UnderWay);
        under_way.map(|(task, _)| task).collect()
    }

    /// Notes an answer; one to a task that is not on its way, or has one, is nobody's.
    pub(super) fn answered(&mut self, task: usize, answer: Answer) {
        let Some(state) = self.states.get_mut(task) else {
            return;
        };
        let Some((index, key)) = self
            .key_of
            .get(task)
            .and_then(|index| Some((*index, self.keys.get_mut(*index)?)))
        else {
            return;
        };
        if *state != State::UnderWay {
            return;
        }
        if answer != Answer::Stored && std::mem::take(&mut key.queued) {
            // Of a run that is still being written no more is sent: it would lean on one that is not stored.
            self.ready.retain(|ready| *ready != index);
        }
        *state = State::Answered(answer);
        key.in_flight -= 1;
        self.in_flight -= 1;
        if key.in_flight == 0 {
            self.run_is_over(index);
        }
    }

    fn run_is_over(&mut self, index: usize) {
        let Some(key) = self.keys.get_mut(index) else {
            return;
        };
        let mut stored = 0;
        let mut stopped = false;
        while key.first != key.unsent {
            let Some(task) = key.first else { break };
            match self.states.get(task) {
                Some(State::Answered(Answer::Stored)) => {
                    key.first = self.next.get(task).copied().flatten();
                    stored += 1;
                }
                Some(State::Answered(Answer::Overtaken)) => {
                    let mut at = key.first;
                    while let Some(task) = at.filter(|_| at != key.unsent) {
                        if let Some(state) = self.states.get_mut(task) {
                            *state = State::Unsent;
                        }
                        at = self.next.get(task).copied().flatten();
                    }
                    key.unsent = key.first;
                    self.pace.slower();
                    stored = 0;
                }
                _ => {
                    stopped = true;
                    break;
                }
            }
        }
        if stored >= self.pace.run {
            self.pace.faster();
        }
        key.last_sent = None;
        if stopped {
            key.unsent = None;
        }
        if key.unsent.is_some() && !std::mem::replace(&mut key.queued, true) {
            self.ready.push_back(index);
        }
    }

    /// What is known to be stored so far: of each key, what stands before the first one that is not.
    pub(super) fn known(&self) -> Vec<Option<Outcome>> {
        let mut known: Vec<Option<Outcome>> = vec![Some(Outcome::Delivered); self.states.len()];
        for key in &self.keys {
            let mut at = key.first;
            let stored = Some(&State::Answered(Answer::Stored));
            while let Some(task) = at.filter(|task| self.states.get(*task) == stored) {
                at = self.next.get(task).copied().flatten();
            }
            while let Some(task) = at {
                if let Some(place) = known.get_mut(task) {
                    *place = None;
                }
                at = self.next.get(task).copied().flatten();
            }
        }
        known
    }

    /// The outcomes, once nothing is to be sent and nothing is on its way.
    pub(super) fn outcomes(self) -> Vec<Outcome> {
        let behind = || Outcome::Retry(Cause::new("an earlier task of its key was not delivered"));
        let mut outcomes: Vec<Outcome> = self.states.iter().map(|_| Outcome::Delivered).collect();
        for key in &self.keys {
            let mut at = key.first;
            let mut is_first = true;
            while let Some(task) = at {
                let outcome = match self.states.get(task) {
                    Some(State::Answered(Answer::Failed(outcome))) if is_first => outcome.clone(),
                    _ => behind(),
                };
                if let Some(place) = outcomes.get_mut(task) {
                    *place = outcome;
                }
                is_first = false;
                at = self.next.get(task).copied().flatten();
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests;
