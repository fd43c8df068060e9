//! From a batch of tasks to scripts, and from their answers to outcomes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;
use tracing::{debug, info};

use super::batch::Group;
use super::form::Form;
use super::ledgers::Ledgers;
use crate::clock;
use crate::envelope::Unfit;
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::marks::{Mark, Scope, Terms};
use crate::sink::redis_client::nodes::Nodes;
use crate::sink::redis_client::resp;
use crate::sink::redis_client::servers::Servers;
use crate::sink::redis_client::slots::slot;
use crate::sink::{Cause, Delivery, Outage, Outcome, Probe, Sink};

/// Keys of ours. No row is to write there.
const OURS: &[u8] = b"aftercommit:";
/// What the buffers have grown to beyond this is given back after the batch.
const BUFFERS_KEPT: usize = 4 << 20;

/// Adds tasks to what is in Redis, in the form that it is given.
pub(in crate::sink) struct Pusher {
    pub(super) nodes: Nodes,
    pub(super) timeout: Duration,
    pub(super) form: Box<dyn Form>,
    pub(super) replicas: u32,
    /// WAIT, where there are replicas to wait for.
    pub(super) wait: Vec<u8>,
    pub(super) ledgers: Ledgers,
    /// A batch has not come to its end.
    midway: bool,
    pub(super) groups: Vec<Group>,
}

/// How it stands with a batch.
pub(super) struct Progress<'t> {
    tasks: &'t [Task],
    pub(super) terms: Option<&'t Terms>,
    now: Timestamp,
    /// Of each task.
    pub(super) marks: Vec<Mark>,
    targets: Vec<Target>,
    pub(super) outcomes: Vec<Option<Outcome>>,
    /// Keys of tasks of which one was not delivered.
    stopped: HashSet<&'t [u8]>,
    /// Places that are not for us.
    pub(super) forbidden: HashMap<Vec<u8>, Outcome>,
    /// Slots whose ledger was taken from us in this batch.
    pub(super) fenced: HashSet<u16>,
    /// Tasks that were there already, and their slots.
    pub(super) had: u64,
    pub(super) had_at: HashSet<u16>,
    /// Tasks that their streams were beyond.
    pub(super) late: u64,
}

/// Where a task goes.
struct Target {
    place: Result<Vec<u8>, Unfit>,
    slot: u16,
}

impl Pusher {
    pub(in crate::sink) fn new(
        servers: Servers,
        tls: Option<Arc<ClientConfig>>,
        form: Box<dyn Form>,
        replicas: u32,
        timeout: Duration,
    ) -> Pusher {
        let mut wait = Vec::new();
        if replicas > 0 {
            let arguments = [
                b"WAIT".to_vec(),
                replicas.to_string().into_bytes(),
                (timeout.as_millis() / 2).to_string().into_bytes(),
            ];
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            resp::write_command(&mut wait, &arguments);
        }
        let nodes = Nodes::new(servers, tls, form.wording());
        Pusher {
            ledgers: Ledgers::new(nodes.is_cluster()),
            nodes,
            timeout,
            form,
            replicas,
            wait,
            midway: false,
            groups: Vec::new(),
        }
    }

