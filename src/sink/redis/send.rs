//! A script on its way: what stands before the tasks, and what became of it.

use super::batch::Group;
use super::ledgers::{EXPIRES, refused};
use super::push::{Progress, Pusher, put};
use super::script::{self, Done, is_exhausted};
use crate::sink::marks::Mark;
use crate::sink::marks::encoding::List;
use crate::sink::redis_client::nodes::Errand;
use crate::sink::redis_client::outcome::{Verdict, judge, shown};
use crate::sink::redis_client::resp::{self, Refusal, Reply};
use crate::sink::{Cause, Outage, Outcome};

/// The first words of a script's command: all that stands before the tasks.
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    /// The note's number, and its size.
    pub(super) number: u64,
    note: usize,
}

/// A key that may not be for us.
struct Suspect {
    slot: u16,
    key: Vec<u8>,
    /// What belongs to it.
    places: Vec<Vec<u8>>,
}

/// What is to be done once all answers are there.
#[derive(Default)]
pub(super) struct Rest {
    /// Keys of which one at least is not for us.
    suspects: Vec<Suspect>,
    /// Tasks that were pushed before their script stopped.
    unnoted: Vec<(u16, Vec<Mark>)>,
    pub(super) outage: Option<Outage>,
}

impl Pusher {
    /// Sees to what is left to do once all answers are there.
    pub(super) async fn see_to(
        &mut self,
        rest: Rest,
        progress: &mut Progress<'_>,
    ) -> Result<(), Outage> {
        self.note_what_is_not(rest.unnoted, progress).await?;
        match rest.outage {
            Some(outage) => Err(outage),
            None => self.find_forbidden(rest.suspects, progress).await,
        }
    }

    pub(super) fn commands(&self) -> usize {
        1 + usize::from(self.replicas > 0)
    }

    /// The head of a script for these tasks, which come `after` what is in the note of this number.
    pub(super) fn head(
        &mut self,
        group: &Group,
        marks: &[Mark],
        after: Option<u64>,
        progress: &Progress<'_>,
    ) -> Head {
        let slot = group.slot;
        let mut note = List::default();
        marks.iter().for_each(|mark| note.add(*mark));
        let note = note.finish();
        let (mut key, mut owner, mut number, mut gone) = (None, String::new(), 0, Vec::new());
        if let Some(terms) = progress.terms {
            key = Some(self.ledgers.key(&terms.scope, slot));
            let ledger = self.ledgers.of(slot);
            owner = ledger.owner.clone().unwrap_or_default();
            if ledger.gone.is_empty() && after.is_none() {
                ledger.gone = ledger.memory.forget(terms.settled);
            }
            if after.is_none() {
                gone.clone_from(&ledger.gone);
            }
            if !marks.is_empty() {
                number = ledger.memory.sends(marks, terms.turn);
            }
        }
        let script = self.form.script();
        let (how, limit) = self.form.how(group);
        let keys: Vec<&[u8]> = key
            .iter()
            .map(|key| key.as_bytes())
            .chain(group.keys.iter().map(|key| key.name.as_slice()))
            .collect();
        let mut bytes = Vec::with_capacity(script.len() + note.len() + 512);
        resp::write_header(
            &mut bytes,
            b'*',
            3 + keys.len() + 8 + gone.len() + group.arguments,
        );
        resp::write_bulk(&mut bytes, b"EVAL");
        resp::write_bulk(&mut bytes, script);
        resp::write_bulk(&mut bytes, keys.len().to_string().as_bytes());
        keys.iter()
            .for_each(|key| resp::write_bulk(&mut bytes, key));
        resp::write_bulk(&mut bytes, owner.as_bytes());
        resp::write_bulk(&mut bytes, number.to_string().as_bytes());
        resp::write_bulk(&mut bytes, &note);
        resp::write_bulk(&mut bytes, EXPIRES);
        resp::write_bulk(&mut bytes, &how);
        resp::write_bulk(&mut bytes, limit.as_bytes());
        let after = after.map(|number| number.to_string()).unwrap_or_default();
        resp::write_bulk(&mut bytes, after.as_bytes());
        resp::write_bulk(&mut bytes, gone.len().to_string().as_bytes());
        for number in gone {
            resp::write_bulk(&mut bytes, number.to_string().as_bytes());
        }
        Head {
            bytes,
            number,
            note: note.len(),
        }
    }

