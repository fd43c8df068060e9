//! Celery over Redis: a batch goes in parts, each of which becomes one MULTI. While Redis executes one, the next is being
//! encoded.
//!
//! **A part is sent once the one before is answered**: it was applied, and the ledger is ours and watched, as for a batch after
//! another. So a part is applied whole or not at all, nothing of a key overtakes what was not taken before it, and what was
//! encoded in vain is encoded anew. Where a later part fails as a whole, so does the batch, and comes again: the marks of the
//! parts that were answered say what is not to be sent again then. Without a ledger nothing would say it, and a batch is one
//! part.
//!
//! Parts that are sent without waiting would keep Redis busier yet. But a transaction cannot ask whether the one before it was
//! applied; and in a single one that is sent piece by piece, Redis begins to work when all is there. So each part costs a round trip,
//! and where that takes long, parts get larger, until a batch is one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::ledger::{self, Entry};
use super::redis::{BINDINGS_FRESH, Bindings, Ledger, Link, Redis};
use super::refusals::{judge, outage};
use super::transaction::{Sent, answer, send};
use crate::clock;
use crate::envelope::celery::Message;
use crate::envelope::kombu::Lists;
use crate::outbox::{Field, Task};
use crate::sink::marks::{Mark, Terms};
use crate::sink::redis_client::connection::{Connection, Trouble};
use crate::sink::redis_client::outcome::Verdict;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::{Cause, Outage, Outcome};

/// Tasks in a part, where Redis is near. Few, so that it soon has something to do; many beside what a round trip costs.
pub(super) const PART: usize = 384;
/// More than a batch has.
const WHOLE: usize = 1 << 14;
/// How much larger or smaller the next part is.
const STEP: usize = 4;
/// Redis executes a task in less.
const FOR_A_TASK: Duration = Duration::from_micros(4);
/// Beyond what Redis needs, a part's answer is waited for so long at least where it is far away, and not as long where it is near.
const FAR: Duration = Duration::from_millis(2);
const NEAR: Duration = Duration::from_millis(1);

/// How it stands with a batch.
#[derive(Default)]
struct Progress<'t> {
    /// Lists that are not for us.
    forbidden: HashMap<Vec<u8>, Cause>,
    /// Notes that are to be taken away.
    gone: Option<Vec<u64>>,
    /// The ledger was taken from us.
    fenced: bool,
    /// Keys of tasks of which one was not delivered, in the parts before.
    stopped: HashSet<&'t [u8]>,
    /// The part that comes next is encoded: what becomes of it once it is applied.
    ready: Option<Vec<Outcome>>,
    /// Tasks that were there already.
    had: usize,
}

/// A part of a batch.
#[derive(Clone, Copy)]
struct Part<'t> {
    tasks: &'t [Task],
    marks: &'t [Mark],
}

impl<'t> Part<'t> {
    /// Takes so many tasks from the front; `None` when there are no more.
    fn take(&mut self, size: usize) -> Option<Part<'t>> {
        let (tasks, rest) = self.tasks.split_at(size.min(self.tasks.len()));
        let (marks, rest_of_marks) = self.marks.split_at(size.min(self.marks.len()));
        (self.tasks, self.marks) = (rest, rest_of_marks);
        (!tasks.is_empty()).then_some(Part { tasks, marks })
    }
}

/// How many tasks go in a part after one of so many tasks, whose answer was waited for so long.
fn next_size(size: usize, tasks: usize, waited: Duration) -> usize {
    let beyond = waited.saturating_sub(FOR_A_TASK * u32::try_from(tasks).unwrap_or(u32::MAX));
    let size = match beyond {
        beyond if beyond >= FAR => size * STEP,
        beyond if beyond >= NEAR => size,
        _ => size / STEP,
    };
    size.clamp(PART, WHOLE)
}

impl Redis {
    /// Hands a batch over.
    pub(super) async fn push(
        &mut self,
        tasks: &[Task],
        terms: Option<&Terms>,
    ) -> Result<Vec<Outcome>, Outage> {
        // The batch before has failed, or was dropped, if there are any.
        let answered = std::mem::take(&mut self.answered);
        self.memory.will_come_again(answered);
        let mut link = self.connect().await?;
        self.bindings
            .retain(|_, (asked, _)| asked.elapsed() < BINDINGS_FRESH);
        let owner = match terms {
            Some(terms) => self.open_ledger(&mut link, terms).await?,
            None => None,
        };
        let marks: Vec<Mark> = match owner {
            Some(_) => tasks.iter().map(Mark::of).collect(),
            None => Vec::new(),
        };
        let mut rest = Part {
            tasks,
            marks: &marks,
        };
        let is_marked = owner.is_some();
        let size = |redis: &Redis| match is_marked {
            true => redis.part,
            false => tasks.len(),
        };
        let mut progress = Progress::default();
        let mut outcomes = Vec::with_capacity(tasks.len());
        let mut part = rest.take(size(self));
        while let Some(this) = part {
            let next = rest.take(size(self));
            let done = self.push_part(&mut link, terms, (this, next), &mut progress);
            let done = done.await?;
            progress.stopped.extend(stopped(this.tasks, &done));
            outcomes.extend(done);
            part = next;
        }
        self.answered.clear();
        self.link = Some(link);
        if progress.had > 0 {
            info!(redis = %self.address, tasks = progress.had, "had them already; not sent again");
        }
        Ok(outcomes)
    }

