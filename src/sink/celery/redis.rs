//! Celery over Redis: a batch becomes one MULTI.

use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout};

use super::Config;
use super::batch::{Batch, Group};
use super::connection::{Connection, Trouble};
use super::outcome::{Verdict, judge, outage};
use super::resp::{self, Reply};
use super::url::Address;
use crate::clock;
use crate::envelope::celery::{Defaults, Message};
use crate::envelope::kombu::Lists;
use crate::outbox::Task;
use crate::sink::{Cause, Delivery, Outage, Outcome, Sink};

/// The message carries its eta, and a worker keeps it in memory, unacknowledged, until then: good for a short while. What
/// is further ahead would fill the workers, and come again and again once the broker's visibility timeout is over.
const KEPT_BY_WORKERS: Duration = Duration::from_secs(2);
/// The bindings of an exchange are asked for again after this.
const BINDINGS_FRESH: Duration = Duration::from_secs(1);

/// Pushes tasks to the lists that kombu's Redis transport reads.
pub struct Redis {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    defaults: Defaults,
    lists: Lists,
    /// In nobody's hands while a batch is under way: a batch that is dropped midway takes its connection with it.
    connection: Option<Connection>,
    /// By exchange: when they were asked for, and what came; an outcome, where we cannot read them.
    bindings: HashMap<String, (Instant, Result<Vec<String>, Outcome>)>,
    batch: Batch,
}

impl Redis {
    pub(super) fn new(address: Address, tls: Option<Arc<ClientConfig>>, config: &Config) -> Redis {
        Redis {
            address,
            tls,
            timeout: config.timeout,
            defaults: Defaults {
                queue: config.queue.clone(),
                origin: "aftercommit".to_owned(),
            },
            lists: Lists {
                prefix: config.global_keyprefix.clone(),
                separator: config.sep.clone(),
                steps: config.priority_steps.clone(),
            },
            connection: None,
            bindings: HashMap::new(),
            batch: Batch::default(),
        }
    }

    async fn push(&mut self, tasks: &[Task]) -> Result<Vec<Outcome>, Outage> {
        let mut connection = self.connect().await?;
        self.bindings
            .retain(|_, (asked, _)| asked.elapsed() < BINDINGS_FRESH);
        let mut forbidden = HashMap::new();
        let outcomes = loop {
            let (mut outcomes, unknown) = self.encode(tasks, &forbidden);
            if !unknown.is_empty() {
                self.ask_bindings(&mut connection, unknown).await?;
                continue;
            }
            let groups = self.batch.groups();
            let refused = match groups {
                [] => break outcomes,
                groups => send(&mut connection, groups).await,
            };
            match refused.map_err(|trouble| outage(trouble, &self.address))? {
                Sent::Applied(refusals) => {
                    retry_refused(groups, &refusals, &mut outcomes);
                    break outcomes;
                }
                // Nothing was applied: once more, without the lists that are not for us.
                Sent::Aborted(refusals) => forbidden.extend(refusals),
                Sent::Outage(cause) => {
                    return Err(Outage(Cause::new(format!("{}: {cause}", self.address))));
                }
            }
        };
        self.connection = Some(connection);
        Ok(outcomes)
    }

    async fn connect(&mut self) -> Result<Connection, Outage> {
        if let Some(mut connection) = self.connection.take()
            && !connection.is_stale().await
        {
            return Ok(connection);
        }
        Connection::open(&self.address, self.tls.as_ref())
            .await
            .map_err(|trouble| outage(trouble, &self.address))
    }

    /// Encodes the batch into `self.batch`. Returns an outcome per task, as it will be once all is applied, and the
    /// exchanges whose bindings must be asked for first.
    fn encode(
        &mut self,
        tasks: &[Task],
        forbidden: &HashMap<Vec<u8>, Cause>,
    ) -> (Vec<Outcome>, HashSet<String>) {
        let now = clock::now();
        let mut unknown = HashSet::new();
        let mut outcomes = Vec::with_capacity(tasks.len());
        let mut stopped: HashSet<&[u8]> = HashSet::new();
        self.batch.clear();
        for (index, task) in tasks.iter().enumerate() {
            if !stopped.is_empty() && task.key().is_some_and(|key| stopped.contains(key)) {
                outcomes.push(Outcome::Retry(Cause::new(
                    "an earlier task of its key was not delivered",
                )));
                continue;
            }
            let outcome = match Message::new(task, &self.defaults, now) {
                Ok(message) if message.exchange.is_empty() => {
                    let queues = [&*message.routing_key];
                    self.batch
                        .add(&self.lists, &message, index, &queues, forbidden)
                }
                Ok(message) => match self.bindings.get(&*message.exchange) {
                    Some((_, Err(outcome))) => outcome.clone(),
                    Some((_, Ok(bindings))) => {
                        let mut queues: Vec<&str> = bindings
                            .iter()
                            .filter_map(|b| self.lists.bound_queue(b, &message.routing_key))
                            .collect();
                        queues.sort_unstable();
                        queues.dedup();
                        self.batch
                            .add(&self.lists, &message, index, &queues, forbidden)
                    }
                    None => {
                        unknown.insert(message.exchange.into_owned());
                        Outcome::Delivered
                    }
                },
                Err(unfit) => Outcome::Reject(Cause::new(unfit.into_words())),
            };
            if outcome != Outcome::Delivered {
                stopped.extend(task.key());
            }
            outcomes.push(outcome);
        }
        (outcomes, unknown)
    }