    /// Takes in the answer to one script.
    pub(super) fn take_in(
        &mut self,
        group: &Group,
        head: &Head,
        replies: impl IntoIterator<Item = Reply>,
        progress: &mut Progress<'_>,
        rest: &mut Rest,
    ) -> Result<(), Outage> {
        let slot = group.slot;
        let mut replies = replies.into_iter();
        let Some(done) = replies.next().and_then(script::read) else {
            return Err(self.outage("what answers is no Redis"));
        };
        match done {
            Done::Applied { late, there } => {
                self.ledgers.of(slot).gone.clear();
                self.ledgers.of(slot).memory.applied(head.note);
                self.ledgers
                    .answered(slot, marks(group, group.tasks.len(), progress));
                self.deliver_first(group, group.tasks.len(), progress);
                progress.had += there;
                progress.late += late;
                self.has_replicas(replies.next())
            }
            Done::Stopped {
                pushed,
                key,
                refusal,
            } => {
                self.ledgers.of(slot).memory.refused();
                if pushed > 0 {
                    rest.unnoted.push((slot, marks(group, pushed, progress)));
                    self.deliver_first(group, pushed, progress);
                }
                let name = group.keys.get(key).map_or(&[][..], |key| &key.name);
                let verdict = match is_exhausted(&refusal) {
                    true => Verdict::KeyRetry(Cause::new(format!(
                        "the stream {} has the largest id that there is, and takes no more: delete it, or name another",
                        shown(name)
                    ))),
                    false => judge(&refusal, name, self.nodes.wording()),
                };
                self.forbid(group.places_of(key), verdict, progress)
            }
            Done::Wrong(keys) => {
                self.ledgers.of(slot).memory.refused();
                let refusal = Refusal {
                    code: "WRONGTYPE".to_owned(),
                    text: String::new(),
                };
                for at in keys {
                    let name = group.keys.get(at).map_or(&[][..], |key| &key.name);
                    let verdict = judge(&refusal, name, self.nodes.wording());
                    self.forbid(group.places_of(at), verdict, progress)?;
                }
                Ok(())
            }
            Done::Fenced => {
                let ledger = self.ledgers.of(slot);
                ledger.memory.refused();
                if ledger.owner.take().is_none() {
                    // An earlier part has said so.
                    return Ok(());
                }
                match progress.fenced.insert(slot) {
                    true => Ok(()),
                    false => Err(self.outage(
                        "another daemon with the same slot and sink writes to it, or our marks are taken away all the time",
                    )),
                }
            }
            Done::Behind => {
                self.ledgers.of(slot).memory.refused();
                Ok(())
            }
            Done::Refused(refusal) => {
                self.ledgers.of(slot).memory.refused();
                match refusal.code.as_str() {
                    "NOPERM" => {
                        for (at, key) in group.keys.iter().enumerate() {
                            rest.suspects.push(Suspect {
                                slot,
                                key: key.name.clone(),
                                places: group.places_of(at).map(<[u8]>::to_vec).collect(),
                            });
                        }
                        Ok(())
                    }
                    _ => Err(refused(&self.nodes, &refusal)),
                }
            }
        }
    }

    fn deliver_first(&self, group: &Group, count: usize, progress: &mut Progress<'_>) {
        for index in group.tasks.iter().take(count) {
            put(&mut progress.outcomes, *index, Outcome::Delivered);
        }
    }

