//! What is known of the ledgers: one for each slot, since a script reaches no further; without a cluster there is one.

use std::collections::HashMap;
use std::fmt;

use uuid::Uuid;

use super::script;
use crate::sink::marks::{Mark, Memory, Scope, Terms};
use crate::sink::redis_client::nodes::{Errand, Errands, Nodes};
use crate::sink::redis_client::outcome::{self, worded};
use crate::sink::redis_client::resp::{self, Refusal, Reply};
use crate::sink::redis_client::slots::Tags;
use crate::sink::{Cause, Outage};

/// A week, in seconds.
pub(super) const EXPIRES: &[u8] = b"604800";
/// Notes that are read at a time: a reply has a limit.
const READ: usize = 128;

/// One ledger.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) memory: Memory,
    /// Our name in it, once it is ours.
    pub(super) owner: Option<String>,
    /// Notes that are to be taken away.
    pub(super) gone: Vec<u64>,
    /// Of the batch that is under way: what was applied, and answered.
    answered: Vec<Mark>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Ledgers {
    by_slot: HashMap<u16, Ledger>,
    tags: Option<Tags>,
}

impl Ledgers {
    /// For a cluster, or for one server.
    pub(super) fn new(is_cluster: bool) -> Ledgers {
        Ledgers {
            by_slot: HashMap::new(),
            tags: is_cluster.then(Tags::new),
        }
    }

    /// The key of a slot's ledger. Its tag brings it there.
    pub(super) fn key(&self, scope: &dyn fmt::Display, slot: u16) -> String {
        match &self.tags {
            Some(tags) => format!("aftercommit:{{{}}}:marks:1:{scope}", tags.of(slot)),
            None => format!("aftercommit:marks:1:{scope}"),
        }
    }

    pub(super) fn of(&mut self, slot: u16) -> &mut Ledger {
        self.by_slot.entry(slot).or_default()
    }

    /// Whether it is ours, and what it has is known.
    pub(super) fn is_open(&mut self, slot: u16, scope: &Scope) -> bool {
        let ledger = self.of(slot);
        if ledger.memory.enter(scope) {
            ledger.owner = None;
        }
        ledger.owner.is_some()
    }

    /// These marks were applied, and answered.
    pub(super) fn answered(&mut self, slot: u16, marks: impl IntoIterator<Item = Mark>) {
        self.of(slot).answered.extend(marks);
    }

    /// The batch has come to its end, and all in it has an outcome.
    pub(super) fn end(&mut self) {
        for ledger in self.by_slot.values_mut() {
            ledger.answered.clear();
        }
    }

    /// The batch has not: it comes again, also what was applied of it. And whatever its connections have taken may still be
    /// on its way, to servers that may not be the same any more: every ledger is looked at again.
    pub(super) fn interrupt(&mut self) {
        for ledger in self.by_slot.values_mut() {
            ledger.owner = None;
            let answered = std::mem::take(&mut ledger.answered);
            ledger.memory.will_come_again(answered);
        }
    }

    /// Makes these ledgers ours, and reads what we don't know of them.
    ///
    /// # Errors
    /// The servers, or the right to have ledgers, are not there.
    pub(super) async fn open(
        &mut self,
        nodes: &mut Nodes,
        slots: &[u16],
        terms: &Terms,
    ) -> Result<(), Outage> {
        let owner = Uuid::new_v4().to_string();
        let keys: Vec<String> = slots
            .iter()
            .map(|slot| self.key(&terms.scope, *slot))
            .collect();
        let claim = |key: &String| {
            let mut request = Vec::new();
            let arguments = [
                b"EVAL",
                script::CLAIM,
                b"1",
                key.as_bytes(),
                owner.as_bytes(),
                EXPIRES,
            ];
            resp::write_command(&mut request, &arguments);
            request
        };
        let claims: Vec<Vec<u8>> = keys.iter().map(claim).collect();
        let answers = run(nodes, slots, &claims, |_| 1).await;
        let mut unread = Vec::with_capacity(slots.len());
        for (slot, answer) in slots.iter().zip(answers) {
            let there = match answer?.pop() {
                Some(Reply::Array(Some(fields))) => fields.iter().filter_map(number).collect(),
                Some(Reply::Error(refusal)) => return Err(refused(nodes, &refusal)),
                _ => return Err(no_answer(nodes)),
            };
            unread.push(self.of(*slot).memory.unread(there));
        }
        let look = |(key, unread): (&String, &Vec<u64>)| {
            let mut request = Vec::new();
            for numbers in unread.chunks(READ) {
                resp::write_header(&mut request, b'*', numbers.len() + 2);
                resp::write_bulk(&mut request, b"HMGET");
                resp::write_bulk(&mut request, key.as_bytes());
                for number in numbers {
                    resp::write_bulk(&mut request, number.to_string().as_bytes());
                }
            }
            request
        };
        let looks: Vec<Vec<u8>> = keys.iter().zip(&unread).map(look).collect();
        let commands = |nth: usize| {
            unread
                .get(nth)
                .map_or(0, |unread| unread.len().div_ceil(READ))
        };
        let answers = run(nodes, slots, &looks, commands).await;
        for ((slot, numbers), answer) in slots.iter().zip(&unread).zip(answers) {
            let mut values = Vec::with_capacity(numbers.len());
            for reply in answer? {
                match reply {
                    Reply::Array(Some(more)) => values.extend(more),
                    Reply::Error(refusal) => return Err(refused(nodes, &refusal)),
                    _ => return Err(no_answer(nodes)),
                }
            }
            if values.len() != numbers.len() {
                return Err(no_answer(nodes));
            }
            let note = |(number, value): (&u64, Reply)| match value {
                Reply::Bulk(Some(note)) => Some((*number, note)),
                _ => None,
            };
            let ledger = self.of(*slot);
            ledger
                .memory
                .recall(numbers.iter().zip(values).filter_map(note));
            ledger.gone.clear();
            ledger.owner = Some(owner.clone());
        }
        Ok(())
    }
}

async fn run(
    nodes: &mut Nodes,
    slots: &[u16],
    requests: &[Vec<u8>],
    commands: impl Fn(usize) -> usize,
) -> Errands {
    let errands: Vec<Errand<'_>> = slots
        .iter()
        .zip(requests)
        .enumerate()
        .map(|(nth, (slot, request))| Errand {
            slot: *slot,
            request: vec![request.as_slice()],
            commands: commands(nth),
        })
        .collect();
    nodes.run(&errands).await
}

fn number(field: &Reply) -> Option<u64> {
    match field {
        Reply::Bulk(Some(name)) => std::str::from_utf8(name).ok()?.parse().ok(),
        _ => None,
    }
}

/// Why we may not have a ledger.
pub(super) fn refused(nodes: &Nodes, refusal: &Refusal) -> Outage {
    let refusal = &script::known(refusal.clone());
    let words = match refusal.code.as_str() {
        "NOPERM" => format!(
            "url's user lacks rights: ACL SETUSER ... {}, and the keys {}",
            nodes.wording().rights,
            nodes.wording().keys
        ),
        "WRONGTYPE" => "a key that begins with aftercommit: is not ours: delete it".to_owned(),
        _ => match outcome::judge(refusal, b"", nodes.wording()) {
            outcome::Verdict::Outage(cause) => cause.to_string(),
            _ => worded(&refusal.code, &refusal.text),
        },
    };
    Outage::new(Cause::new(format!("{}: {words}", nodes.servers())))
}

fn no_answer(nodes: &Nodes) -> Outage {
    Outage::new(Cause::new(format!(
        "what answers at {} is no Redis",
        nodes.servers()
    )))
}
