//! Which lane a task goes into, and the way there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::delivery::{KeyHasher, Message, Passage, Written};
use crate::intake::Session;

/// A sink, and its lanes.
#[derive(Debug)]
pub struct SinkLanes {
    /// The sink's name in the configuration.
    pub name: Arc<str>,
    /// How long before its time it may have a task.
    pub keeps: Duration,
    /// Where each lane takes its tasks.
    pub lanes: Vec<mpsc::Sender<Message>>,
}

/// What goes into the lanes: gathered while a batch is handled, and sent off at its end.
#[derive(Debug)]
pub(super) struct Outgoing {
    sinks: Vec<SinkLanes>,
    /// By sink and lane.
    gathered: Vec<Vec<Vec<Passage>>>,
    /// Tasks of one key are always in one lane.
    hasher: KeyHasher,
    /// By sink: it is away.
    away: Vec<bool>,
    /// A lane does not take what it is sent: it has died, since the budget bounds what is in the lanes, and a lane ends only
    /// after the relay.
    died: bool,
    /// Tasks without a key go round.
    turn: usize,
}

impl Outgoing {
    pub(super) fn new(sinks: Vec<SinkLanes>, hasher: KeyHasher) -> Outgoing {
        let lanes = |sink: &SinkLanes| sink.lanes.iter().map(|_| Vec::new()).collect();
        Outgoing {
            gathered: sinks.iter().map(lanes).collect(),
            away: vec![false; sinks.len()],
            died: false,
            sinks,
            hasher,
            turn: 0,
        }
    }

    /// A sink's name.
    pub(super) fn name(&self, sink: usize) -> &Arc<str> {
        &self.sinks[sink].name
    }

    /// The sink of this name.
    pub(super) fn named(&self, name: &str) -> Option<usize> {
        self.sinks.iter().position(|sink| *sink.name == *name)
    }

    /// How long before its time a sink may have a task.
    pub(super) fn keeps(&self, sink: usize) -> Duration {
        self.sinks[sink].keeps
    }

    /// Whether a lane has died.
    pub(super) fn lane_died(&self) -> bool {
        self.died
    }

    /// A lane says that its sink is away, or back. Gives back, by sink, which are away.
    pub(super) fn set_away(&mut self, lane: usize, away: bool) -> Vec<bool> {
        let (sink, _) = self.place(lane);
        self.away[sink] = away;
        self.away.clone()
    }

    /// Adds a task for a sink, given by its index.
    #[inline]
    pub(super) fn add(&mut self, sink: usize, passage: Passage) {
        let lane = match (self.gathered[sink].len(), passage.task.key()) {
            (1, _) => 0,
            (_, Some(key)) => self.lane_of(sink, self.hasher.hash(key)),
            (count, None) => {
                self.turn = self.turn.wrapping_add(1);
                self.turn % count
            }
        };
        self.gathered[sink][lane].push(passage);
    }

    /// Sends what was gathered.
    pub(super) fn send_off(&mut self) {
        for (sink, lanes) in self.sinks.iter().zip(&mut self.gathered) {
            for (lane, passages) in sink.lanes.iter().zip(lanes) {
                if !passages.is_empty() {
                    let message = Message::Tasks(std::mem::take(passages));
                    self.died |= lane.try_send(message).is_err();
                }
            }
        }
    }

    /// Tells each lane that a generation of sessions begins, and which of its keys are held; `keys` are hashes, by sink.
    pub(super) fn tell_begin(&mut self, session: Session, keys: Vec<Vec<u64>>) {
        for (sink, hashes) in keys.into_iter().enumerate().take(self.sinks.len()) {
            let mut by_lane: Vec<Vec<u64>> = vec![Vec::new(); self.gathered[sink].len()];
            for hash in hashes {
                by_lane[self.lane_of(sink, hash)].push(hash);
            }
            for (lane, held) in self.sinks[sink].lanes.iter().zip(by_lane) {
                let message = Message::Begins {
                    generation: session.generation,
                    identity: session.identity,
                    held,
                };
                self.died |= lane.try_send(message).is_err();
            }
        }
    }

    /// Tells lanes that their reports, up to these numbers, are written down.
    pub(super) fn tell_written(&mut self, written: &Written) {
        for &(lane, seq) in &written.lanes {
            let (sink, index) = self.place(lane);
            let message = Message::Written {
                seq,
                saved: written.saved,
            };
            let sender = self.sinks[sink].lanes.get(index);
            self.died |= sender.is_none_or(|sender| sender.try_send(message).is_err());
        }
    }

    /// Tells lanes which of their keys are free again: index of the sink, hash of the key.
    pub(super) fn tell_freed(&mut self, keys: &[(usize, u64)]) {
        for (sink, of) in self.sinks.iter().enumerate() {
            let mut by_lane: Vec<Vec<u64>> = vec![Vec::new(); of.lanes.len()];
            for (_, hash) in keys.iter().filter(|(key_of, _)| *key_of == sink) {
                by_lane[self.lane_of(sink, *hash)].push(*hash);
            }
            for (lane, freed) in of.lanes.iter().zip(by_lane) {
                if !freed.is_empty() {
                    self.died |= lane.try_send(Message::Freed(freed)).is_err();
                }
            }
        }
    }

    fn lane_of(&self, sink: usize, hash: u64) -> usize {
        (hash % self.gathered[sink].len() as u64) as usize
    }

    /// The sink of a lane, and the lane's place among the sink's.
    fn place(&self, lane: usize) -> (usize, usize) {
        let mut rest = lane;
        for (sink, lanes) in self.gathered.iter().enumerate() {
            match rest.checked_sub(lanes.len()) {
                Some(behind) => rest = behind,
                None => return (sink, rest),
            }
        }
        (0, 0)
    }
}