    /// What a key's refusal means for the tasks of its places.
    fn forbid<'p>(
        &self,
        places: impl Iterator<Item = &'p [u8]>,
        verdict: Verdict,
        progress: &mut Progress<'_>,
    ) -> Result<(), Outage> {
        let outcome = match verdict {
            Verdict::Outage(cause) => return Err(self.outage(&cause.to_string())),
            Verdict::KeyRetry(cause) => Outcome::Retry(cause),
            Verdict::KeyReject(cause) => Outcome::Reject(cause),
        };
        for place in places {
            progress.forbidden.insert(place.to_vec(), outcome.clone());
        }
        Ok(())
    }

    /// Notes what was pushed by scripts that have stopped.
    async fn note_what_is_not(
        &mut self,
        unnoted: Vec<(u16, Vec<Mark>)>,
        progress: &Progress<'_>,
    ) -> Result<(), Outage> {
        if progress.terms.is_none() {
            return Ok(());
        }
        for (slot, marks) in unnoted {
            self.ledgers.answered(slot, marks.iter().copied());
            let head = self.head(&Group::nothing(slot), &marks, None, progress);
            self.run_head(slot, &head).await?;
            let ledger = self.ledgers.of(slot);
            ledger.gone.clear();
            ledger.memory.applied(head.note);
        }
        Ok(())
    }

    /// Sees to it that replicas have what was there already: whoever has added it may not have waited for them.
    pub(super) async fn see_to_replicas(&mut self, progress: &Progress<'_>) -> Result<(), Outage> {
        if self.replicas == 0 || progress.terms.is_none() {
            return Ok(());
        }
        for slot in &progress.had_at {
            let head = self.head(&Group::nothing(*slot), &[], None, progress);
            self.run_head(*slot, &head).await?;
        }
        Ok(())
    }

    /// Runs a script without tasks.
    async fn run_head(&mut self, slot: u16, head: &Head) -> Result<(), Outage> {
        let errand = Errand {
            slot,
            request: vec![&head.bytes, &self.wait],
            commands: self.commands(),
        };
        let answer = self.nodes.run(&[errand]).await.pop();
        let mut replies = answer.unwrap_or_else(|| Ok(Vec::new()))?.into_iter();
        match replies.next().and_then(script::read) {
            Some(Done::Applied { .. }) => self.has_replicas(replies.next()),
            Some(Done::Refused(refusal)) => Err(refused(&self.nodes, &refusal)),
            _ => Err(self.outage("its marks have changed while a batch was under way")),
        }
    }

    /// Reads the answer to WAIT.
    pub(super) fn has_replicas(&self, answer: Option<Reply>) -> Result<(), Outage> {
        match answer {
            None => Ok(()),
            Some(Reply::Integer(have)) if have >= i64::from(self.replicas) => Ok(()),
            Some(Reply::Integer(have)) => Err(self.outage(&format!(
                "only {have} replicas have the batch, and replicas = {}",
                self.replicas
            ))),
            Some(Reply::Error(refusal)) => Err(refused(&self.nodes, &refusal)),
            Some(_) => Err(self.outage("what answers is no Redis")),
        }
    }

    /// A script was refused for a right: finds out whether that is about keys, and which.
    async fn find_forbidden(
        &mut self,
        suspects: Vec<Suspect>,
        progress: &mut Progress<'_>,
    ) -> Result<(), Outage> {
        if suspects.is_empty() {
            return Ok(());
        }
        let question = |suspect: &Suspect| {
            let mut request = Vec::new();
            resp::write_command(&mut request, &[b"EVAL", script::TRY, b"1", &suspect.key]);
            request
        };
        let questions: Vec<Vec<u8>> = suspects.iter().map(question).collect();
        let parts = suspects.iter().zip(&questions);
        let errands: Vec<Errand<'_>> = parts
            .map(|(suspect, question)| Errand {
                slot: suspect.slot,
                request: vec![question],
                commands: 1,
            })
            .collect();
        let answers = self.nodes.run(&errands).await;
        let mut found = false;
        for (suspect, answer) in suspects.iter().zip(answers) {
            if let Some(Reply::Error(refusal)) = answer?.pop() {
                found = true;
                let verdict = judge(&refusal, &suspect.key, self.nodes.wording());
                let places = suspect.places.iter().map(Vec::as_slice);
                self.forbid(places, verdict, progress)?;
            }
        }
        let refusal = Refusal {
            code: "NOPERM".to_owned(),
            text: String::new(),
        };
        match found {
            true => Ok(()),
            false => Err(refused(&self.nodes, &refusal)),
        }
    }

    fn outage(&self, words: &str) -> Outage {
        Outage::new(Cause::new(format!("{}: {words}", self.nodes.servers())))
    }
}

/// The marks of a group's first tasks; none, where there are none.
pub(super) fn marks(group: &Group, count: usize, progress: &Progress<'_>) -> Vec<Mark> {
    let tasks = group.tasks.iter().take(count);
    tasks
        .filter_map(|index| progress.marks.get(*index).copied())
        .collect()
}
