//! Pure: the order of a lane's tasks, which of them may go next, and what becomes of those that fail.
//!
//! Tasks leave in the order in which they came, but for those whose key waits. A task that fails waits in place with all
//! later tasks of its key until its pause is over; after `hold_after` it goes to the hold with them, and the lane goes on.
//! From then on its key is *held*: whatever comes of it goes there too, until nothing of it is left there. A task that
//! comes back from the hold and fails is put off there. A task without a key waits alone.

mod failure;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::failure::Fate;
pub(super) use self::failure::Verdict;
use super::report::Report;
use super::{KeyHasher, Origin, Passage, Rule};
use crate::backoff::Backoff;
use crate::outbox::{Field, Position, Task};
use crate::pg::{Moment, Timestamp};
use crate::sink::{Cause, Outcome};

/// What waits together: a key's tasks, or one task without a key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Order {
    Key(Bytes),
    Alone(Position),
}

impl Order {
    fn of(task: &Task) -> Order {
        match task.key() {
            Some(key) => Order::Key(Bytes::copy_from_slice(key)),
            None => Order::Alone(task.position),
        }
    }
}

/// The attempts of a task that is tried again in place.
#[derive(Clone, Debug)]
struct Tries {
    backoff: Backoff,
    /// When the first of them failed.
    since: Instant,
}

#[derive(Debug)]
struct Waiting {
    tasks: VecDeque<Passage>,
    tries: Tries,
    /// Why the first of them failed.
    cause: Cause,
}

/// Now, and a random number in `0.0..1.0`: what a pure room has to be given.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// The monotonic clock.
    pub(super) now: Instant,
    /// The wall clock, the server's, for what expires.
    pub(super) wall: Timestamp,
    /// Spreads the pauses.
    pub(super) random: f64,
}

/// The tasks of a lane that are not in the sink's hands.
#[derive(Debug)]
pub(super) struct LaneQueue {
    sink: Arc<str>,
    rules: Arc<[Rule]>,
    hasher: KeyHasher,
    ready: VecDeque<Passage>,
    waiting: HashMap<Order, Waiting>,
    /// When each waiting key is tried again.
    due: BTreeSet<(Instant, Order)>,
    /// Keys that are being tried again, with their attempts so far; until a task of theirs is delivered.
    tried: HashMap<Order, Tries>,
    /// Keys of which tasks are held, by hash; and the report that told last of one.
    held: HashMap<u64, u64>,
    /// The last report that is written down.
    written: u64,
    /// Held keys whose first task, back from the hold, failed: those behind it that came with it go back, up to when the
    /// report of this number is written down.
    stopped: HashMap<u64, u64>,
    /// A key has become held, or stopped, with the batch in hand.
    sweep: bool,
    /// What became of keys that failed in the batch in hand.
    fates: HashMap<Order, Fate>,
    /// Tasks of the batch in hand that are to be tried at once.
    again: Vec<Passage>,
    /// What is to be reported.
    report: Report,
    with_ids: bool,
}

impl LaneQueue {
    /// An empty queue of the lane of this index. `with_ids`: the ids of delivered rows are wanted.
    pub(super) fn new(
        lane: usize,
        sink: Arc<str>,
        rules: Arc<[Rule]>,
        hasher: KeyHasher,
        with_ids: bool,
    ) -> LaneQueue {
        LaneQueue {
            sink,
            rules,
            hasher,
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            due: BTreeSet::new(),
            tried: HashMap::new(),
            held: HashMap::new(),
            written: 0,
            stopped: HashMap::new(),
            sweep: false,
            fates: HashMap::new(),
            again: Vec::new(),
            report: Report {
                lane,
                seq: 1,
                ..Report::default()
            },
            with_ids,
        }
    }

    /// Adds tasks behind all others, in order; see [`push`](LaneQueue::push).
    pub(super) fn extend(&mut self, passages: Vec<Passage>) {
        if self.held.is_empty() {
            // All at once: each move of a task costs as much as a step of its way.
            self.ready.extend(passages);
        } else {
            passages.into_iter().for_each(|passage| self.push(passage));
        }
    }

    /// Adds a task behind all others; or, if its key is held, to what is to be held.
    pub(super) fn push(&mut self, passage: Passage) {
        if !self.held.is_empty()
            && let Some(hash) = self.hash(&passage)
        {
            let stays = match passage.origin {
                Origin::Stream(_) => self.held.contains_key(&hash),
                Origin::Hold { .. } => self.stopped.contains_key(&hash),
            };
            if stays {
                return self.set_aside(passage, 0, Duration::ZERO, None);
            }
        }
        self.ready.push_back(passage);
    }