    async fn push(
        &mut self,
        tasks: &[Task],
        terms: Option<&Terms>,
    ) -> Result<Vec<Outcome>, Outage> {
        if std::mem::replace(&mut self.midway, true) {
            self.ledgers.interrupt();
        }
        let marks = match terms {
            Some(_) => tasks.iter().map(Mark::of).collect(),
            None => Vec::new(),
        };
        let now = clock::now();
        let mut progress = Progress {
            tasks,
            terms,
            now,
            marks,
            targets: tasks.iter().map(|task| self.target(task, now)).collect(),
            outcomes: vec![None; tasks.len()],
            stopped: HashSet::new(),
            forbidden: HashMap::new(),
            fenced: HashSet::new(),
            had: 0,
            had_at: HashSet::new(),
            late: 0,
        };
        loop {
            if let Some(terms) = terms {
                let closed = self.closed(&progress, &terms.scope);
                if !closed.is_empty() {
                    self.ledgers.open(&mut self.nodes, &closed, terms).await?;
                }
            }
            self.gather(&mut progress);
            if self.groups.iter().all(|group| group.tasks.is_empty()) {
                break;
            }
            self.send(&mut progress).await?;
        }
        self.see_to_replicas(&progress).await?;
        if progress.had > 0 {
            info!(redis = %self.nodes.servers(), tasks = progress.had, "had them already; not sent again");
        }
        if progress.late > 0 {
            debug!(redis = %self.nodes.servers(), tasks = progress.late, "the stream was beyond them; added behind its last entry");
        }
        self.ledgers.end();
        self.midway = false;
        let unknown = || Outcome::Retry(Cause::new("it was not sent"));
        let outcomes = progress.outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or_else(unknown))
            .collect())
    }

    fn target(&self, task: &Task, now: Timestamp) -> Target {
        let mut key = Vec::new();
        let written = self.form.place(task, now, &mut key);
        let allowed = match key.starts_with(OURS) {
            true => Err(Unfit::new(
                "names that begin with aftercommit: are the daemon's own",
            )),
            false => Ok(()),
        };
        let slot = if self.nodes.is_cluster() {
            slot(&key)
        } else {
            0
        };
        Target {
            place: written.and(allowed).map(|()| key),
            slot,
        }
    }

    /// The slots whose ledgers must be opened before anything is gathered: what waits for them must not be overtaken, not even by
    /// the outcome of a later task of its key.
    fn closed(&mut self, progress: &Progress<'_>, scope: &Scope) -> Vec<u16> {
        let mut closed = Vec::new();
        for (outcome, target) in progress.outcomes.iter().zip(&progress.targets) {
            if outcome.is_none()
                && let Ok(place) = &target.place
                && !progress.forbidden.contains_key(place)
                && !closed.contains(&target.slot)
                && !self.ledgers.is_open(target.slot, scope)
            {
                closed.push(target.slot);
            }
        }
        closed
    }

    /// Gathers into groups what is to be sent now.
    fn gather(&mut self, progress: &mut Progress<'_>) {
        let mut used = 0;
        // Of keys: the slot that their tasks go to now. Those for other slots go after them.
        let mut sides: HashMap<&[u8], Option<u16>> = HashMap::new();
        let tasks = progress.tasks;
        for (index, task) in tasks.iter().enumerate() {
            let (Some(None), Some(target)) =
                (progress.outcomes.get(index), progress.targets.get(index))
            else {
                continue;
            };
            let side = task.key().and_then(|key| sides.get(key));
            if side == Some(&None) {
                continue;
            }
            let outcome = match &target.place {
                _ if task.key().is_some_and(|key| progress.stopped.contains(key)) => Some(
                    Outcome::Retry(Cause::new("an earlier task of its key was not delivered")),
                ),
                Err(unfit) => Some(Outcome::Reject(Cause::new(unfit.clone().into_words()))),
                Ok(place) => progress.forbidden.get(place).cloned(),
            };
            if let Some(outcome) = outcome {
                progress.stopped.extend(task.key());
                put(&mut progress.outcomes, index, outcome);
                continue;
            }
            let Ok(place) = &target.place else { continue };
            if progress.terms.is_some() {
                let memory = &self.ledgers.of(target.slot).memory;
                if !memory.is_blank()
                    && progress
                        .marks
                        .get(index)
                        .is_some_and(|mark| memory.has(mark))
                {
                    progress.had += 1;
                    progress.had_at.insert(target.slot);
                    put(&mut progress.outcomes, index, Outcome::Delivered);
                    continue;
                }
            }
            if self.nodes.is_cluster()
                && let Some(key) = task.key()
            {
                let side = sides.entry(key).or_insert(Some(target.slot));
                if *side != Some(target.slot) {
                    *side = None;
                    continue;
                }
            }
            let at = self
                .groups
                .iter()
                .take(used)
                .position(|group| group.slot == target.slot);
            let at = at.unwrap_or_else(|| {
                if used == self.groups.len() {
                    self.groups.push(Group::default());
                }
                if let Some(group) = self.groups.get_mut(used) {
                    group.begin(target.slot);
                }
                used += 1;
                used - 1
            });
            let Some(group) = self.groups.get_mut(at) else {
                continue;
            };
            let added = group.add(&*self.form, place, (task, index), progress.now);
            if let Err(unfit) = added {
                progress.stopped.extend(task.key());
                let cause = Cause::new(unfit.into_words());
                put(&mut progress.outcomes, index, Outcome::Reject(cause));
            }
        }
        for (at, group) in self.groups.iter_mut().enumerate() {
            match at < used {
                true => group.end_run(),
                false => group.begin(0),
            }
        }
    }
}

impl Pusher {
    async fn push_in_time(
        &mut self,
        batch: &[Task],
        terms: Option<Terms>,
    ) -> Result<Vec<Outcome>, Outage> {
        let limit = self.timeout;
        let delivery = timeout(limit, self.push(batch, terms.as_ref())).await;
        self.give_back_buffers();
        let delivery = delivery.unwrap_or_else(|_| {
            let words = format!("{} has not answered within {limit:?}", self.nodes.servers());
            Err(Outage(Cause::new(words)))
        });
        if delivery.is_err() {
            self.nodes.forget();
        }
        delivery
    }

    fn give_back_buffers(&mut self) {
        let mut kept = 0;
        self.groups.retain(|group| {
            kept += group.body.capacity();
            kept <= BUFFERS_KEPT
        });
    }
}

impl Sink for Pusher {
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
        self.form.keeps()
    }
}

pub(super) fn put(outcomes: &mut [Option<Outcome>], index: usize, outcome: Outcome) {
    if let Some(place) = outcomes.get_mut(index) {
        *place = Some(outcome);
    }
}
