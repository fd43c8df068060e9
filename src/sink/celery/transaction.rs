//! A batch as one MULTI: written, sent, and its replies read.

use std::io::IoSlice;

use super::batch::Group;
use super::ledger::Entry;
use super::refusals::judge;
use crate::sink::Cause;
use crate::sink::redis_client::connection::{Connection, Trouble};
use crate::sink::redis_client::outcome::Verdict;
use crate::sink::redis_client::resp::{self, Refusal, Reply};

/// What became of a transaction.
pub(super) struct Answer {
    pub(super) sent: Sent,
    /// The ledger is still ours, and watched for the next transaction.
    pub(super) is_ours: bool,
}

pub(super) enum Sent {
    /// Applied, but for the lists that are listed with the reason.
    Applied {
        refusals: Vec<(usize, Cause)>,
        /// Size of the note in the ledger, where one was asked for.
        noted: Option<Result<usize, Refusal>>,
    },
    /// Nothing was applied, because of the lists that are listed.
    Aborted(Vec<(Vec<u8>, Cause)>),
    /// Nothing was applied, because of the note.
    Unmarked(Refusal),
    /// Nothing was applied: the ledger was touched by somebody else.
    Fenced,
    /// Nothing was applied.
    Outage(Cause),
}

/// Replies but for those of the lists: to MULTI and EXEC; and to the note, and to the watch for the next time.
const REPLIES: usize = 2;
const REPLIES_OF_ENTRY: usize = 3;

/// Sends it.
pub(super) async fn send(
    connection: &mut Connection,
    groups: &[Group],
    entry: Option<&Entry>,
) -> Result<(), Trouble> {
    let mut frames = Vec::new();
    let mut ends = Vec::with_capacity(groups.len());
    resp::write_command(&mut frames, &[b"MULTI"]);
    for group in groups {
        resp::write_header(&mut frames, b'*', group.tasks.len() + 2);
        resp::write_bulk(&mut frames, b"LPUSH");
        resp::write_bulk(&mut frames, &group.list);
        ends.push(frames.len());
    }
    let mut request = Vec::with_capacity(2 * groups.len() + 1);
    let mut start = 0;
    for (group, end) in groups.iter().zip(ends) {
        request.push(IoSlice::new(frames.get(start..end).unwrap_or_default()));
        request.push(IoSlice::new(&group.messages));
        start = end;
    }
    let mut rest = Vec::new();
    if let Some(entry) = entry {
        entry.write_note(&mut rest, groups);
    }
    resp::write_command(&mut rest, &[b"EXEC"]);
    if let Some(entry) = entry {
        entry.write_watch(&mut rest);
    }
    request.push(IoSlice::new(&rest));
    connection.send(&request).await
}

/// Waits for what became of it.
pub(super) async fn answer(
    connection: &mut Connection,
    groups: &[Group],
    entry: Option<&Entry>,
) -> Result<Answer, Trouble> {
    let of_entry = if entry.is_some() { REPLIES_OF_ENTRY } else { 0 };
    let expected = groups.len() + REPLIES + of_entry;
    let mut replies = connection.replies(expected).await?;
    let is_ours = match entry {
        Some(entry) => {
            let watch = replies.split_off(replies.len() - (REPLIES_OF_ENTRY - 1));
            entry.is_ours(&watch)
        }
        None => false,
    };
    let sent = read(groups, entry.is_some(), replies)?;
    Ok(Answer { sent, is_ours })
}

fn read(groups: &[Group], with_note: bool, mut replies: Vec<Reply>) -> Result<Sent, Trouble> {
    let executed = replies.pop();
    match (replies.first(), executed) {
        (Some(Reply::Simple(_)), Some(Reply::Array(Some(mut done))))
            if done.len() == groups.len() + usize::from(with_note) =>
        {
            let noted = match with_note {
                true => Some(noted(done.pop())?),
                false => None,
            };
            let refusals = refusals(groups, &done);
            Ok(Sent::Applied { refusals, noted })
        }
        (Some(Reply::Simple(_)), Some(Reply::Array(None))) => Ok(Sent::Fenced),
        (Some(Reply::Simple(_)), Some(Reply::Error(aborted))) => {
            let queued = replies.get(1..).unwrap_or_default();
            match refused(groups, queued) {
                Some(sent) => Ok(sent),
                // No command of ours was refused, but EXEC itself.
                None => Err(Trouble::Refused(aborted)),
            }
        }
        (Some(Reply::Error(refusal)), _) => Err(Trouble::Refused(refusal.clone())),
        _ => Err(Trouble::NotRedis),
    }
}

fn noted(reply: Option<Reply>) -> Result<Result<usize, Refusal>, Trouble> {
    match reply {
        Some(Reply::Integer(bytes)) => match usize::try_from(bytes) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(_) => Err(Trouble::NotRedis),
        },
        Some(Reply::Error(refusal)) => Ok(Err(refusal)),
        _ => Err(Trouble::NotRedis),
    }
}

/// Reads EXEC's replies. A command that fails there does not undo the others.
fn refusals(groups: &[Group], replies: &[Reply]) -> Vec<(usize, Cause)> {
    let mut refusals = Vec::new();
    for (at, (group, reply)) in groups.iter().zip(replies).enumerate() {
        if let Reply::Error(refusal) = reply {
            let cause = match judge(refusal, &group.list) {
                Verdict::Outage(cause) | Verdict::KeyRetry(cause) | Verdict::KeyReject(cause) => {
                    cause
                }
            };
            refusals.push((at, cause));
        }
    }
    refusals
}

/// Reads the replies of commands that were to be queued, one of which at least was refused: the lists', then the note's,
/// whose command names the lists too and is refused where one of them is.
fn refused(groups: &[Group], replies: &[Reply]) -> Option<Sent> {
    let mut lists = Vec::new();
    for (group, reply) in groups.iter().zip(replies) {
        if let Reply::Error(refusal) = reply {
            match judge(refusal, &group.list) {
                Verdict::Outage(cause) => return Some(Sent::Outage(cause)),
                Verdict::KeyRetry(cause) | Verdict::KeyReject(cause) => {
                    lists.push((group.list.clone(), cause));
                }
            }
        }
    }
    match replies.get(groups.len()) {
        _ if !lists.is_empty() => Some(Sent::Aborted(lists)),
        Some(Reply::Error(refusal)) => Some(Sent::Unmarked(refusal.clone())),
        _ => None,
    }
}
