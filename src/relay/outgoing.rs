//! Which lane a task goes into, and the way there.

use std::hash::{BuildHasher, Hasher, RandomState};

use tokio::sync::mpsc;

use crate::delivery::Passage;

/// The lanes of one sink.
#[derive(Debug)]
pub struct SinkLanes {
    /// Where each lane takes its tasks.
    pub lanes: Vec<mpsc::Sender<Vec<Passage>>>,
}

/// What goes into the lanes: gathered while a batch is handled, and sent off at its end.
#[derive(Debug)]
pub(super) struct Outgoing {
    sinks: Vec<SinkLanes>,
    /// By sink and lane.
    gathered: Vec<Vec<Vec<Passage>>>,
    /// Tasks of one key are always in one lane.
    hasher: RandomState,
    /// Tasks without a key go round.
    turn: usize,
}

impl Outgoing {
    pub(super) fn new(sinks: Vec<SinkLanes>) -> Outgoing {
        let lanes = |sink: &SinkLanes| sink.lanes.iter().map(|_| Vec::new()).collect();
        Outgoing {
            gathered: sinks.iter().map(lanes).collect(),
            sinks,
            hasher: RandomState::new(),
            turn: 0,
        }
    }

    /// Adds a task for a sink, given by its index.
    pub(super) fn add(&mut self, sink: usize, passage: Passage) {
        let lanes = &mut self.gathered[sink];
        let lane = match (lanes.len(), passage.task.key()) {
            (1, _) => 0,
            (count, Some(key)) => {
                let mut hasher = self.hasher.build_hasher();
                hasher.write(key);
                (hasher.finish() % count as u64) as usize
            }
            (count, None) => {
                self.turn = self.turn.wrapping_add(1);
                self.turn % count
            }
        };
        lanes[lane].push(passage);
    }

    /// Sends what was gathered. False when a lane does not take it: it has died, since the budget bounds what is in the
    /// lanes, and a lane ends only after the relay.
    pub(super) fn send_off(&mut self) -> bool {
        let mut taken = true;
        for (sink, lanes) in self.sinks.iter().zip(&mut self.gathered) {
            for (lane, passages) in sink.lanes.iter().zip(lanes) {
                if !passages.is_empty() {
                    taken &= lane.try_send(std::mem::take(passages)).is_ok();
                }
            }
        }
        taken
    }
}
