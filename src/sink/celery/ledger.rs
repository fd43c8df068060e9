//! The ledger: a hash in the same Redis, with a note for each batch of late, written in the batch's own transaction.
//!
//! - **What it holds.** `<prefix>aftercommit:marks:1:<scope>` has a field for each note ([`crate::sink::marks`]), under its
//!   number, and the field `owner`: who has claimed it. A batch brings its note and takes away those that are of no more
//!   use, so the hash has about as many as there are batches between two checkpoints. It expires a week after the last
//!   batch, or a scope that is no more (a lane, a sink, a timeline) would stay for ever; so a daemon that was killed and
//!   comes back after more than a week repeats what was in flight. Longer than Celery's results live (a day), which are
//!   what a `volatile-*` policy should evict first.
//! - **The note says what was applied, and nothing else.** A command that fails inside of EXEC does not undo the others: a
//!   list of the wrong type takes nothing, and its neighbours do. So the note is written behind the pushes by a script
//!   that looks at each list, and leaves out the tasks of those that have taken none. The messages themselves do not pass
//!   through the script: that would cost Redis three times the work (measured: 1.4 µs a task instead of 0.5; the note
//!   costs 0.04).
//! - **Nothing arrives late.** A batch whose answer did not come may still be on its way, in a buffer of ours, of the
//!   network, or of a Redis that hangs. So each transaction is watched: who opens the ledger writes another owner into it,
//!   in one step with the look at the notes, and whatever was sent before and has not been applied by then never will be.
//!   This holds for a daemon that was killed, and for two that believe to be the active one.
//! - **Rights.** The user of `broker_url` needs WATCH, EVAL, HSET, HGET, HMGET, HKEYS, HDEL, EXPIRE and TYPE, and the keys
//!   `aftercommit:*`. Without, it is logged, and tasks go without notes: a crash or a lost answer repeats what was in
//!   flight, and what arrives late is not stopped.
//!
//! **Where it ends.** Marks are as durable as the lists beside them, not more. Another Redis, one that was flushed or set
//! back, an evicted or expired ledger: then what was in flight comes a second time, with the same task id, and nothing is
//! lost that was not lost with the lists. A failover to a replica that is behind loses messages and notes together. On a
//! Redis Cluster the lists and the ledger would be on several nodes: it takes no such transaction, and this sink refuses
//! it. And no more than 4 MiB of notes are kept, and of what a predecessor has left and is settled, 131,072 tasks: who
//! falls behind further than that may repeat the rest when it is killed.

use std::io::IoSlice;

use uuid::Uuid;

use super::batch::Group;
use super::connection::{Connection, Trouble};
use super::resp::{self, Refusal, Reply};
use crate::sink::marks::encoding::List;
use crate::sink::marks::{Mark, Scope};

/// A week, in seconds.
const EXPIRES: &[u8] = b"604800";
/// The field that says whose it is.
const OWNER: &[u8] = b"owner";
/// Notes that are read at a time: a reply has a limit.
const READ: usize = 128;

/// Writes the note, in the transaction that has just pushed. KEYS: the ledger, the lists. ARGV: the note's number, the
/// expiry, the part of tasks that went to several lists, the parts of each list, and the numbers of notes to take away.
///
/// A push may also be refused for a right that was withdrawn since it was queued, which Redis 7 can tell.
const WRITE: &[u8] = b"local note, whole = '', true \
for i = 2, #KEYS do \
if redis.call('TYPE', KEYS[i]).ok == 'list' and (not redis.acl_check_cmd or redis.acl_check_cmd('LPUSH', KEYS[i], '')) \
then note = note .. ARGV[i + 2] else whole = false end \
end \
if whole then note = note .. ARGV[3] end \
if note ~= '' then redis.call('HSET', KEYS[1], ARGV[1], note) end \
redis.call('EXPIRE', KEYS[1], ARGV[2]) \
for i = #KEYS + 3, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end \
return #note";

