//! Floor 6: lanes, the ordered queues in front of the sinks, and the keeper, who writes down what became of the tasks.

mod hands;
mod keeper;
mod key;
mod lane;
mod marking;
mod queue;
mod report;
mod rule;

pub use keeper::{Keeper, News, Wishes};
pub use key::KeyHasher;
pub use lane::Lane;
pub use marking::Marking;
pub use report::{Ids, Report, Rows, Work, Written};
pub use rule::Rule;

use crate::intake::{Confirmation, Identity};
use crate::outbox::Task;
use crate::watermark::Ticket;

/// A task on its way through a lane.
#[derive(Clone, Debug)]
pub struct Passage {
    /// The task.
    pub task: Task,
    /// Where it comes from, and so what its settlement is reported under.
    pub origin: Origin,
    /// Index of the route that it matched.
    pub route: usize,
}

impl Passage {
    fn new(task: Task, origin: Origin, route: usize) -> Passage {
        Passage {
            task,
            origin,
            route,
        }
    }
}

/// Where a task comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From the stream, in commit order.
    Stream(Ticket),
    /// From the hold table, when it was due.
    Hold {
        /// Its row there.
        hold_id: i64,
        /// How often it was tried before.
        attempts: u32,
    },
}

/// What presses the daemon, and so what a lane does with its tasks; before the last step, with those that are not in its
/// sink's hands. Each step includes those before it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Strain {
    /// Nothing does.
    #[default]
    None,
    /// There is no room for more, or the slot lags: what waits to be tried again goes to the hold.
    Short,
    /// The daemon drains: what came from the hold goes back.
    Drains,
    /// Half of the time for that is over: all goes to the hold.
    Leaves,
    /// It has to come to its end: what the sink has not answered for goes there, too, and comes again.
    Abandons,
}

/// What a lane is told.
#[derive(Debug)]
pub enum Message {
    /// Tasks to deliver, in order.
    Tasks(Vec<Passage>),
    /// A generation of sessions begins. What came from the stream before and is not settled comes again, if the server
    /// still has it.
    Begins {
        /// [`Session::generation`](crate::intake::Session::generation).
        generation: u64,
        /// What positions mean in it.
        identity: Identity,
        /// The keys of which tasks are held, as the hold table has them: the lane's own, by their hashes.
        held: Vec<u64>,
    },
    /// The keeper has written down what the lane reported up to and with this number.
    Written {
        /// [`Report::seq`].
        seq: u64,
        /// [`Written::saved`].
        saved: Confirmation,
    },
    /// As of the last [`Message::Written`], nothing is held of these keys any more, by their hashes.
    Freed(Vec<u64>),
}
