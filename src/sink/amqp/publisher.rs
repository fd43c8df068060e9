//! Publishes a batch: all keys at once, each message confirmed or come back, and one outcome for each task.
//!
//! What is not known to be harmless goes alone, with nothing else under way: the first message to an exchange on a
//! connection, and a very large one. RabbitMQ closes the channel at a message that it does not take (no such exchange, no
//! right to write there, larger than its limit), without saying which it was, and all that is under way is in doubt. After
//! such an end, all go one by one for a while.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::flow::Flow;
use super::link::{Event, Link};
use super::method::{self, Method, Refusal};
use super::nodes::Nodes;
use super::outcome::{blocked, late, nacked, outage, refused};
use super::rest::Resting;
use super::wire::write_content;
use crate::clock;
use crate::envelope::Unfit;
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::{Cause, Outage, Outcome};

/// A message that is ready to be written.
pub(in crate::sink) trait Letter {
    /// Where it is published; empty for the default exchange.
    fn exchange(&self) -> &str;
    /// How the exchange finds its queues.
    fn routing_key(&self) -> &str;
    /// Appends its properties. Their `message_id` is the task's id.
    fn write_properties(&self, out: &mut Vec<u8>) -> Result<(), Unfit>;
    /// Appends its body.
    fn write_body(&self, out: &mut Vec<u8>);
}

/// How tasks become messages.
pub(in crate::sink) trait Letters: Sync {
    /// A task's message.
    type Letter<'t>: Letter
    where
        Self: 't;
    /// Checks a task, and says what its message is.
    fn letter<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<Self::Letter<'t>, Unfit>;
    /// What becomes of a task whose message no queue was found for.
    fn unroutable(&self, exchange: &str, routing_key: &str) -> Outcome;
}

/// While so much waits to be written, no more is encoded.
const OUTPUT_FULL: usize = 64 << 10;
/// A larger message goes alone. RabbitMQ 4 refuses those of more than 16 MiB by default, older ones of more than 128.
const LARGE: usize = 8 << 20;
/// An exchange that has refused a message is tried again after this.
const REFUSAL_FRESH: Duration = Duration::from_secs(1);
/// How long messages go one by one after the broker has closed a channel without saying by which of them.
const CAREFUL: Duration = Duration::from_secs(10);
/// After so long a batch is cut short. Long beside the time in which a broker nearby confirms, so that many of one key go
/// in a batch there; short beside what a task of another key may have to wait.
const CUT_SHORT: Duration = Duration::from_millis(100);
/// Names that are remembered.
const EXCHANGES_KNOWN: usize = 1000;

/// The way to one broker, by any of its nodes. It connects when it is first used.
pub(in crate::sink) struct Publisher {
    pub(super) nodes: Nodes,
    /// No answer for so long, and the broker counts as away.
    pub(super) timeout: Duration,
    /// In nobody's hands while a batch is under way: a batch that is dropped midway takes its connection with it.
    resting: Option<Resting>,
    /// A channel was closed without saying by which message: one by one until then.
    careful_until: Option<Instant>,
    /// By exchange: when it has refused a message, and what that means.
    refused: HashMap<String, (Instant, Outcome)>,
}

impl Publisher {
    pub(in crate::sink) fn new(nodes: Nodes, timeout: Duration) -> Publisher {
        Publisher {
            nodes,
            timeout,
            resting: None,
            careful_until: None,
            refused: HashMap::new(),
        }
    }