    /// Pushes a part, and encodes the next one meanwhile.
    async fn push_part<'t>(
        &mut self,
        link: &mut Link,
        terms: Option<&Terms>,
        (part, next): (Part<'t>, Option<Part<'t>>),
        progress: &mut Progress<'t>,
    ) -> Result<Vec<Outcome>, Outage> {
        loop {
            if !matches!(link.ledger, Ledger::Ours(_)) {
                // What is there may be something else.
                progress.ready = None;
            }
            let marked = match terms {
                Some(terms) => self.open_ledger(link, terms).await?.zip(Some(terms)),
                None => None,
            };
            let there = match marked {
                Some(_) => self.there(part.marks),
                None => Vec::new(),
            };
            let (mut outcomes, unknown) = match progress.ready.take() {
                Some(outcomes) => (outcomes, HashSet::new()),
                None => {
                    let stopped = progress.stopped.clone();
                    self.encode(part.tasks, &there, &progress.forbidden, stopped)
                }
            };
            if !unknown.is_empty() {
                self.ask_bindings(&mut link.connection, unknown).await?;
                continue;
            }
            let had = there.iter().filter(|there| **there).count();
            if self.batch.groups().is_empty() {
                progress.had += had;
                return Ok(outcomes);
            }
            let batch = std::mem::replace(&mut self.batch, std::mem::take(&mut self.spare));
            let groups = batch.groups();
            let entry = marked.map(|(owner, terms)| {
                let memory = &mut self.memory;
                let gone = &mut progress.gone;
                let gone = gone.get_or_insert_with(|| memory.forget(terms.settled));
                let sent = groups.iter().flat_map(|group| &group.tasks);
                let sent = sent.filter_map(|index| part.marks.get(*index));
                let number = memory.sends(sent, terms.turn);
                let key = ledger::key(&self.lists.prefix, &terms.scope);
                Entry::new(key, owner, number, groups, part.marks, gone)
            });
            let sent = send(&mut link.connection, groups, entry.as_ref()).await;
            sent.map_err(|trouble| outage(trouble, &self.address))?;
            if let Some(next) = next {
                self.encode_next(part, &outcomes, next, progress);
            }
            let waits = Instant::now();
            let answer = answer(&mut link.connection, groups, entry.as_ref()).await;
            let answer = answer.map_err(|trouble| outage(trouble, &self.address))?;
            self.part = next_size(self.part, part.tasks.len(), waits.elapsed());
            if !answer.is_ours && matches!(link.ledger, Ledger::Ours(_)) {
                link.ledger = Ledger::Closed;
            }
            if !matches!(answer.sent, Sent::Applied { .. }) {
                progress.ready = None;
                if entry.is_some() {
                    self.memory.refused();
                }
            }
            match answer.sent {
                Sent::Applied { refusals, noted } => {
                    for (at, cause) in refusals {
                        // What is encoded does not know of it.
                        progress.ready = None;
                        for task in groups.get(at).map_or(&[][..], |group| &group.tasks) {
                            if let Some(outcome) = outcomes.get_mut(*task) {
                                *outcome = Outcome::Retry(cause.clone());
                            }
                        }
                    }
                    match noted {
                        Some(Ok(bytes)) => {
                            self.memory.applied(bytes);
                            let all = outcomes.iter().zip(part.marks);
                            let done = all.filter(|(outcome, _)| **outcome == Outcome::Delivered);
                            self.answered.extend(done.map(|(_, mark)| *mark));
                            progress.gone = Some(Vec::new());
                        }
                        Some(Err(refusal)) => {
                            self.memory.refused();
                            self.refuse_marks(link, &refusal);
                        }
                        None => {}
                    }
                    progress.had += had;
                    self.spare = batch;
                    return Ok(outcomes);
                }
                // Nothing was applied: once more, without the lists that are not for us.
                Sent::Aborted(refusals) => progress.forbidden.extend(refusals),
                // Nothing was applied: once more, without a mark.
                Sent::Unmarked(refusal) => self.refuse_marks(link, &refusal),
                // Nothing was applied: somebody else has written into the ledger, or it is gone. Once more, after a look.
                Sent::Fenced if !progress.fenced => {
                    link.ledger = Ledger::Closed;
                    progress.fenced = true;
                }
                Sent::Fenced => return Err(self.contested()),
                Sent::Outage(cause) => {
                    return Err(Outage::new(Cause::new(format!(
                        "{}: {cause}",
                        self.address
                    ))));
                }
            }
        }
    }

    /// Encodes the next part, as it will be sent if this one is applied with these outcomes.
    fn encode_next<'t>(
        &mut self,
        part: Part<'t>,
        outcomes: &[Outcome],
        next: Part<'t>,
        progress: &mut Progress<'t>,
    ) {
        let mut behind = progress.stopped.clone();
        behind.extend(stopped(part.tasks, outcomes));
        let there = self.there(next.marks);
        let (ready, unknown) = self.encode(next.tasks, &there, &progress.forbidden, behind);
        progress.ready = unknown.is_empty().then_some(ready);
    }

    /// Encodes a part into `self.batch`; of the keys in `stopped`, nothing. Returns an outcome per task, as it will be once all
    /// is applied, and the exchanges whose bindings must be asked for first.
    fn encode<'t>(
        &mut self,
        tasks: &'t [Task],
        there: &[bool],
        forbidden: &HashMap<Vec<u8>, Cause>,
        mut stopped: HashSet<&'t [u8]>,
    ) -> (Vec<Outcome>, HashSet<String>) {
        let now = clock::now();
        let mut unknown = HashSet::new();
        let mut outcomes = Vec::with_capacity(tasks.len());
        self.batch.clear();
        for (index, task) in tasks.iter().enumerate() {
            if there.get(index) == Some(&true) {
                outcomes.push(Outcome::Delivered);
                continue;
            }
            if !stopped.is_empty() && task.key().is_some_and(|key| stopped.contains(key)) {
                outcomes.push(Outcome::Retry(Cause::new(
                    "an earlier task of its key was not delivered",
                )));
                continue;
            }
            let arguments = [Field::Args, Field::Kwargs].map(|field| task.text(field));
            let arguments = arguments.into_iter().flatten().map(str::len).sum();
            let outcome = match Message::new(task, &self.defaults, now) {
                Ok(message) => {
                    let own = [&*message.routing_key];
                    let queues = match message.exchange.is_empty() {
                        true => Some(Ok(Cow::Borrowed(&own[..]))),
                        false => bound_queues(&message, &self.lists, &self.bindings),
                    };
                    match queues {
                        Some(Ok(queues)) => self.batch.add(
                            &self.lists,
                            &message,
                            (index, arguments),
                            &queues,
                            forbidden,
                        ),
                        Some(Err(outcome)) => outcome,
                        None => {
                            unknown.insert(message.exchange.into_owned());
                            Outcome::Delivered
                        }
                    }
                }
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
                        Verdict::KeyRetry(cause) => Err(Outcome::Retry(cause)),
                        Verdict::KeyReject(cause) => Err(Outcome::Reject(cause)),
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

/// The queues that a message's exchange has for it; or an outcome, where the exchange is not for us. `None`: it must be asked
/// first.
fn bound_queues<'m>(
    message: &Message,
    lists: &Lists,
    bindings: &'m Bindings,
) -> Option<Result<Cow<'m, [&'m str]>, Outcome>> {
    let (_, bindings) = bindings.get(&*message.exchange)?;
    let bindings = match bindings {
        Ok(bindings) => bindings.iter(),
        Err(outcome) => return Some(Err(outcome.clone())),
    };
    let bound = bindings.filter_map(|binding| lists.bound_queue(binding, &message.routing_key));
    let mut queues: Vec<&str> = bound.collect();
    queues.sort_unstable();
    queues.dedup();
    Some(Ok(Cow::Owned(queues)))
}

/// The keys of tasks that are not delivered.
fn stopped<'t>(tasks: &'t [Task], outcomes: &[Outcome]) -> impl Iterator<Item = &'t [u8]> {
    let each = tasks.iter().zip(outcomes);
    let failed = each.filter(|(_, outcome)| **outcome != Outcome::Delivered);
    failed.filter_map(|(task, _)| task.key())
}

