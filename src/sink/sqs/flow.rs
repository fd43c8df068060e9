//! A batch on its way, in requests of ten, several at a time; no two tasks of a key are under way at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::message::{MOST_BYTES, Message};
use super::verdict::{self, Verdict};
use super::{Config, client, queue};
use crate::clock;
use crate::envelope::Unfit;
use crate::outbox::{Field, Task};
use crate::sink::order::Order;
use crate::sink::{Cause, Outage, Outcome};

/// Messages of a request.
const MOST_MESSAGES: usize = 10;

/// The sink.
pub(super) struct Sqs {
    pub(super) config: Config,
    client: Option<Client>,
    /// The URLs of queues, by name.
    urls: HashMap<String, String>,
}

impl Sqs {
    pub(super) fn new(config: Config) -> Sqs {
        Sqs {
            config,
            client: None,
            urls: HashMap::new(),
        }
    }

    pub(super) async fn client(&mut self) -> Client {
        match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = client::open(&self.config).await;
                self.client.insert(client).clone()
            }
        }
    }

    /// Forgets what was known: connections that broke unseen, and queues that may have been made anew elsewhere.
    pub(super) fn begin_anew(&mut self) {
        self.client = None;
        self.urls.clear();
    }

    pub(super) async fn hand_over(&mut self, batch: &[Task]) -> Result<Vec<Outcome>, Outage> {
        let mut known = vec![None; batch.len()];
        let handed_over = self.hand_over_all(batch, &mut known).await;
        handed_over.map_err(|outage| {
            self.begin_anew();
            outage.amid(known)
        })
    }

    async fn hand_over_all(
        &mut self,
        batch: &[Task],
        known: &mut Vec<Option<Outcome>>,
    ) -> Result<Vec<Outcome>, Outage> {
        let client = self.client().await;
        let mut queues = Vec::with_capacity(batch.len());
        let mut absent = HashMap::new();
        for (task, known) in batch.iter().zip(known.iter_mut()) {
            queues.push(match self.queue_of(&client, task, &mut absent).await? {
                Ok(url) => Some(url),
                Err(outcome) => {
                    *known = Some(outcome);
                    None
                }
            });
        }
        let mut flow = Flow {
            config: &self.config,
            client: &client,
            batch,
            queues,
            known,
            order: Order::new(batch),
            ready: BTreeMap::new(),
            alone: HashSet::new(),
        };
        flow.send().await?;
        Ok(flow.order.outcomes())
    }

    /// The URL of the queue that a task goes to, or what becomes of it without one.
    async fn queue_of(
        &mut self,
        client: &Client,
        task: &Task,
        absent: &mut HashMap<String, Cause>,
    ) -> Result<Result<String, Outcome>, Outage> {
        let name = match name_of(&self.config, task) {
            Ok(name) => name.into_owned(),
            Err(unfit) => return Ok(Err(Outcome::Reject(Cause::new(unfit.into_words())))),
        };
        if let Some(cause) = absent.get(&name) {
            return Ok(Err(Outcome::Retry(cause.clone())));
        }
        match self.url(client, &name).await {
            Ok(url) => Ok(Ok(url)),
            Err(Verdict::Away(cause)) => Err(Outage::new(cause)),
            Err(Verdict::Message(cause) | Verdict::Later(cause)) => {
                absent.insert(name, cause.clone());
                Ok(Err(Outcome::Retry(cause)))
            }
        }
    }

    /// The URL of a queue.
    pub(super) async fn url(&mut self, client: &Client, name: &str) -> Result<String, Verdict> {
        if queue::is_url(name) {
            return Ok(name.to_owned());
        }
        if let Some(url) = self.urls.get(name) {
            return Ok(url.clone());
        }
        let answer = client.get_queue_url().queue_name(name).send().await;
        let answer = answer.map_err(|error| client::verdict(&error))?;
        let url = answer.queue_url().unwrap_or_default().to_owned();
        self.urls.insert(name.to_owned(), url.clone());
        Ok(url)
    }
}

/// A task's queue, by name or URL.
fn name_of<'t>(config: &'t Config, task: &'t Task) -> Result<Cow<'t, str>, Unfit> {
    let Some(own) = task.text(Field::Queue) else {
        let name = config.queue.name(task, "queue")?;
        if !queue::is_url(&name) {
            queue::check(&name).map_err(|words| Unfit::new(format!("the queue {words}")))?;
        }
        return Ok(name);
    };
    queue::check(own).map_err(|words| Unfit::new(format!("queue {words}")))?;
    if queue::is_fifo(own) != config.is_fifo() {
        return Err(Unfit::new(
            "queue is FIFO and the sink's is not, or the other way round: give each kind a sink of its own",
        ));
    }
    Ok(Cow::Borrowed(own))
}

/// A batch on its way.
struct Flow<'b> {
    config: &'b Config,
    client: &'b Client,
    batch: &'b [Task],
    /// The URL of each task's queue.
    queues: Vec<Option<String>>,
    known: &'b mut Vec<Option<Outcome>>,
    order: Order,
    /// Tasks that may be sent, by the URL of their queue.
    ready: BTreeMap<String, VecDeque<usize>>,
    /// Tasks that go in a request of their own, since one of theirs was refused as a whole.
    alone: HashSet<usize>,
}

/// What a request was about, and what was said to it.
struct Answer {
    tasks: Vec<usize>,
    said: Result<SendMessageBatchOutput, Verdict>,
}

