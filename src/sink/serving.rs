//! Tasks one by one, for places that take their time with each: a sink is *served* with tasks while it works, and answers
//! for each when that one comes to its end. A slow one then holds up nobody but its key.

use std::pin::Pin;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::{Cause, Outcome};
use crate::outbox::Task;

/// Tells a task apart from the others in the sink's hands.
pub type Tag = u64;

/// What [`Serves::serve`] returns.
pub type Service<'a> = Pin<Box<dyn Future<Output = Result<(), Cause>> + Send + 'a>>;

/// A sink that takes tasks one by one.
pub trait Serves: Send {
    /// How many tasks it may have in its hands.
    fn side_by_side(&mut self) -> usize;

    /// Works at the tasks that come, of each key one at a time, until there are no more and all are answered for.
    ///
    /// Dropping the future is allowed at any await, as with [`Sink::deliver`](super::Sink::deliver).
    ///
    /// # Errors
    /// The sink is away. The tasks that it has not answered for may have been applied or not.
    fn serve(&mut self, server: Server) -> Service<'_>;
}

/// The end of whoever has the tasks.
#[derive(Debug)]
pub struct Client {
    tasks: UnboundedSender<(Tag, Task)>,
    answers: UnboundedReceiver<(Tag, Outcome)>,
}

/// The sink's end.
#[derive(Debug)]
pub struct Server {
    tasks: UnboundedReceiver<(Tag, Task)>,
    answers: UnboundedSender<(Tag, Outcome)>,
}

/// The two ends. What is on its way between them is bounded by what the client hands over.
pub fn ends() -> (Client, Server) {
    let (tasks_in, tasks) = mpsc::unbounded_channel();
    let (answers_in, answers) = mpsc::unbounded_channel();
    let client = Client {
        tasks: tasks_in,
        answers,
    };
    let server = Server {
        tasks,
        answers: answers_in,
    };
    (client, server)
}

impl Client {
    /// Hands a task over.
    pub fn give(&self, tag: Tag, task: Task) {
        // A sink that has gone away says so, and then this one is unanswered.
        let _ = self.tasks.send((tag, task));
    }

    /// The next answer; `None`, when the sink has ended and all its answers were heard. Cancel-safe.
    pub async fn answer(&mut self) -> Option<(Tag, Outcome)> {
        self.answers.recv().await
    }

    /// An answer that is there.
    pub fn try_answer(&mut self) -> Option<(Tag, Outcome)> {
        self.answers.try_recv().ok()
    }
}

impl Server {
    /// The next task; `None`, when there will be none any more. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Tag, Task)> {
        self.tasks.recv().await
    }

    /// Whether no task waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Answers for a task.
    pub fn answer(&self, tag: Tag, outcome: Outcome) {
        // A client that has gone wants none.
        let _ = self.answers.send((tag, outcome));
    }

    /// Tasks that had no answer are tried again: another one has one.
    pub fn answer_silent(&self, silent: &mut Vec<(Tag, Cause)>) {
        for (tag, cause) in silent.drain(..) {
            self.answer(tag, Outcome::Retry(cause));
        }
    }
}
