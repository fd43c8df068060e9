//! Celery over Redis: a batch becomes one MULTI.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::Config;
use super::batch::Batch;
use super::ledger::{self, Claim, Entry};
use super::refusals::{WORDING, outage, refused};
use super::transaction::{Sent, Transaction};
use crate::envelope::celery::Defaults;
use crate::envelope::kombu::Lists;
use crate::outbox::Task;
use crate::sink::marks::{Mark, Memory, Terms};
use crate::sink::redis_client::connection::Connection;
use crate::sink::redis_client::resp::Refusal;
use crate::sink::redis_client::sentinel;
use crate::sink::redis_client::servers::Servers;
use crate::sink::redis_client::url::Address;
use crate::sink::{Cause, Delivery, Outage, Outcome, Probe, Sink};

/// The message carries its eta, and a worker keeps it in memory, unacknowledged, until then: good for a short while. What
/// is further ahead would fill the workers, and come again and again once the broker's visibility timeout is over.
const KEPT_BY_WORKERS: Duration = Duration::from_secs(2);
/// Whether we may use transactions: where MULTI is refused, the commands after it are not, and a batch that counts as not
/// applied would be, at every attempt.
const TRIAL: &[&[u8]] = &[b"MULTI", b"EXEC"];
/// The bindings of an exchange are asked for again after this.
const BINDINGS_FRESH: Duration = Duration::from_secs(1);

/// Pushes tasks to the lists that kombu's Redis transport reads.
pub struct Redis {
    servers: Servers,
    /// Where the primary is, or was.
    pub(super) address: Address,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    pub(super) defaults: Defaults,
    pub(super) lists: Lists,
    /// In nobody's hands while a batch is under way: a batch that is dropped midway takes its connection with it.
    link: Option<Link>,
    memory: Memory,
    /// It was said that marks are refused.
    complained: bool,
    /// By exchange: when they were asked for, and what came; an outcome, where we cannot read them.
    pub(super) bindings: HashMap<String, (Instant, Result<Vec<String>, Outcome>)>,
    pub(super) batch: Batch,
}

/// A connection, and how it stands with the ledger.
pub(super) struct Link {
    pub(super) connection: Connection,
    ledger: Ledger,
}

enum Ledger {
    /// Not looked at yet.
    Closed,
    /// Ours, under this name.
    Ours(String),
    /// We may not write there.
    Refused,
}

impl Redis {
    pub(super) fn new(servers: Servers, tls: Option<Arc<ClientConfig>>, config: &Config) -> Redis {
        Redis {
            address: servers.login().clone(),
            servers,
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
            link: None,
            memory: Memory::default(),
            complained: false,
            bindings: HashMap::new(),
            batch: Batch::default(),
        }
    }

    async fn push(&mut self, tasks: &[Task], terms: Option<Terms>) -> Result<Vec<Outcome>, Outage> {
        let mut link = self.connect().await?;
        self.bindings
            .retain(|_, (asked, _)| asked.elapsed() < BINDINGS_FRESH);
        let mut forbidden = HashMap::new();
        let mut gone: Option<Vec<u64>> = None;
        let mut fenced = false;
        let outcomes = loop {
            let marked = match &terms {
                Some(terms) => self.open_ledger(&mut link, terms).await?.map(|owner| {
                    let marks: Vec<Mark> = tasks.iter().map(Mark::of).collect();
                    (terms, owner, marks)
                }),
                None => None,
            };
            let there = marked.as_ref().map(|(.., marks)| self.there(marks));
            let there = there.unwrap_or_default();
            let mut transaction = Transaction::default();
            let on_its_way = (&mut transaction, &mut link.connection);
            let encoded = self.encode(tasks, &there, &forbidden, on_its_way).await;
            let trouble = |trouble| outage(trouble, &self.address);
            let (mut outcomes, unknown) = encoded.map_err(trouble)?;
            if !unknown.is_empty() {
                let discarded = transaction.discard(&mut link.connection).await;
                if discarded.map_err(trouble)? && matches!(link.ledger, Ledger::Ours(_)) {
                    link.ledger = Ledger::Closed;
                }
                self.ask_bindings(&mut link.connection, unknown).await?;
                continue;
            }
            let groups = self.batch.groups();
            if groups.is_empty() {
                self.tell_skipped(&there);
                break outcomes;
            }
            let entry = marked.as_ref().map(|(terms, owner, marks)| {
                let gone = gone.get_or_insert_with(|| self.memory.forget(terms.settled));
                let sent = groups.iter().flat_map(|group| &group.tasks);
                let sent = sent.filter_map(|index| marks.get(*index));
                let number = self.memory.sends(sent, terms.turn);
                let key = ledger::key(&self.lists.prefix, &terms.scope);
                Entry::new(key, owner.clone(), number, groups, marks, gone)
            });
            let answer = transaction
                .end(&mut link.connection, groups, entry.as_ref())
                .await;
            let answer = answer.map_err(|trouble| outage(trouble, &self.address))?;
            if !answer.is_ours && matches!(link.ledger, Ledger::Ours(_)) {
                link.ledger = Ledger::Closed;
            }
            if entry.is_some() && !matches!(answer.sent, Sent::Applied { .. }) {
                self.memory.refused();
            }
            match answer.sent {
                Sent::Applied { refusals, noted } => {
                    for (at, cause) in refusals {
                        for task in groups.get(at).map_or(&[][..], |group| &group.tasks) {
                            if let Some(outcome) = outcomes.get_mut(*task) {
                                *outcome = Outcome::Retry(cause.clone());
                            }
                        }
                    }
                    match noted {
                        Some(Ok(bytes)) => self.memory.applied(bytes),
                        Some(Err(refusal)) => {
                            self.memory.refused();
                            self.refuse_marks(&mut link, &refusal);
                        }
                        None => {}
                    }
                    self.tell_skipped(&there);
                    break outcomes;
                }
                // Nothing was applied: once more, without the lists that are not for us.
                Sent::Aborted(refusals) => forbidden.extend(refusals),
                // Nothing was applied: once more, without a mark.
                Sent::Unmarked(refusal) => self.refuse_marks(&mut link, &refusal),
                // Nothing was applied: somebody else has written into the ledger, or it is gone. Once more, after a look.
                Sent::Fenced if !fenced => {
                    link.ledger = Ledger::Closed;
                    fenced = true;
                }
                Sent::Fenced => {
                    link.ledger = Ledger::Closed;
                    self.link = Some(link);
                    return Err(self.contested());
                }
                Sent::Outage(cause) => {
                    return Err(Outage(Cause::new(format!("{}: {cause}", self.address))));
                }
            }
        };
        self.link = Some(link);
        Ok(outcomes)
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether another server may take its place.
    pub(super) fn fails_over(&self) -> bool {
        matches!(self.servers, Servers::Sentinel { .. })
    }

    /// The queue of tasks that name none.
    pub(super) fn queue(&self) -> &str {
        &self.defaults.queue
    }

    /// Its list.
    pub(super) fn queue_key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        self.lists.write_key(&mut key, &self.defaults.queue, 0);
        key
    }