    async fn ask_bindings(
        &mut self,
        connection: &mut Connection,
        exchanges: HashSet<String>,
    ) -> Result<(), Outage> {
        let mut request = Vec::new();
        for exchange in &exchanges {
            let key = self.lists.bindings_key(exchange);
            resp::write_command(&mut request, &[b"SMEMBERS", key.as_bytes()]);
        }
        let replies = connection
            .ask(&[IoSlice::new(&request)], exchanges.len())
            .await
            .map_err(|trouble| outage(trouble, &self.address))?;
        let asked = Instant::now();
        for (exchange, reply) in exchanges.into_iter().zip(replies) {
            let bindings = match reply {
                Reply::Array(Some(members)) => Ok(members.into_iter().filter_map(text).collect()),
                Reply::Error(refusal) => {
                    match judge(&refusal, self.lists.bindings_key(&exchange).as_bytes()) {
                        Verdict::ListRetry(cause) => Err(Outcome::Retry(cause)),
                        Verdict::ListReject(cause) => Err(Outcome::Reject(cause)),
                        Verdict::Outage(_) => {
                            return Err(outage(Trouble::Refused(refusal), &self.address));
                        }
                    }
                }
                _ => return Err(outage(Trouble::NotRedis, &self.address)),
            };
            self.bindings.insert(exchange, (asked, bindings));
        }
        Ok(())
    }
}

impl Sink for Redis {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            let limit = self.timeout;
            let delivery = timeout(limit, self.push(batch)).await;
            self.batch.shrink();
            delivery.unwrap_or_else(|_| {
                let words = format!("{} has not answered within {limit:?}", self.address);
                Err(Outage(Cause::new(words)))
            })
        })
    }

    fn keeps(&self) -> Duration {
        KEPT_BY_WORKERS
    }
}

enum Sent {
    /// Applied, but for the lists that are listed with the reason.
    Applied(Vec<(usize, Cause)>),
    /// Nothing was applied, because of the lists that are listed.
    Aborted(Vec<(Vec<u8>, Cause)>),
    /// Nothing was applied.
    Outage(Cause),
}

async fn send(connection: &mut Connection, groups: &[Group]) -> Result<Sent, Trouble> {
    let mut frames = Vec::new();
    let mut ends = Vec::with_capacity(groups.len());
    resp::write_command(&mut frames, &[b"MULTI"]);
    for group in groups {
        resp::write_header(&mut frames, b'*', group.tasks.len() + 2);
        resp::write_bulk(&mut frames, b"LPUSH");
        resp::write_bulk(&mut frames, &group.list);
        ends.push(frames.len());
    }
    let mut request = Vec::with_capacity(2 * groups.len() + 1);
    let mut start = 0;
    for (group, end) in groups.iter().zip(ends) {
        request.push(IoSlice::new(frames.get(start..end).unwrap_or_default()));
        request.push(IoSlice::new(&group.messages));
        start = end;
    }
    let mut exec = Vec::new();
    resp::write_command(&mut exec, &[b"EXEC"]);
    request.push(IoSlice::new(&exec));
    let mut replies = connection.ask(&request, groups.len() + 2).await?;
    let executed = replies.pop();
    match (replies.first(), executed) {
        (Some(Reply::Simple(_)), Some(Reply::Array(Some(pushed))))
            if pushed.len() == groups.len() =>
        {
            Ok(applied(groups, &pushed))
        }
        (Some(Reply::Simple(_)), Some(Reply::Error(aborted))) => {
            let queued = replies.get(1..).unwrap_or_default();
            match refused(groups, queued) {
                Some(sent) => Ok(sent),
                // No command of ours was refused, but EXEC itself.
                None => Err(Trouble::Refused(aborted)),
            }
        }
        (Some(Reply::Error(refusal)), _) => Err(Trouble::Refused(refusal.clone())),
        _ => Err(Trouble::NotRedis),
    }
}

/// Reads EXEC's replies. A command that fails there does not undo the others.
fn applied(groups: &[Group], replies: &[Reply]) -> Sent {
    let mut refusals = Vec::new();
    for (at, (group, reply)) in groups.iter().zip(replies).enumerate() {
        if let Reply::Error(refusal) = reply {
            let cause = match judge(refusal, &group.list) {
                Verdict::Outage(cause) | Verdict::ListRetry(cause) | Verdict::ListReject(cause) => {
                    cause
                }
            };
            refusals.push((at, cause));
        }
    }
    Sent::Applied(refusals)
}

/// Reads the replies of commands that were to be queued, one of which at least was refused.
fn refused(groups: &[Group], replies: &[Reply]) -> Option<Sent> {
    let mut lists = Vec::new();
    for (group, reply) in groups.iter().zip(replies) {
        if let Reply::Error(refusal) = reply {
            match judge(refusal, &group.list) {
                Verdict::Outage(cause) => return Some(Sent::Outage(cause)),
                Verdict::ListRetry(cause) | Verdict::ListReject(cause) => {
                    lists.push((group.list.clone(), cause))
                }
            }
        }
    }
    (!lists.is_empty()).then_some(Sent::Aborted(lists))
}

fn retry_refused(groups: &[Group], refusals: &[(usize, Cause)], outcomes: &mut [Outcome]) {
    for (at, cause) in refusals {
        for task in groups.get(*at).map_or(&[][..], |group| &group.tasks) {
            if let Some(outcome) = outcomes.get_mut(*task) {
                *outcome = Outcome::Retry(cause.clone());
            }
        }
    }
}

fn text(member: Reply) -> Option<String> {
    match member {
        Reply::Bulk(Some(bytes)) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}
