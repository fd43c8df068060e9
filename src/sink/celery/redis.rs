//! Celery over Redis: the connection, and how it stands with the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::Config;
use super::batch::Batch;
use super::ledger::{self, Claim};
use super::parts::PART;
use super::refusals::{WORDING, outage, refused};
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
pub(super) const BINDINGS_FRESH: Duration = Duration::from_secs(1);

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
    pub(super) link: Option<Link>,
    pub(super) memory: Memory,
    /// It was said that marks are refused.
    complained: bool,
    pub(super) bindings: Bindings,
    pub(super) batch: Batch,
    /// Buffers, for the next part.
    pub(super) spare: Batch,
    /// Tasks in the next part.
    pub(super) part: usize,
    /// Of the batch that is under way, or has failed: what was applied, noted and answered.
    pub(super) answered: Vec<Mark>,
}

/// By exchange: when its bindings were asked for, and what came; an outcome, where we cannot read them.
pub(super) type Bindings = HashMap<String, (Instant, Result<Vec<String>, Outcome>)>;

/// A connection, and how it stands with the ledger.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) ledger: Ledger,
}

pub(super) enum Ledger {
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
            spare: Batch::default(),
            part: PART,
            answered: Vec::new(),
        }
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
    pub(super) async fn open_ledger(
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
    pub(super) fn there(&self, marks: &[Mark]) -> Vec<bool> {
        if self.memory.is_blank() {
            return Vec::new();
        }
        marks.iter().map(|mark| self.memory.has(mark)).collect()
    }

    /// Marks are not for us here, as long as this connection lasts: tasks go without.
    pub(super) fn refuse_marks(&mut self, link: &mut Link, refusal: &Refusal) {
        link.ledger = Ledger::Refused;
        if !std::mem::replace(&mut self.complained, true) {
            let cause = refused(refusal);
            warn!(redis = %self.address, cause, "Redis keeps no marks for us: a lost answer or a crash may send tasks twice");
        }
    }

    pub(super) fn contested(&self) -> Outage {
        let words = "another daemon with the same slot and sink writes to it, or our marks are taken away all the time";
        Outage::new(Cause::new(format!("{}: {words}", self.address)))
    }
}

impl Redis {
    async fn push_in_time(
        &mut self,
        batch: &[Task],
        terms: Option<Terms>,
    ) -> Result<Vec<Outcome>, Outage> {
        let limit = self.timeout;
        let delivery = timeout(limit, self.push(batch, terms.as_ref())).await;
        self.batch.shrink();
        self.spare.shrink();
        delivery.unwrap_or_else(|_| {
            let words = format!("{} has not answered within {limit:?}", self.address);
            Err(Outage::new(Cause::new(words)))
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