    pub(super) async fn connect(&mut self) -> Result<Link, Outage> {
        if let Some(mut link) = self.link.take()
            && !link.connection.is_stale().await
        {
            return Ok(link);
        }
        if let Servers::Sentinel {
            sentinels, service, ..
        } = &mut self.servers
        {
            let found = sentinel::primary(sentinels, service, self.tls.as_ref()).await;
            let place = found.place(&self.servers, &WORDING)?;
            self.address = self.servers.login_at(&place);
        }
        let connection = Connection::open(&self.address, self.tls.as_ref(), TRIAL)
            .await
            .map_err(|trouble| outage(trouble, &self.address))?;
        Ok(Link {
            connection,
            ledger: Ledger::Closed,
        })
    }

    /// Makes the ledger of the batch's scope ours, and reads what we don't know of it. The name under which it is ours, or
    /// `None` where we may not have one.
    async fn open_ledger(
        &mut self,
        link: &mut Link,
        terms: &Terms,
    ) -> Result<Option<String>, Outage> {
        let is_new = self.memory.enter(&terms.scope);
        match &link.ledger {
            Ledger::Ours(owner) if !is_new => return Ok(Some(owner.clone())),
            Ledger::Refused => return Ok(None),
            Ledger::Ours(_) | Ledger::Closed => {}
        }
        link.ledger = Ledger::Closed;
        let key = ledger::key(&self.lists.prefix, &terms.scope);
        let trouble = |trouble| outage(trouble, &self.address);
        let in_doubt = self.memory.in_doubt();
        let claim = ledger::claim(&mut link.connection, &key, in_doubt).await;
        let (owner, there, doubtful) = match claim.map_err(trouble)? {
            Claim::Ours {
                owner,
                there,
                doubtful,
            } => (owner, there, doubtful),
            Claim::Contested => return Err(self.contested()),
            Claim::Refused(refusal) => {
                self.refuse_marks(link, &refusal);
                return Ok(None);
            }
        };
        let mut unread = self.memory.unread(there);
        let known = in_doubt.zip(doubtful);
        unread.retain(|number| known.as_ref().is_none_or(|(known, _)| known != number));
        let read = ledger::read(&mut link.connection, &key, unread).await;
        let notes = read.map_err(trouble)?.into_iter().chain(known);
        self.memory.recall(notes);
        link.ledger = Ledger::Ours(owner.clone());
        Ok(Some(owner))
    }

    /// Which tasks are there already; empty when none can be.
    fn there(&self, marks: &[Mark]) -> Vec<bool> {
        if self.memory.is_blank() {
            return Vec::new();
        }
        marks.iter().map(|mark| self.memory.has(mark)).collect()
    }

    fn tell_skipped(&self, there: &[bool]) {
        let tasks = there.iter().filter(|there| **there).count();
        if tasks > 0 {
            info!(redis = %self.address, tasks, "had them already; not sent again");
        }
    }

    /// Marks are not for us here, as long as this connection lasts: tasks go without.
    fn refuse_marks(&mut self, link: &mut Link, refusal: &Refusal) {
        link.ledger = Ledger::Refused;
        if !std::mem::replace(&mut self.complained, true) {
            let cause = refused(refusal);
            warn!(redis = %self.address, cause, "Redis keeps no marks for us: a lost answer or a crash may send tasks twice");
        }
    }

    fn contested(&self) -> Outage {
        let words = "another daemon with the same slot and sink writes to it, or our marks are taken away all the time";
        Outage(Cause::new(format!("{}: {words}", self.address)))
    }
}

impl Redis {
    async fn push_in_time(
        &mut self,
        batch: &[Task],
        terms: Option<Terms>,
    ) -> Result<Vec<Outcome>, Outage> {
        let limit = self.timeout;
        let delivery = timeout(limit, self.push(batch, terms)).await;
        self.batch.shrink();
        delivery.unwrap_or_else(|_| {
            let words = format!("{} has not answered within {limit:?}", self.address);
            Err(Outage(Cause::new(words)))
        })
    }
}

impl Sink for Redis {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.push_in_time(batch, None))
    }

    fn deliver_once<'a>(&'a mut self, batch: &'a [Task], terms: Terms) -> Delivery<'a> {
        Box::pin(self.push_in_time(batch, Some(terms)))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(self.look())
    }

    fn keeps(&self) -> Duration {
        KEPT_BY_WORKERS
    }
}