/// The key of a scope's ledger.
pub(super) fn key(prefix: &str, scope: &Scope) -> String {
    format!("{prefix}aftercommit:marks:1:{scope}")
}

/// What a claim has brought.
pub(super) enum Claim {
    /// It is ours, and watched.
    Ours {
        /// Our name in it.
        owner: String,
        /// The numbers of its notes.
        there: Vec<u64>,
        /// The note that was asked for, if it is there.
        doubtful: Option<Vec<u8>>,
    },
    /// Somebody else has claimed it at the same moment.
    Contested,
    /// It is not for us.
    Refused(Refusal),
}

/// Makes the ledger ours: what anybody has sent before and is not applied by now never will be. Reads the note of the batch
/// whose answer did not come, too, which saves a round trip after each outage.
pub(super) async fn claim(
    connection: &mut Connection,
    key: &str,
    doubtful: Option<u64>,
) -> Result<Claim, Trouble> {
    let owner = Uuid::new_v4().to_string();
    let number = doubtful.unwrap_or_default().to_string();
    let key = key.as_bytes();
    let mut request = Vec::new();
    // What was watched before may have been touched, which would undo this transaction.
    for command in [
        &[&b"UNWATCH"[..]][..],
        &[b"MULTI"],
        &[b"HSET", key, OWNER, owner.as_bytes()],
        &[b"EXPIRE", key, EXPIRES],
        &[b"HKEYS", key],
        &[b"HGET", key, number.as_bytes()],
        &[b"EXEC"],
        &[b"WATCH", key],
        &[b"HGET", key, OWNER],
    ] {
        resp::write_command(&mut request, command);
    }
    let mut replies = connection.ask(&[IoSlice::new(&request)], 9).await?;
    let name = replies.pop();
    let (mut there, mut note) = (Vec::new(), None);
    for reply in replies {
        match reply {
            // The refusal of EXEC says only that there was one before.
            Reply::Error(refusal) => return claim_refused(&refusal),
            Reply::Array(Some(mut done)) => match (done.pop(), done.as_slice()) {
                (_, [Reply::Error(refusal), ..]) => return claim_refused(refusal),
                (Some(Reply::Bulk(found)), [_, _, Reply::Array(Some(fields))]) => {
                    there = fields.iter().filter_map(number_of).collect();
                    note = found;
                }
                _ => return Err(Trouble::NotRedis),
            },
            _ => {}
        }
    }
    match name {
        Some(Reply::Bulk(Some(name))) if name == owner.as_bytes() => Ok(Claim::Ours {
            owner,
            there,
            doubtful: note.filter(|_| doubtful.is_some()),
        }),
        Some(Reply::Bulk(_)) => Ok(Claim::Contested),
        Some(Reply::Error(refusal)) => claim_refused(&refusal),
        _ => Err(Trouble::NotRedis),
    }
}

/// What we are not allowed to do, or this Redis does not know, or another program's key stands in the way of, means that
/// there is no ledger for us. Everything else would refuse the tasks too.
fn claim_refused(refusal: &Refusal) -> Result<Claim, Trouble> {
    match refusal.code.as_str() {
        "NOPERM" | "WRONGTYPE" => Ok(Claim::Refused(refusal.clone())),
        "ERR" if refusal.text.starts_with("unknown command") => Ok(Claim::Refused(refusal.clone())),
        _ => Err(Trouble::Refused(refusal.clone())),
    }
}

fn number_of(field: &Reply) -> Option<u64> {
    match field {
        Reply::Bulk(Some(name)) => std::str::from_utf8(name).ok()?.parse().ok(),
        _ => None,
    }
}

