//! What tasks become in Redis: entries of a stream, messages of a list, jobs of a queue. The engine ([`super::push`]) is the
//! same for all.

use std::borrow::Cow;
use std::time::Duration;

use super::batch::Group;
use crate::envelope::Unfit;
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::redis_client::outcome::Wording;

/// A way to write tasks.
pub(in crate::sink) trait Form: Send + Sync {
    /// The words for what goes wrong.
    fn wording(&self) -> &'static Wording;

    /// The script that adds a batch.
    fn script(&self) -> &'static [u8];

    /// Arguments of the script: how, and up to what.
    fn how(&self, group: &Group) -> (Cow<'static, [u8]>, String);

    /// Checks a task: all that there is to check is checked once.
    ///
    /// # Errors
    /// The task cannot be delivered as it is.
    fn check<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<Fit<'t>, Unfit>;

    /// What to look at before the first task.
    fn look(&self) -> Look;

    /// See [`crate::sink::Sink::keeps`].
    fn keeps(&self) -> Duration {
        Duration::ZERO
    }
}

/// A task that has been found fit.
pub(in crate::sink) type Fit<'t> = Box<dyn Write + Send + Sync + 't>;

/// How it is written.
pub(in crate::sink) trait Write {
    /// Appends the name of the place that the task goes to. In a cluster it must be a key: it says in which slot all that belongs
    /// to the task is.
    ///
    /// # Errors
    /// The task cannot be delivered as it is.
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit>;

    /// Adds the task to what goes to one slot. What was written when it fails is taken back by the caller.
    ///
    /// # Errors
    /// The task cannot be delivered as it is.
    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit>;
}

/// What a look at the place is to show.
#[derive(Default)]
pub(in crate::sink) struct Look {
    /// Keys whose names are known, and what they must be.
    pub(in crate::sink) keys: Vec<(Vec<u8>, &'static str)>,
    /// Commands that must be allowed, as they would be sent.
    pub(in crate::sink) commands: Vec<Vec<Vec<u8>>>,
}

impl Look {
    /// A command, from its words.
    pub(in crate::sink) fn command(&mut self, words: &[&[u8]]) {
        let words = words.iter().map(|word| word.to_vec()).collect();
        self.commands.push(words);
    }
}
