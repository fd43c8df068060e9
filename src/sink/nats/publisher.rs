//! Publishes batches, and hears what becomes of each message.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::connection::{Manner, Trouble};
use super::flow::{Answer, Flow, Pace, Send};
use super::link::{Link, PING, denied, outage};
use super::message;
use super::protocol::{self, Frame};
use super::servers::Server;
use super::stream::{self, Look};
use super::subject::Subject;
use super::verdict::{About, judge};
use crate::envelope::Unfit;
use crate::envelope::event::Content;
use crate::outbox::{Field, Task};
use crate::sink::{Cause, Delivery, Outage, Outcome, Probe, Sink};

/// A client; it connects when it is first used.
pub(super) struct Publisher {
    pub(super) servers: Vec<Server>,
    pub(super) manner: Manner,
    pub(super) subject: Subject,
    /// The stream that has to take the messages; none, where nobody acknowledges them.
    pub(super) stream: Option<String>,
    pub(super) api_prefix: String,
    pub(super) inbox_prefix: String,
    pub(super) timeout: Duration,
    /// The server that is tried first.
    pub(super) first: usize,
    /// The server that has let us in when it was asked last.
    pub(super) known: Option<usize>,
    /// In nobody's hands while a batch is under way: a batch that is dropped midway takes its connection with it.
    pub(super) link: Option<Link>,
    pub(super) scratch: Scratch,
}

/// Buffers that are used again and again.
#[derive(Default)]
pub(super) struct Scratch {
    subject: String,
    reply: String,
    headers: Vec<u8>,
}

/// What has come of a batch so far, beside the answers.
#[derive(Default)]
struct Progress {
    stored: usize,
    /// Why the place takes nothing.
    place: Option<Cause>,
    /// Why the place may take nothing.
    doubt: Option<Cause>,
    /// Subjects that we may not publish to.
    denied: HashSet<String>,
    /// PING was sent, and not answered.
    pinged: bool,
    /// The server was asked whether it is there, since it has got on last.
    asked: bool,
    /// It was.
    alive: bool,
}