    /// Publishes a batch.
    ///
    /// # Errors
    /// The broker is away, or takes nothing.
    pub(in crate::sink) async fn publish<L: Letters>(
        &mut self,
        letters: &L,
        tasks: &[Task],
    ) -> Result<Vec<Outcome>, Outage> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut link = self.connect().await?;
        self.refused
            .retain(|_, (since, _)| since.elapsed() < REFUSAL_FRESH);
        let mut run = Run {
            letters,
            tasks,
            now: clock::now(),
            flow: Flow::new(tasks),
            alone: None,
            written: 0,
            since: Instant::now(),
        };
        // Each node is lost once, at most: then it is all of them.
        let mut others = self.nodes.count() - 1;
        let done = loop {
            let done = match &link.blocked {
                Some(why) => Err(blocked(&link.address, why)),
                None => run.all(&mut link, self).await,
            };
            // An alarm is the whole cluster's.
            let (Err(lost), None) = (&done, &link.blocked) else {
                break done;
            };
            self.nodes.lost(lost.clone());
            // After a silence, whoever waits for the batch hears of it first.
            if others == 0 || run.since.elapsed() >= self.timeout {
                break done;
            }
            others -= 1;
            match self.nodes.connect(self.timeout).await {
                Ok(next) => link = next,
                Err(outage) => break Err(outage),
            }
            run.take_back();
        };
        // A connection that is blocked is kept: a new one would take a message, and be blocked as well.
        if done.is_ok() || link.blocked.is_some() {
            self.let_rest(link);
        }
        match done {
            Ok(()) => Ok(run.flow.into_outcomes()),
            Err(outage) => Err(outage.amid(run.flow.into_known())),
        }
    }

    async fn connect(&mut self) -> Result<Link, Outage> {
        match self.rested().await {
            Some(link) => Ok(link),
            None => self.nodes.connect(self.timeout).await,
        }
    }

    /// The connection that rests, if there is one that still works.
    pub(super) async fn rested(&mut self) -> Option<Link> {
        match self.resting.take()?.wake().await {
            Ok(link) => Some(link),
            Err(lost) => {
                lost.into_iter().for_each(|lost| self.nodes.lost(lost));
                None
            }
        }
    }

    pub(super) fn let_rest(&mut self, link: Link) {
        self.resting = Some(Resting::new(link));
    }

    fn refuse(&mut self, exchange: &str, outcome: Outcome) {
        if self.refused.len() < EXCHANGES_KNOWN {
            self.refused
                .insert(exchange.to_owned(), (Instant::now(), outcome));
        }
    }
}

/// A batch on its way.
struct Run<'b, L> {
    letters: &'b L,
    tasks: &'b [Task],
    now: Timestamp,
    flow: Flow,
    /// What is under way is one message, to this exchange.
    alone: Option<String>,
    /// The tag up to which all is written.
    written: u64,
    since: Instant,
}

