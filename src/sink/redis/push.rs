//! From a batch of tasks to scripts, and from their answers to outcomes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;
use tracing::{debug, info};

use super::batch::Group;
use super::form::{Fit, Form};
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
    pub(super) form: Arc<dyn Form>,
    pub(super) replicas: u32,
    /// WAIT, where there are replicas to wait for.
    pub(super) wait: Vec<u8>,
    pub(super) ledgers: Ledgers,
    /// A batch has not come to its end.
    midway: bool,
    pub(super) groups: Vec<Group>,
    /// A buffer, for the next part.
    pub(super) spare: Vec<u8>,
}

/// How it stands with a batch.
pub(super) struct Progress<'t> {
    tasks: &'t [Task],
    form: &'t dyn Form,
    pub(super) terms: Option<&'t Terms>,
    now: Timestamp,
    /// Of each task.
    pub(super) marks: Vec<Mark>,
    /// In a cluster, where each task goes.
    targets: Vec<Target<'t>>,
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
struct Target<'t> {
    fit: Result<Fit<'t>, Unfit>,
    place: Vec<u8>,
    slot: u16,
}

impl<'t> Target<'t> {
    /// `place` is a buffer.
    fn of(form: &'t dyn Form, task: &'t Task, now: Timestamp, mut place: Vec<u8>) -> Target<'t> {
        place.clear();
        let fit = form.check(task, now).and_then(|fit| {
            fit.place(&mut place)?;
            match place.starts_with(OURS) {
                true => Err(Unfit::new(
                    "names that begin with aftercommit: are the daemon's own",
                )),
                false => Ok(fit),
            }
        });
        Target {
            fit,
            place,
            slot: 0,
        }
    }
}

/// How much is gathered.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) tasks: usize,
    /// Of arguments.
    pub(super) bytes: usize,
}

impl Limit {
    pub(super) const NONE: Limit = Limit {
        tasks: usize::MAX,
        bytes: usize::MAX,
    };
}

impl Pusher {
    pub(in crate::sink) fn new(
        servers: Servers,
        tls: Option<Arc<ClientConfig>>,
        form: Arc<dyn Form>,
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
            spare: Vec::new(),
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
        let form = Arc::clone(&self.form);
        let mut progress = Progress {
            tasks,
            form: &*form,
            terms,
            now,
            marks,
            targets: self.targets(&*form, tasks, now),
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
            // Without a ledger, nothing would hold back what comes behind a part that is not applied.
            let sent = match terms.is_some() && !self.nodes.is_cluster() {
                true => self.send_in_parts(&mut progress).await?,
                false => self.send(&mut progress).await?,
            };
            if !sent {
                break;
            }
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

    /// In a cluster, where each task goes: there it must be known of all before one is sent.
    fn targets<'t>(
        &self,
        form: &'t dyn Form,
        tasks: &'t [Task],
        now: Timestamp,
    ) -> Vec<Target<'t>> {
        if !self.nodes.is_cluster() {
            return Vec::new();
        }
        let target = |task| {
            let target = Target::of(form, task, now, Vec::new());
            Target {
                slot: slot(&target.place),
                ..target
            }
        };
        tasks.iter().map(target).collect()
    }

    /// The slots whose ledgers must be opened before anything is gathered: what waits for them must not be overtaken, not even by
    /// the outcome of a later task of its key.
    fn closed(&mut self, progress: &Progress<'_>, scope: &Scope) -> Vec<u16> {
        if !self.nodes.is_cluster() {
            let is_open = self.ledgers.is_open(0, scope);
            let waits = !is_open && progress.outcomes.contains(&None);
            return if waits { vec![0] } else { Vec::new() };
        }
        let mut closed = Vec::new();
        for (outcome, target) in progress.outcomes.iter().zip(&progress.targets) {
            if outcome.is_none()
                && target.fit.is_ok()
                && !progress.forbidden.contains_key(&target.place)
                && !closed.contains(&target.slot)
                && !self.ledgers.is_open(target.slot, scope)
            {
                closed.push(target.slot);
            }
        }
        closed
    }

    /// Gathers into groups what is to be sent now: in a cluster one for each slot, else one, until it is full. Begins with the
    /// task `from`, and with the group `first`. How many groups it has filled.
    pub(super) fn gather(
        &mut self,
        progress: &mut Progress<'_>,
        from: &mut usize,
        first: usize,
        limit: Limit,
    ) -> usize {
        let mut end = first;
        // Of keys: the slot that their tasks go to now. Those for other slots go after them.
        let mut sides: HashMap<&[u8], Option<u16>> = HashMap::new();
        let is_cluster = self.nodes.is_cluster();
        let (tasks, form, now) = (progress.tasks, progress.form, progress.now);
        let mut checked: Option<Target<'_>> = None;
        while let Some(task) = tasks.get(*from) {
            let last = self.groups.get(first..end).and_then(<[Group]>::last);
            if last.is_some_and(|it| it.tasks.len() >= limit.tasks || it.body.len() >= limit.bytes)
            {
                break;
            }
            let index = *from;
            *from += 1;
            if progress.outcomes.get(index) != Some(&None) {
                continue;
            }
            let side = task.key().and_then(|key| sides.get(key));
            if side == Some(&None) {
                continue;
            }
            if !progress.stopped.is_empty()
                && task.key().is_some_and(|key| progress.stopped.contains(key))
            {
                let words = "an earlier task of its key was not delivered";
                let outcome = Outcome::Retry(Cause::new(words));
                put(&mut progress.outcomes, index, outcome);
                continue;
            }
            let target = match progress.targets.get(index) {
                Some(target) => target,
                None => {
                    let buffer = checked.take().map(|target| target.place);
                    let buffer = buffer.unwrap_or_default();
                    checked.insert(Target::of(form, task, now, buffer))
                }
            };
            let fit = match &target.fit {
                Ok(fit) => match progress.forbidden.get(&target.place) {
                    None => Ok(fit),
                    Some(outcome) => Err(outcome.clone()),
                },
                Err(unfit) => Err(Outcome::Reject(Cause::new(unfit.clone().into_words()))),
            };
            let fit = match fit {
                Ok(fit) => fit,
                Err(outcome) => {
                    progress.stopped.extend(task.key());
                    put(&mut progress.outcomes, index, outcome);
                    continue;
                }
            };
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
            if is_cluster && let Some(key) = task.key() {
                let side = sides.entry(key).or_insert(Some(target.slot));
                if *side != Some(target.slot) {
                    *side = None;
                    continue;
                }
            }
            let groups = self.groups.iter().take(end).skip(first);
            let at = groups
                .zip(first..)
                .find(|(group, _)| group.slot == target.slot);
            let at = at.map(|(_, at)| at).unwrap_or_else(|| {
                if end == self.groups.len() {
                    self.groups.push(Group::default());
                }
                if let Some(group) = self.groups.get_mut(end) {
                    group.begin(target.slot);
                }
                end += 1;
                end - 1
            });
            let Some(group) = self.groups.get_mut(at) else {
                continue;
            };
            if let Err(unfit) = group.add(&**fit, &target.place, index) {
                progress.stopped.extend(task.key());
                let cause = Cause::new(unfit.into_words());
                put(&mut progress.outcomes, index, Outcome::Reject(cause));
            }
        }
        let groups = self.groups.iter_mut().take(end).skip(first);
        groups.for_each(Group::end_run);
        end - first
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
            Err(Outage::new(Cause::new(words)))
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
        self.spare.clear();
        self.spare.shrink_to(BUFFERS_KEPT);
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