impl Flow<'_> {
    /// Sends until everything is settled.
    async fn send(&mut self) -> Result<(), Outage> {
        let mut under_way = FuturesUnordered::new();
        let mut away = None;
        loop {
            self.see_what_is_ready();
            while away.is_none() && under_way.len() < self.config.side_by_side() {
                let Some((url, entries, tasks)) = self.request() else {
                    break;
                };
                let client = self.client;
                under_way.push(async move {
                    let request = client.send_message_batch().queue_url(url);
                    let said = request.set_entries(Some(entries)).send().await;
                    let said = said.map_err(|error| client::verdict(&error));
                    Answer { tasks, said }
                });
                self.see_what_is_ready();
            }
            match under_way.next().await {
                None => return away.map_or(Ok(()), Err),
                Some(answer) => away = self.hear(answer).err().or(away),
            }
        }
    }

    fn see_what_is_ready(&mut self) {
        while let Some(index) = self.order.take() {
            let known = self.known.get(index).cloned().flatten();
            let queue = self.queues.get(index).cloned().flatten();
            match (known, queue) {
                (Some(outcome), _) => self.order.settle(index, outcome),
                (None, Some(url)) => self.ready.entry(url).or_default().push_back(index),
                (None, None) => self.settle(index, later("it has no queue")),
            }
        }
    }

    /// The next request: queue, entries, tasks. Entries are called after the index of their task.
    fn request(&mut self) -> Option<(String, Vec<SendMessageBatchRequestEntry>, Vec<usize>)> {
        loop {
            let (url, mut ready) = self.ready.pop_first()?;
            let (mut entries, mut tasks, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(index) = ready.pop_front() {
                match self.entry(index, MOST_BYTES - bytes) {
                    Err(outcome) => self.settle(index, outcome),
                    // No room: it is the first of the next request.
                    Ok(None) => {
                        ready.push_front(index);
                        break;
                    }
                    Ok(Some((entry, size))) => {
                        entries.push(entry);
                        tasks.push(index);
                        bytes += size;
                    }
                }
                let next_is_alone = ready.front().is_some_and(|next| self.alone.contains(next));
                if entries.len() == MOST_MESSAGES || next_is_alone || self.alone.contains(&index) {
                    break;
                }
            }
            if !ready.is_empty() {
                self.ready.insert(url.clone(), ready);
            }
            if !entries.is_empty() {
                return Some((url, entries, tasks));
            }
        }
    }

    /// A task as an entry, and its size; nothing, if it needs more than there is room.
    fn entry(
        &self,
        index: usize,
        room: usize,
    ) -> Result<Option<(SendMessageBatchRequestEntry, usize)>, Outcome> {
        let Some(task) = self.batch.get(index) else {
            return Err(later("it is not in the batch"));
        };
        let Config { format, source, .. } = self.config;
        let fifo = self.config.is_fifo();
        let message = Message::new(task, *format, source, fifo, clock::now());
        let message = message.map_err(|unfit| Outcome::Reject(Cause::new(unfit.into_words())))?;
        let size = message.size();
        if size > room {
            return Ok(None);
        }
        let mut entry = SendMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .message_body(message.body)
            .set_delay_seconds(message.delay);
        for (name, value) in message.attributes {
            let attribute = MessageAttributeValue::builder()
                .data_type("String")
                .string_value(value);
            if let Ok(attribute) = attribute.build() {
                entry = entry.message_attributes(name, attribute);
            }
        }
        if let Some((group, id)) = message.fifo {
            entry = entry.message_group_id(group).message_deduplication_id(id);
        }
        let entry = entry
            .build()
            .map_err(|_| later("no entry can be made of it"))?;
        Ok(Some((entry, size)))
    }

    /// Settles the tasks of a request.
    fn hear(&mut self, answer: Answer) -> Result<(), Outage> {
        let Answer { tasks, said } = answer;
        let said = match said {
            Ok(said) => said,
            Err(Verdict::Away(cause)) => return Err(Outage::new(cause)),
            Err(Verdict::Message(_)) if tasks.len() > 1 => {
                for index in tasks {
                    self.alone.insert(index);
                    if let Some(url) = self.queues.get(index).cloned().flatten() {
                        self.ready.entry(url).or_default().push_back(index);
                    }
                }
                return Ok(());
            }
            Err(verdict) => {
                tasks
                    .into_iter()
                    .for_each(|index| self.settle(index, outcome(verdict.clone())));
                return Ok(());
            }
        };
        let mut refused: HashMap<&str, Verdict> = HashMap::new();
        for entry in said.failed() {
            let verdict = verdict::of_entry(entry.code(), entry.sender_fault());
            refused.insert(entry.id(), verdict);
        }
        let sent: HashSet<&str> = said.successful().iter().map(|entry| entry.id()).collect();
        for index in tasks {
            let id = index.to_string();
            let outcome = match refused.remove(id.as_str()) {
                Some(verdict) => outcome(verdict),
                None if sent.contains(id.as_str()) => Outcome::Delivered,
                None => later("SQS has said nothing about it"),
            };
            self.settle(index, outcome);
        }
        Ok(())
    }

    fn settle(&mut self, index: usize, outcome: Outcome) {
        if let Some(known) = self.known.get_mut(index) {
            *known = Some(outcome.clone());
        }
        self.order.settle(index, outcome);
    }
}

fn outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Message(cause) => Outcome::Reject(cause),
        Verdict::Later(cause) | Verdict::Away(cause) => Outcome::Retry(cause),
    }
}

fn later(words: &'static str) -> Outcome {
    Outcome::Retry(Cause::new(words))
}