/// Reads notes.
pub(super) async fn read(
    connection: &mut Connection,
    key: &str,
    numbers: Vec<u64>,
) -> Result<Vec<(u64, Vec<u8>)>, Trouble> {
    let mut notes = Vec::with_capacity(numbers.len());
    for numbers in numbers.chunks(READ) {
        let mut request = Vec::new();
        resp::write_header(&mut request, b'*', numbers.len() + 2);
        resp::write_bulk(&mut request, b"HMGET");
        resp::write_bulk(&mut request, key.as_bytes());
        for number in numbers {
            resp::write_bulk(&mut request, number.to_string().as_bytes());
        }
        let reply = connection.ask(&[IoSlice::new(&request)], 1).await?.pop();
        let values = match reply {
            Some(Reply::Array(Some(values))) if values.len() == numbers.len() => values,
            Some(Reply::Error(refusal)) => return Err(Trouble::Refused(refusal)),
            _ => return Err(Trouble::NotRedis),
        };
        for (number, value) in numbers.iter().zip(values) {
            if let Reply::Bulk(Some(note)) = value {
                notes.push((*number, note));
            }
        }
    }
    Ok(notes)
}

/// A batch's entry in the ledger.
pub(super) struct Entry {
    key: String,
    owner: String,
    number: u64,
    /// The note's parts: tasks that went to several lists, and the tasks of each list.
    several: Vec<u8>,
    parts: Vec<Vec<u8>>,
    gone: Vec<u64>,
}

impl Entry {
    /// The entry for what is in `groups`; `marks` are those of the batch.
    pub(super) fn new(
        key: String,
        owner: String,
        number: u64,
        groups: &[Group],
        marks: &[Mark],
        gone: &[u64],
    ) -> Entry {
        let mut copies = vec![0u8; marks.len()];
        for index in groups.iter().flat_map(|group| &group.tasks) {
            if let Some(copies) = copies.get_mut(*index) {
                *copies = copies.saturating_add(1);
            }
        }
        let mut several = List::default();
        let part = |group: &Group| {
            let mut list = List::default();
            for index in &group.tasks {
                match (marks.get(*index), copies.get_mut(*index)) {
                    (Some(mark), Some(1)) => list.add(*mark),
                    (Some(mark), Some(copies)) if *copies > 0 => {
                        several.add(*mark);
                        *copies = 0;
                    }
                    _ => {}
                }
            }
            list.finish()
        };
        let parts = groups.iter().map(part).collect();
        Entry {
            key,
            owner,
            number,
            several: several.finish(),
            parts,
            gone: gone.to_vec(),
        }
    }

    /// Writes the command that notes what was pushed.
    pub(super) fn write_note(&self, out: &mut Vec<u8>, groups: &[Group]) {
        let keys = groups.len() + 1;
        resp::write_header(out, b'*', 3 + keys + 3 + self.parts.len() + self.gone.len());
        resp::write_bulk(out, b"EVAL");
        resp::write_bulk(out, WRITE);
        resp::write_bulk(out, keys.to_string().as_bytes());
        resp::write_bulk(out, self.key.as_bytes());
        for group in groups {
            resp::write_bulk(out, &group.list);
        }
        resp::write_bulk(out, self.number.to_string().as_bytes());
        resp::write_bulk(out, EXPIRES);
        resp::write_bulk(out, &self.several);
        for part in &self.parts {
            resp::write_bulk(out, part);
        }
        for number in &self.gone {
            resp::write_bulk(out, number.to_string().as_bytes());
        }
    }

    /// Writes the commands that watch the ledger for the next transaction, and see that it is still ours.
    pub(super) fn write_watch(&self, out: &mut Vec<u8>) {
        resp::write_command(out, &[b"WATCH", self.key.as_bytes()]);
        resp::write_command(out, &[b"HGET", self.key.as_bytes(), OWNER]);
    }

    /// Whether the replies to these say so.
    pub(super) fn is_ours(&self, replies: &[Reply]) -> bool {
        matches!(
            replies,
            [Reply::Simple(_), Reply::Bulk(Some(owner))] if owner == self.owner.as_bytes()
        )
    }
}