    /// How many are ready to go.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether nothing is ready or waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.waiting.is_empty()
    }

    /// When the next waiting key is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A task belongs to an earlier generation of sessions: it is dropped.
    pub(super) fn forget(&mut self, task: &Task, origin: Origin) {
        self.report.dropped(task, origin);
    }

    /// The number of the report that tells what has become of the batch that was in hand just now.
    pub(super) fn turn(&self) -> u64 {
        self.report.seq
    }

    /// What is to be reported, if there is anything; a new report begins.
    pub(super) fn take_report(&mut self) -> Option<Report> {
        if self.report.is_empty() {
            return None;
        }
        let next = Report {
            lane: self.report.lane,
            seq: self.report.seq + 1,
            ..Report::default()
        };
        Some(std::mem::replace(&mut self.report, next))
    }

    /// The sink has gone away, or come back: to be reported.
    pub(super) fn report_away(&mut self, away: bool) {
        self.report.away = Some(away);
    }

    /// Whether there is something to report.
    pub(super) fn has_report(&self) -> bool {
        !self.report.is_empty()
    }

    /// Takes the next batch: at most `max_tasks`, and no more than `max_bytes` but for a single task that is larger.
    /// Empty when nothing may go now.
    pub(super) fn next_batch(
        &mut self,
        at: At,
        max_tasks: usize,
        max_bytes: usize,
    ) -> Vec<Passage> {
        self.wake(at.now);
        let mut batch: Vec<Passage> = Vec::with_capacity(max_tasks.min(self.ready.len()));
        let mut bytes = 0;
        if self.waiting.is_empty() {
            // Most often all go as they are: at once, then.
            let going = self.ready.iter().take(max_tasks).take_while(|next| {
                bytes += next.task.size();
                bytes <= max_bytes && expired(next, at.wall).is_none()
            });
            let going = going.count();
            batch.extend(self.ready.drain(..going));
            bytes = batch.iter().map(|passage| passage.task.size()).sum();
        }
        while let Some(next) = self.ready.front() {
            let size = next.task.size();
            let full = batch.len() >= max_tasks || bytes + size > max_bytes;
            if full && !batch.is_empty() {
                break;
            }
            let waiting = match self.waiting.is_empty() {
                true => None,
                false => self.waiting.get_mut(&Order::of(&next.task)),
            };
            let Some(mut passage) = self.ready.pop_front() else {
                break;
            };
            if let Some(waiting) = waiting {
                passage.task.detach();
                waiting.tasks.push_back(passage);
            } else if let Some(words) = expired(&passage, at.wall) {
                let attempts = self.attempts(&passage);
                self.give_up(passage, attempts, words);
            } else {
                bytes += size;
                batch.push(passage);
            }
        }
        self.finish_batch();
        batch
    }

    /// A task that has waited for one of its key in the sink's hands, and may go now; `None` if it may not after all, and
    /// follows others of its key.
    pub(super) fn reconsider(&mut self, passage: Passage, at: At) -> Option<Passage> {
        if self.fates.contains_key(&Order::of(&passage.task)) {
            self.outcome(passage, Outcome::Unsent, at);
            return None;
        }
        let Some(words) = expired(&passage, at.wall) else {
            return Some(passage);
        };
        let attempts = self.attempts(&passage);
        self.give_up(passage, attempts, words);
        None
    }

    /// Keys whose pause is over come first, each with all that waits behind its first task.
    fn wake(&mut self, now: Instant) {
        while self.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, order)) = self.due.pop_first() else {
                break;
            };
            let Some(waiting) = self.waiting.remove(&order) else {
                continue;
            };
            for passage in waiting.tasks.into_iter().rev() {
                self.ready.push_front(passage);
            }
            self.tried.insert(order, waiting.tries);
        }
    }

    /// The sink has a task of the batch in hand.
    pub(super) fn delivered(&mut self, task: &Task, origin: Origin) {
        if !self.tried.is_empty() {
            self.tried.remove(&Order::of(task));
        }
        self.report.delivered(task, origin, self.with_ids);
    }

    /// The hash of a key.
    pub(super) fn hash_of(&self, key: &[u8]) -> u64 {
        self.hasher.hash(key)
    }

    fn hash(&self, passage: &Passage) -> Option<u64> {
        passage.task.key().map(|key| self.hasher.hash(key))
    }

    fn hold_key(&mut self, hash: Option<u64>) {
        let seq = self.report.seq;
        self.sweep |= hash.is_some_and(|hash| self.held.insert(hash, seq).is_none());
    }

    fn stop_key(&mut self, hash: Option<u64>) {
        let seq = self.report.seq;
        self.sweep |= hash.is_some_and(|hash| self.stopped.insert(hash, seq).is_none());
    }

    /// The batch in hand is done: what is behind a task that has gone to the hold follows it.
    pub(super) fn finish_batch(&mut self) {
        self.fates.clear();
        for passage in std::mem::take(&mut self.again).into_iter().rev() {
            self.ready.push_front(passage);
        }
        if std::mem::take(&mut self.sweep) {
            for passage in std::mem::take(&mut self.ready) {
                self.push(passage);
            }
        }
    }

    /// Sends what is tried again in place to the hold: there it waits for what is left of its pause.
    pub(super) fn spill_waiting(&mut self, now: Instant) {
        for (due, order) in std::mem::take(&mut self.due) {
            let Some(waiting) = self.waiting.remove(&order) else {
                continue;
            };
            let pause = due.saturating_duration_since(now);
            let attempts = waiting.tries.backoff.attempts();
            let mut first = Some((attempts, pause, waiting.cause.to_string()));
            for passage in waiting.tasks {
                match first.take() {
                    Some((attempts, pause, why)) => {
                        self.set_aside(passage, attempts, pause, Some(why));
                    }
                    None => self.set_aside(passage, 0, Duration::ZERO, None),
                }
            }
        }
        self.finish_batch();
    }

    /// What came from the hold goes back: it is still there.
    pub(super) fn give_back(&mut self) {
        for passage in std::mem::take(&mut self.ready) {
            match passage.origin {
                Origin::Hold { .. } => self.set_aside(passage, 0, Duration::ZERO, None),
                Origin::Stream(_) => self.ready.push_back(passage),
            }
        }
        self.finish_batch();
    }

    /// Sends everything to the hold, because the sink is away, or the daemon leaves. What came from there goes back, or stays, to try whether
    /// the sink is back.
    /// But the tasks of the keys, given by their hashes, that are in the sink's hands stay: they come behind those.
    pub(super) fn spill(
        &mut self,
        now: Instant,
        in_hands: &HashSet<u64>,
        why: &Cause,
        with_released: bool,
    ) {
        self.spill_but(now, why, with_released, in_hands);
        if in_hands.is_empty() {
            self.tried.clear();
        }
    }

    /// Sends what is behind the batch in hand to the hold, because the sink does not answer: but not the tasks of the keys,
    /// given by their hashes, that are in the batch. They come behind its tasks, wherever those go.
    pub(super) fn spill_beside(&mut self, now: Instant, in_hand: &HashSet<u64>, why: &Cause) {
        self.spill_but(now, why, false, in_hand);
    }

    fn spill_but(
        &mut self,
        now: Instant,
        why: &Cause,
        with_released: bool,
        in_hands: &HashSet<u64>,
    ) {
        let stays = |hash: Option<u64>| hash.is_some_and(|hash| in_hands.contains(&hash));
        self.spill_waiting(now);
        for passage in std::mem::take(&mut self.ready) {
            match passage.origin {
                Origin::Hold { .. } if !with_released => self.ready.push_back(passage),
                Origin::Hold { .. } => self.set_aside(passage, 0, Duration::ZERO, None),
                Origin::Stream(_) if stays(self.hash(&passage)) => self.ready.push_back(passage),
                Origin::Stream(_) => {
                    let attempts = self.attempts(&passage);
                    self.set_aside(passage, attempts, Duration::ZERO, Some(why.to_string()));
                }
            }
        }
        self.finish_batch();
    }

    /// A generation of sessions begins: what came before is dropped, since it comes again if it is not settled, from the
    /// stream or from the hold; and these are the lane's held keys, as the hold table has them.
    pub(super) fn begin(&mut self, hashes: Vec<u64>) {
        self.due.clear();
        self.tried.clear();
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let waiting = waiting.flat_map(|waiting| waiting.tasks);
        let ready = std::mem::take(&mut self.ready);
        for passage in waiting.chain(ready) {
            self.forget(&passage.task, passage.origin);
        }
        self.held = hashes.into_iter().map(|hash| (hash, 0)).collect();
        self.finish_batch();
    }

    /// The reports up to `seq` are written down.
    pub(super) fn written(&mut self, seq: u64) {
        self.written = seq;
        self.stopped.retain(|_, last| *last > seq);
    }

    /// Of these keys nothing was held any more when the reports were written down that we know of.
    pub(super) fn freed(&mut self, hashes: &[u64]) {
        for hash in hashes {
            // Not if one of the key has been sent to the hold since.
            if self
                .held
                .get(hash)
                .is_some_and(|last| *last <= self.written)
            {
                self.held.remove(hash);
            }
        }
    }
}

/// Why a task is not to be sent any more at this time.
fn expired(passage: &Passage, wall: Timestamp) -> Option<String> {
    let text = passage.task.get(Field::ExpiresAt)?;
    match Moment::parse(text) {
        Ok(Moment::At(at)) if at <= wall => Some("it expired before it could be sent".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