impl<L: Letters> Run<'_, L> {
    async fn all(&mut self, link: &mut Link, publisher: &mut Publisher) -> Result<(), Outage> {
        // RabbitMQ looks for the leader of a quorum queue once per channel. Where that was a dead node's, all that follows is
        // refused, for as long as the channel is open.
        if link.nacked {
            match timeout(publisher.timeout, link.change_channel()).await {
                Ok(opened) => opened.map_err(|trouble| outage(trouble, &link.address))?,
                Err(_) => return Err(late(&link.address, publisher.timeout)),
            }
        }
        let mut answered = Instant::now();
        loop {
            self.fill(link, publisher);
            if self.flow.is_done() {
                return Ok(());
            }
            let left = publisher.timeout.saturating_sub(answered.elapsed());
            let event = match timeout(left, link.event()).await {
                Ok(event) => event.map_err(|trouble| outage(trouble, &link.address))?,
                Err(_) => return Err(late(&link.address, publisher.timeout)),
            };
            // Before a confirm that was long under way makes way for the next one.
            if self.since.elapsed() >= CUT_SHORT {
                self.flow.cut_short();
            }
            match event {
                Event::Said(Method::Ack { tag, multiple }) => {
                    self.answered(link, tag, multiple, &Outcome::Delivered);
                }
                Event::Said(Method::Nack { tag, multiple }) => {
                    link.nacked = true;
                    self.answered(link, tag, multiple, &nacked());
                }
                Event::Returned {
                    exchange,
                    routing_key,
                    id,
                } => {
                    let outcome = self.letters.unroutable(&exchange, &routing_key);
                    let tasks = self.tasks;
                    let is_it = |task: usize| tasks.get(task).map(Task::id) == id.as_deref();
                    self.flow.returned(is_it, outcome);
                }
                Event::Said(Method::ChannelClose(refusal)) => {
                    self.channel_closed(link, publisher, &refusal);
                    match timeout(publisher.timeout, link.open_channel()).await {
                        Ok(opened) => opened.map_err(|trouble| outage(trouble, &link.address))?,
                        Err(_) => return Err(late(&link.address, publisher.timeout)),
                    }
                }
                Event::Said(Method::Blocked(why)) => return Err(blocked(&link.address, &why)),
                // A heartbeat is no progress.
                Event::Written if link.tag > self.written => self.written = link.tag,
                Event::Written | Event::Said(_) => continue,
            }
            answered = Instant::now();
        }
    }

    /// Its connection is gone: what was under way goes again, on the next one.
    fn take_back(&mut self) {
        self.flow.take_back();
        self.alone = None;
        self.written = 0;
    }

    /// Publishes what may be published now.
    fn fill(&mut self, link: &mut Link, publisher: &Publisher) {
        let careful = publisher
            .careful_until
            .is_some_and(|until| Instant::now() < until);
        while link.unwritten() < OUTPUT_FULL && self.alone.is_none() {
            let Some(task) = self.flow.next().and_then(|index| self.tasks.get(index)) else {
                return;
            };
            let letter = match self.letters.letter(task, self.now) {
                Ok(letter) => letter,
                Err(unfit) => {
                    self.flow
                        .settled(Outcome::Reject(Cause::new(unfit.into_words())));
                    continue;
                }
            };
            let exchange = letter.exchange();
            if let Some((_, outcome)) = publisher.refused.get(exchange) {
                self.flow.settled(outcome.clone());
                continue;
            }
            let goes_alone = careful || task.size() > LARGE || !link.proven.contains(exchange);
            if goes_alone && !self.flow.is_quiet() {
                return;
            }
            let exchange = goes_alone.then(|| exchange.to_owned());
            match write(link, &letter) {
                Ok(()) => {
                    link.tag += 1;
                    self.flow.published(link.tag);
                    self.alone = exchange;
                }
                Err(unfit) => self
                    .flow
                    .settled(Outcome::Reject(Cause::new(unfit.into_words()))),
            }
        }
    }

    fn answered(&mut self, link: &mut Link, tag: u64, multiple: bool, outcome: &Outcome) {
        if self.flow.answered(tag, multiple, outcome) > 0
            && let Some(exchange) = self.alone.take()
        {
            if link.proven.len() >= EXCHANGES_KNOWN {
                link.proven.clear();
            }
            link.proven.insert(exchange);
        }
    }

    /// The channel is gone: by the message that was alone, or by one of those that were under way.
    fn channel_closed(&mut self, link: &mut Link, publisher: &mut Publisher, refusal: &Refusal) {
        match self.alone.take() {
            Some(exchange) => {
                let (outcome, is_exchange) = refused(refusal, &exchange);
                self.flow.answered(link.tag, false, &outcome);
                if is_exchange {
                    link.proven.remove(&exchange);
                    publisher.refuse(&exchange, outcome);
                }
            }
            None => {
                self.flow.take_back();
                publisher.careful_until = Some(Instant::now() + CAREFUL);
            }
        }
    }
}

/// Appends a message to what is to be written; nothing of it when it is unfit.
fn write(link: &mut Link, letter: &impl Letter) -> Result<(), Unfit> {
    for (name, text) in [
        ("exchange", letter.exchange()),
        ("routing key", letter.routing_key()),
    ] {
        if text.len() > usize::from(u8::MAX) {
            return Err(Unfit::new(format!(
                "the {name} is longer than the 255 bytes that AMQP has room for"
            )));
        }
    }
    let (channel, frame_max, start) = (link.channel, link.frame_max, link.output.len());
    method::publish(
        &mut link.output,
        channel,
        letter.exchange(),
        letter.routing_key(),
    );
    let written = write_content(
        &mut link.output,
        channel,
        frame_max,
        |out| letter.write_properties(out),
        |out| letter.write_body(out),
    );
    if written.is_err() {
        link.output.truncate(start);
    }
    written.map(drop)
}