fn text(member: Reply) -> Option<String> {
    match member {
        Reply::Bulk(Some(bytes)) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_large_as_redis_is_far() {
        let ms = Duration::from_millis;
        let (mut size, mut sent) = (PART, 0);
        while sent < 3072 {
            size = next_size(size, size, ms(200));
            sent += size;
        }
        assert!(size >= 3072, "a batch is one part after a few");
        assert_eq!(next_size(WHOLE, 3072, ms(200)), WHOLE);
        // 12 ms are what Redis may need.
        assert_eq!(next_size(WHOLE, 3072, ms(10)), WHOLE / STEP);
        assert_eq!(next_size(PART * STEP, 100, ms(0)), PART);
        assert_eq!(next_size(PART, 1, ms(0)), PART);
        let between = FOR_A_TASK * 384 + ms(1);
        assert_eq!(next_size(PART * STEP, 384, between), PART * STEP);
    }

    #[test]
    fn a_batch_is_taken_part_by_part() {
        let position = crate::outbox::Position::default();
        let task = |_| Task::from_fields([], position, crate::pg::Timestamp(0));
        let tasks: Vec<Task> = (0..5).map(task).collect();
        let marks: Vec<Mark> = tasks.iter().map(Mark::of).collect();
        for marks in [&marks[..], &[]] {
            let mut rest = Part {
                tasks: &tasks,
                marks,
            };
            let mut sizes = Vec::new();
            while let Some(part) = rest.take(2) {
                assert!(part.marks.len() == part.tasks.len() || marks.is_empty());
                sizes.push(part.tasks.len());
            }
            assert_eq!(sizes, [2, 2, 1]);
        }
    }
}
