//! Floor 5: lanes, the ordered queues in front of the sinks.

pub mod lane;
pub mod queue;

pub use lane::{Lane, Report};

use crate::outbox::Task;
use crate::watermark::Ticket;

/// A task on its way through a lane.
#[derive(Clone, Debug)]
pub struct Passage {
    /// The task.
    pub task: Task,
    /// What its settlement is reported under.
    pub ticket: Ticket,
    /// Index of the route that it matched.
    pub route: usize,
}