impl Publisher {
    async fn publish(&mut self, tasks: &[Task]) -> Result<Vec<Outcome>, Outage> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut link = self.connect().await?;
        let pace = match self.stream {
            Some(_) => link.pace,
            None => Pace::RUNS,
        };
        let mut flow = Flow::new(tasks, pace);
        if let Err(outage) = self.exchange(&mut link, tasks, &mut flow).await {
            return Err(outage.amid(flow.known()));
        }
        self.known = Some(self.first);
        if !link.connection.info.ldm {
            self.link = Some(link);
        }
        Ok(flow.outcomes())
    }

    async fn exchange(
        &mut self,
        link: &mut Link,
        tasks: &[Task],
        flow: &mut Flow,
    ) -> Result<(), Outage> {
        link.batch += 1;
        let acknowledged = self.stream.is_some();
        let mut progress = Progress::default();
        let (mut heard, mut sent) = (Instant::now(), link.connection.sent());
        loop {
            while link.connection.has_room() {
                let Some(send) = flow.send() else { break };
                if let Err(answer) = self.write(link, tasks, send, &progress.denied) {
                    flow.answered(send.task, answer);
                }
            }
            if flow.is_quiet() && link.connection.has_room() {
                break;
            }
            if !acknowledged && !progress.pinged && link.connection.has_room() {
                // What was published before a PING has been taken, or refused, when PONG comes.
                link.ping();
                progress.pinged = true;
            }
            let patience = match progress.asked {
                true => self.timeout,
                false => self.timeout / 2,
            };
            match timeout_at(heard + patience, link.connection.turn()).await {
                Ok(turned) => turned.map_err(|trouble| outage(&trouble, &link.server))?,
                Err(_) if !progress.asked => {
                    progress.asked = true;
                    if !progress.pinged {
                        link.ping();
                        progress.pinged = true;
                        // That this is written is no progress.
                        sent += link.connection.alone(PING.len());
                    }
                }
                Err(_) if !progress.alive => {
                    let words =
                        format!("{} has not answered within {:?}", link.server, self.timeout);
                    return Err(Outage::new(Cause::new(words)));
                }
                Err(_) => {
                    let words = format!("nothing has acknowledged it within {:?}", self.timeout);
                    let cause = Cause::new(words);
                    for task in flow.unanswered() {
                        flow.answered(task, Answer::Failed(Outcome::Retry(cause.clone())));
                    }
                    progress.doubt.get_or_insert(cause);
                    heard = Instant::now();
                    continue;
                }
            }
            let answered = self
                .hear(link, tasks, flow, &mut progress)
                .map_err(|trouble| outage(&trouble, &link.server))?;
            if answered || link.connection.sent() > sent {
                sent = link.connection.sent();
                heard = Instant::now();
                (progress.asked, progress.alive) = (false, false);
            }
        }
        link.pace = flow.pace;
        self.blame(link, progress).await
    }

    /// Takes what was read. Whether an answer to this batch was among it.
    fn hear(
        &self,
        link: &mut Link,
        tasks: &[Task],
        flow: &mut Flow,
        progress: &mut Progress,
    ) -> Result<bool, Trouble> {
        let mut answered = false;
        let prefix = format!("{}.{}.", link.inbox, link.batch);
        while let Some(frame) = link.connection.next()? {
            match frame {
                Frame::Message(message) => {
                    let index = message.subject.strip_prefix(prefix.as_str());
                    let Some(index) = index.and_then(|index| index.parse().ok()) else {
                        if stream::answered(message.subject, &link.inbox).is_some()
                            && flow.pace == Pace::SINGLE
                            && Look::of(&message).takes_guards()
                        {
                            flow.pace = Pace::RUNS;
                        }
                        continue;
                    };
                    let verdict = judge(&message);
                    answered = true;
                    match (verdict.about, &verdict.answer) {
                        (About::Place, Answer::Failed(Outcome::Retry(cause))) => {
                            progress.place.get_or_insert_with(|| cause.clone());
                        }
                        (About::Doubt, Answer::Failed(Outcome::Retry(cause))) => {
                            progress.doubt.get_or_insert_with(|| cause.clone());
                        }
                        (About::Replicas, _) => flow.pace = Pace::SINGLE,
                        _ => {}
                    }
                    progress.stored += usize::from(verdict.answer == Answer::Stored);
                    flow.answered(index, verdict.answer);
                }
                // One that comes late answers an earlier batch.
                Frame::Pong if progress.pinged => {
                    progress.pinged = false;
                    progress.alive = true;
                    if self.stream.is_none() {
                        for task in flow.unanswered() {
                            flow.answered(task, Answer::Stored);
                        }
                        answered = true;
                    }
                }
                Frame::Error(words) => match denied(words) {
                    Some(subject) => {
                        self.deny(subject, tasks, flow);
                        progress.denied.insert(subject.to_owned());
                        answered = true;
                    }
                    None => return Err(Trouble::Refused(words.to_owned())),
                },
                _ => {}
            }
        }
        Ok(answered)
    }

    /// No answer will come to what was published to this subject.
    fn deny(&self, subject: &str, tasks: &[Task], flow: &mut Flow) {
        let mut own = String::new();
        for index in flow.unanswered() {
            own.clear();
            let written = tasks
                .get(index)
                .map(|task| self.subject.write(task, &mut own));
            if matches!(written, Some(Ok(()))) && own == subject {
                flow.answered(index, Answer::Failed(not_allowed(subject)));
            }
        }
    }

    /// Writes a message; or says at once what becomes of the task.
    fn write(
        &mut self,
        link: &mut Link,
        tasks: &[Task],
        send: Send,
        denied: &HashSet<String>,
    ) -> Result<(), Answer> {
        let reject = |unfit: Unfit| Answer::Failed(Outcome::Reject(Cause::new(unfit.into_words())));
        let Some(task) = tasks.get(send.task) else {
            return Ok(());
        };
        let behind = send.behind.and_then(|behind| tasks.get(behind));
        let Scratch {
            subject,
            reply,
            headers,
        } = &mut self.scratch;
        subject.clear();
        headers.clear();
        reply.clear();
        self.subject.write(task, subject).map_err(reject)?;
        if denied.contains(subject) {
            return Err(Answer::Failed(not_allowed(subject)));
        }
        let behind = match (&self.stream, behind) {
            (None, Some(behind)) => {
                // Without acknowledgements there are no guards. What can be refused is a subject: those of one subject go
                // together, another one's have to wait.
                reply.clear();
                if self.subject.write(behind, reply).is_err() || reply != subject {
                    return Err(Answer::Overtaken);
                }
                reply.clear();
                None
            }
            (_, behind) => behind,
        };
        let most = link.connection.info.max_payload;
        fits(least(task), most).map_err(reject)?;
        let content = Content::of(task).map_err(reject)?;
        let stream = self.stream.as_deref();
        message::write_headers(headers, task, &content.content_type, stream, behind)
            .map_err(reject)?;
        fits(headers.len() + content.bytes.len(), most).map_err(reject)?;
        if stream.is_some() {
            reply.push_str(&format!("{}.{}.{}", link.inbox, link.batch, send.task));
        }
        let out = link.connection.output();
        protocol::write_publish(out, subject, reply, headers, &[&content.bytes]);
        Ok(())
    }

    /// Where nothing at all was stored, and the place is to blame, no task is.
    async fn blame(&mut self, link: &mut Link, progress: Progress) -> Result<(), Outage> {
        if progress.stored > 0 {
            return Ok(());
        }
        let about = |cause: &dyn std::fmt::Display| {
            Outage::new(Cause::new(format!("{}: {cause}", link.server)))
        };
        if let Some(cause) = &progress.place {
            return Err(about(cause));
        }
        if progress.doubt.is_none() {
            return Ok(());
        }
        match self.look_at_stream(link).await? {
            Look::Absent(words) => {
                Err(Outage::new(Cause::new(format!("{}: {words}", link.server))))
            }
            Look::There(_) | Look::Unknown(_) => Ok(()),
        }
    }
}

impl Sink for Publisher {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.publish(batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(self.look())
    }
}

fn not_allowed(subject: &str) -> Outcome {
    let words = format!("the server does not let us publish to {subject}");
    Outcome::Retry(Cause::new(words))
}

/// Bytes of the body at least, before it is made.
fn least(task: &Task) -> usize {
    let len = |field| task.get(field).map_or(0, <[u8]>::len);
    let ready = len(Field::Payload).max(len(Field::Body) / 2);
    ready
        .max(len(Field::Args) + len(Field::Kwargs))
        .saturating_sub(1)
}

fn fits(size: usize, most: usize) -> Result<(), Unfit> {
    if most > 0 && size > most {
        return Err(Unfit::new(format!(
            "it is larger than the {most} bytes that the server takes (max_payload)"
        )));
    }
    Ok(())
}
