//! The nodes of one cluster: at which of them a connection is tried, and when.
//!
//! The first is the one that had the last connection; the others follow as they stand in the URL, around (kombu's round robin).
//! One that cannot be reached, or refuses us, makes way at once. One that hangs makes way after a while, too, but stays in the
//! race: a slow one is better than none. A refused login makes way as well, as with kombu: each node has a login of its own in the
//! URL, and may ask another place about it. All of them together are an outage, which names the cause of each.
//!
//! A connection that breaks goes on at the next node, not at the same one: that would let us in again while its disk or its part of
//! the cluster is what hangs. It stays there until that one breaks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::link::{Link, Trouble};
use super::login::Limits;
use super::outcome::{late, outage};
use super::url::Address;
use crate::sink::broker_url::client_config;
use crate::sink::{Cause, Invalid, Outage};

/// When a node has not answered for so long, the next one is tried beside it. Long beside a login over a usual network.
const NEXT_AFTER: Duration = Duration::from_millis(500);
/// A node has so long to let us in, where there are others; kombu's own limit.
const PATIENCE: Duration = Duration::from_secs(4);

struct Node {
    address: Arc<Address>,
    tls: Option<Arc<ClientConfig>>,
    /// What was agreed on with it the last time.
    limits: Option<Limits>,
}

/// The nodes, of which there is one at least. The first one is tried first.
pub(in crate::sink) struct Nodes {
    all: VecDeque<Node>,
    /// Why the last connection is gone.
    lost: Option<Outage>,
}

impl Nodes {
    /// Reads the files that the URL names. `key` is the setting that holds it.
    pub(in crate::sink) fn new(
        key: &'static str,
        addresses: Vec<Address>,
    ) -> Result<Nodes, Invalid> {
        let node = |address: Address| {
            let tls = client_config(key, address.tls.as_ref())?;
            let address = Arc::new(address);
            Ok(Node {
                address,
                tls,
                limits: None,
            })
        };
        let all = addresses.into_iter().map(node);
        Ok(Nodes {
            all: all.collect::<Result<_, Invalid>>()?,
            lost: None,
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The last connection is gone: the next node's turn.
    pub(super) fn lost(&mut self, outage: Outage) {
        self.all.rotate_left(self.all.len().min(1));
        self.lost = Some(outage);
    }

    /// A new connection, to whichever node gives one. `patience`: how long an only one has to answer.
    ///
    /// # Errors
    /// No node does.
    pub(super) async fn connect(&mut self, patience: Duration) -> Result<Link, Outage> {
        let patience = self.patience(patience);
        let mut refusals = Vec::new();
        let link = {
            let mut waiting = self.all.iter_mut();
            let mut attempts = FuturesUnordered::new();
            loop {
                let next = waiting.next();
                let is_last = next.is_none();
                attempts.extend(next.map(|node| node.connect(patience)));
                tokio::select! {
                    biased;
                    answer = attempts.next() => match answer {
                        Some(Ok(link)) => break link,
                        Some(Err(outage)) => refusals.push(outage),
                        None => {
                            self.lost = None;
                            return Err(all_of(refusals));
                        }
                    },
                    () = sleep(NEXT_AFTER), if !is_last => {}
                }
            }
        };
        let lost = self.lost.take().filter(|_| self.count() > 1);
        let mut causes: Vec<Outage> = lost.into_iter().chain(refusals).collect();
        if causes.is_empty() {
            let passed = self.all.iter().map(|node| &node.address);
            let passed = passed.take_while(|address| !Arc::ptr_eq(address, &link.address));
            causes.extend(passed.map(|address| late(address, NEXT_AFTER)));
        }
        self.begin_at(&link);
        if !causes.is_empty() {
            let cause = all_of(causes);
            warn!(node = %link.address, %cause, "this node of the cluster is used now");
        }
        Ok(link)
    }

    /// A connection to each, in their order, or why there is none. The first one's may be there.
    pub(super) async fn connect_each(
        &mut self,
        first: Option<Link>,
        patience: Duration,
    ) -> Vec<Result<Link, Outage>> {
        let patience = self.patience(patience);
        let others = self.all.iter_mut().skip(usize::from(first.is_some()));
        let others = join_all(others.map(|node| node.connect(patience))).await;
        first.into_iter().map(Ok).chain(others).collect()
    }

    /// The node at which this one ends is tried first from now on.
    pub(super) fn begin_at(&mut self, link: &Link) {
        let is_its = |node: &Node| Arc::ptr_eq(&node.address, &link.address);
        if let Some(index) = self.all.iter().position(is_its) {
            self.all.rotate_left(index);
        }
    }

    /// How long each has to answer.
    fn patience(&self, of_one: Duration) -> Duration {
        match self.count() {
            1 => of_one,
            _ => of_one.min(PATIENCE),
        }
    }
}

impl Node {
    async fn connect(&mut self, patience: Duration) -> Result<Link, Outage> {
        // Gone when it does not work: then step by step.
        let known = self.limits.take();
        let open = Link::open(&self.address, self.tls.as_ref(), known);
        match timeout(patience, open).await {
            Ok(Ok((link, limits))) => {
                self.limits = Some(limits);
                Ok(link)
            }
            Ok(Err(trouble)) => {
                if let Trouble::Unreachable(_) = trouble {
                    self.limits = known;
                }
                Err(outage(trouble, &self.address))
            }
            Err(_) => Err(late(&self.address, patience)),
        }
    }
}

/// Several causes, as one.
fn all_of(outages: Vec<Outage>) -> Outage {
    let words: Vec<String> = outages.iter().map(Outage::to_string).collect();
    Outage::new(Cause::new(words.join("; ")))
}
