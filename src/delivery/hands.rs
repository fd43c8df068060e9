//! Pure: the tasks in the hands of a sink that is served one by one, and those that wait for one of their key there.

use std::collections::{HashMap, HashSet, VecDeque};

use super::queue::{At, LaneQueue};
use super::{Origin, Passage};
use crate::outbox::Task;
use crate::sink::Outcome;
use crate::sink::serving::Tag;

/// What a sink has in its hands: of each key one task at most.
#[derive(Debug, Default)]
pub(super) struct Hands {
    taken: HashMap<Tag, Taken>,
    /// Of each key, by its hash, of which a task is in the sink's hands: those that came behind it, in order.
    behind: HashMap<u64, VecDeque<Passage>>,
    /// Size of the tasks that are taken.
    bytes: usize,
    /// The tag that was given last.
    last: Tag,
}

/// A task in the sink's hands.
#[derive(Debug)]
pub(super) struct Taken {
    /// The task.
    pub(super) passage: Passage,
    hash: Option<u64>,
    /// The generation of sessions that it is from.
    pub(super) generation: Option<u64>,
}

/// How much a sink may have in its hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Tasks.
    pub(super) tasks: usize,
    /// Bytes, but for a single task that is larger.
    pub(super) bytes: usize,
}

impl Hands {
    /// Whether the sink has nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Whether the sink may have another task.
    pub(super) fn have(&self, room: Room) -> bool {
        self.taken.len() < room.tasks && (self.bytes < room.bytes || self.taken.is_empty())
    }

    /// The hashes of the keys of which it has a task.
    pub(super) fn keys(&self) -> HashSet<u64> {
        self.behind.keys().copied().collect()
    }

    /// Takes from the queue what may go: at most as much as there is room for.
    pub(super) fn take(
        &mut self,
        queue: &mut LaneQueue,
        at: At,
        generation: Option<u64>,
        room: Room,
    ) -> Vec<(Tag, Task)> {
        let mut taken = Vec::new();
        while self.have(room) {
            let tasks = room.tasks - self.taken.len();
            let bytes = room.bytes.saturating_sub(self.bytes);
            let batch = queue.next_batch(at, tasks, bytes);
            if batch.is_empty() {
                break;
            }
            for mut passage in batch {
                let hash = passage.task.key().map(|key| queue.hash_of(key));
                match hash.and_then(|hash| self.behind.get_mut(&hash)) {
                    Some(line) => {
                        passage.task.detach();
                        line.push_back(passage);
                    }
                    None => taken.push(self.put(passage, hash, generation)),
                }
            }
        }
        taken
    }

    fn put(&mut self, passage: Passage, hash: Option<u64>, generation: Option<u64>) -> (Tag, Task) {
        self.last += 1;
        self.bytes += passage.task.size();
        if let Some(hash) = hash {
            self.behind.entry(hash).or_default();
        }
        let task = passage.task.clone();
        let taken = Taken {
            passage,
            hash,
            generation,
        };
        self.taken.insert(self.last, taken);
        (self.last, task)
    }

    /// The sink has answered for a task, or will not any more: it is out of its hands. Either [`go_on`](Hands::go_on) or
    /// [`let_go`](Hands::let_go) follows, once it is known what becomes of it.
    pub(super) fn give(&mut self, tag: Tag) -> Option<Taken> {
        let taken = self.taken.remove(&tag)?;
        self.bytes -= taken.passage.task.size();
        Some(taken)
    }

    /// The next task of a key goes into the sink's hands, if it still may.
    pub(super) fn go_on(
        &mut self,
        key: Key,
        queue: &mut LaneQueue,
        at: At,
        generation: Option<u64>,
    ) -> Option<(Tag, Task)> {
        let hash = key.0?;
        let mut line = self.behind.remove(&hash)?;
        while let Some(passage) = line.pop_front() {
            if let Some(passage) = queue.reconsider(passage, at) {
                self.behind.insert(hash, line);
                return Some(self.put(passage, Some(hash), generation));
            }
        }
        None
    }

    /// The tasks behind one go back to the queue, where they follow it.
    pub(super) fn let_go(&mut self, key: Key, queue: &mut LaneQueue, at: At) {
        let line = key.0.and_then(|hash| self.behind.remove(&hash));
        for passage in line.into_iter().flatten() {
            queue.outcome(passage, Outcome::Unsent, at);
        }
    }

    /// Tasks that wait behind those in the sink's hands, and are from an earlier generation of sessions.
    pub(super) fn drop_behind(&mut self) -> impl Iterator<Item = (Task, Origin)> {
        let lines = self.behind.values_mut().map(std::mem::take);
        let dropped = lines.flatten();
        dropped.map(|passage| (passage.task, passage.origin))
    }

    /// All that the sink has.
    pub(super) fn tags(&self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = self.taken.keys().copied().collect();
        // As they were taken, so that they go back in order.
        tags.sort_unstable();
        tags
    }
}

/// Of a task that was in the sink's hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(Option<u64>);

impl Taken {
    /// Its key, for what follows.
    pub(super) fn key(&self) -> Key {
        Key(self.hash)
    }
}
