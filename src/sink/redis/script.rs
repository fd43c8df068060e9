//! What happens inside of Redis: one script for each part of a batch, so that it happens as a whole or not at all.
//!
//! A script sees to it that the ledger is still ours and has the note of the part before, that the keys are what they must be,
//! pushes task after task, and notes what it has pushed. The arguments, in this order:
//!
//! | | |
//! |---|---|
//! | KEYS | the ledger, where there is one; the streams or lists |
//! | owner | our name in the ledger; empty: no ledger |
//! | number, note | the note; see `sink/marks.rs` |
//! | expiry | of the ledger, in seconds |
//! | how, limit | for streams: MAXLEN and a length, AGE and a time, or nothing; else a letter for each key: what it must be |
//! | after | the number of the note of the part before; of the first part: nothing |
//! | count, numbers | of notes to take away |
//! | tasks | see [`super::batch`] |

use crate::sink::redis_client::outcome::Wording;
use crate::sink::redis_client::resp::{Refusal, Reply};

pub(super) const WORDING: Wording = Wording {
    url: "url",
    kind: "stream or list, whichever is configured",
    rights: "+eval +type +hget +hset +hdel +hkeys +hmget +expire, and +xadd +xrange +xinfo +xtrim for streams, +lpush or \
             +rpush for lists",
    keys: "~<its name> and ~aftercommit:*",
    cluster: ": write redis+cluster:// instead of redis://",
};

/// Makes a ledger ours: what was sent under another name and has not been applied by now never will be. ARGV: our name, the
/// expiry. Gives the fields.
pub(super) const CLAIM: &[u8] = b"redis.call('HSET', KEYS[1], 'owner', ARGV[1]) \
redis.call('EXPIRE', KEYS[1], ARGV[2]) \
return redis.call('HKEYS', KEYS[1])";

/// Does nothing; but may we?
pub(super) const TRY: &[u8] = b"return 1";

/// Changes nothing: tells what the keys are, and which commands we may not use. KEYS: a ledger, and the others whose names are
/// known. ARGV: for each command, how many words it has, and they.
pub(super) const LOOK: &[u8] = b"local seen, i = {}, 1 \
for k = 1, #KEYS do seen[k] = redis.call('TYPE', KEYS[k]).ok end \
while i <= #ARGV do \
local last = i + ARGV[i] \
if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(ARGV, i + 1, last)) then seen[#seen + 1] = ARGV[i + 1] end \
i = last + 1 \
end \
return seen";

/// What the letter of the key `k` says that it must be.
macro_rules! kind {
    () => {
        "({l = 'list', h = 'hash', s = 'set', z = 'zset', x = 'stream', t = 'string'})[string.sub(ARGV[5], k - base, k - base)]"
    };
}

macro_rules! script {
    ($kind:expr, $push:literal) => {
        concat!(
            "local base, gone = ARGV[1] ~= '' and 1 or 0, tonumber(ARGV[8]) ",
            "if base == 1 then ",
            "if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return {'fenced'} end ",
            "if ARGV[7] ~= '' and not redis.call('HGET', KEYS[1], ARGV[7]) then return {'behind'} end ",
            "end ",
            "local wrong = {'wrong'} ",
            "for k = base + 1, #KEYS do ",
            "local kind = redis.call('TYPE', KEYS[k]).ok ",
            "if kind ~= 'none' and kind ~= ",
            $kind,
            " then wrong[#wrong + 1] = k - base - 1 end ",
            "end ",
            "if #wrong > 1 then return wrong end ",
            "local i, pushed, late, there = 9 + gone, 0, 0, 0 ",
            $push,
            "if base == 1 then ",
            "if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end ",
            "redis.call('EXPIRE', KEYS[1], ARGV[4]) ",
            "for g = 9, 8 + gone do redis.call('HDEL', KEYS[1], ARGV[g]) end ",
            "end ",
            "return {'applied', late, there}"
        )
        .as_bytes()
    };
}

/// A task is added under the id of its position. Where the stream is beyond that, it has the task already, and then it holds
/// this id with this task; or the task is late, and is added behind the last one.
///
/// Entries that are too old go as many at a time as have come, and some more: by the commit that stands in them, since nobody's
/// clock is in an id.
pub(super) const PUSH_TO_STREAMS: &[u8] = script!(
    "'stream'",
    "local tops = {} \
local function behind(key) \
if not tops[key] then \
local info = redis.call('XINFO', 'STREAM', key) \
for n = 1, #info, 2 do if info[n] == 'last-generated-id' then tops[key] = info[n + 1] end end \
end \
local ms, seq = string.match(tops[key], '(%d+)-(%d+)') \
if tonumber(seq) < 9007199254740991 then return string.format('%s-%.0f', ms, seq + 1) end \
return string.format('%.0f-0', ms + 1) \
end \
while i <= #ARGV do \
local key, last = KEYS[base + 1 + ARGV[i]], i + 2 + ARGV[i + 2] \
local id = redis.pcall('XADD', key, ARGV[i + 1], unpack(ARGV, i + 3, last)) \
if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then \
local found = redis.call('XRANGE', key, ARGV[i + 1], ARGV[i + 1])[1] \
if found and found[2][1] == 'id' and found[2][2] == ARGV[i + 4] then id, there = nil, there + 1 \
else id, late = redis.pcall('XADD', key, behind(key), unpack(ARGV, i + 3, last)), late + 1 end \
end \
if type(id) == 'table' then return {'stopped', pushed, tonumber(ARGV[i]), id.err} end \
if id then tops[key] = id end \
i, pushed = last + 1, pushed + 1 \
end \
local function committed(entry) \
for n = 1, #entry[2], 2 do if entry[2][n] == 'committed_at' then return entry[2][n + 1] end end \
end \
for k = base + 1, #KEYS do \
if ARGV[5] == 'MAXLEN' then redis.pcall('XTRIM', KEYS[k], 'MAXLEN', '~', ARGV[6]) \
elseif ARGV[5] == 'AGE' then \
local first = redis.call('XRANGE', KEYS[k], '-', '+', 'COUNT', 1)[1] \
if first and (committed(first) or '') < ARGV[6] then \
local oldest = redis.call('XRANGE', KEYS[k], '-', '+', 'COUNT', 2 * pushed + 10) \
for n = #oldest - 1, 1, -1 do \
if (committed(oldest[n]) or ARGV[6]) < ARGV[6] then redis.pcall('XTRIM', KEYS[k], 'MINID', oldest[n + 1][1]) break end \
end end end end "
);

/// Tasks are commands, each with one key.
pub(in crate::sink) const RUN_COMMANDS: &[u8] = script!(
    kind!(),
    "while i <= #ARGV do \
local last = i + 3 + ARGV[i + 3] \
local reply = redis.pcall(ARGV[i], KEYS[base + 1 + ARGV[i + 1]], unpack(ARGV, i + 4, last)) \
if type(reply) == 'table' and reply.err then return {'stopped', pushed, tonumber(ARGV[i + 1]), reply.err} end \
i, pushed = last + 1, pushed + ARGV[i + 2] \
end "
);

/// Tasks are jobs of BullMQ, which is told of each as its own script does it: the hash, the list or the set of what waits, the
/// marker that wakes workers, and the events. A job that is there already stays as it is.
///
/// KEYS of a queue, one after the other: wait, paused, active, prioritized, pc, meta, events, marker. A job: index of the first
/// of them, key of its hash, id, name, data, options, timestamp, priority, and the command that pushes.
///
/// Version 5 moves what waits in a queue that is paused to another list; version 6 does not.
pub(in crate::sink) const ADD_BULLMQ_JOBS: &[u8] = script!(
    kind!(),
    "local queues = {} \
local function queue(first) \
local known = queues[first] \
if known then return known end \
local meta = KEYS[first + 5] \
local about = redis.call('HMGET', meta, 'paused', 'concurrency', 'opts.maxLenEvents', 'version') \
known = {wait = KEYS[first], quiet = about[1] and true, most = about[3] or '10000'} \
if not about[3] then redis.call('HSET', meta, 'opts.maxLenEvents', known.most) end \
if about[1] and (tonumber(string.match(about[4] or '', ':(%d+)')) or 0) < 6 then known.wait = KEYS[first + 1] end \
if about[2] and redis.call('LLEN', KEYS[first + 2]) >= tonumber(about[2]) then known.quiet = true end \
queues[first] = known \
return known \
end \
while i <= #ARGV do \
local first, hash, id, priority = base + 1 + ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 7]) \
local function stopped(reply) return {'stopped', pushed, tonumber(ARGV[i]), reply.err} end \
local to = queue(first) \
if redis.call('EXISTS', hash) == 1 then there = there + 1 \
else \
local reply = redis.pcall('HSET', hash, 'name', ARGV[i + 3], 'data', ARGV[i + 4], 'opts', ARGV[i + 5], \
'timestamp', ARGV[i + 6], 'delay', '0', 'priority', ARGV[i + 7]) \
if type(reply) == 'table' then return stopped(reply) end \
if priority > 0 then \
local count = redis.pcall('INCR', KEYS[first + 4]) \
reply = type(count) == 'table' and count or \
redis.pcall('ZADD', KEYS[first + 3], string.format('%.0f', priority * 4294967296 + count % 4294967296), id) \
else reply = redis.pcall(ARGV[i + 8], to.wait, id) end \
if type(reply) == 'table' then redis.call('DEL', hash) return stopped(reply) end \
if not to.quiet then redis.call('ZADD', KEYS[first + 7], '0', '0') end \
redis.call('XADD', KEYS[first + 6], '*', 'event', 'added', 'jobId', id, 'name', ARGV[i + 3]) \
redis.call('XADD', KEYS[first + 6], 'MAXLEN', '~', to.most, '*', 'event', 'waiting', 'jobId', id) \
end \
i, pushed = i + 9, pushed + 1 \
end "
);

/// What a script has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// Everything.
    Applied {
        /// Tasks that a stream was beyond.
        late: u64,
        /// Tasks that a stream had already.
        there: u64,
    },
    /// Nothing: the ledger is somebody else's, or gone.
    Fenced,
    /// Nothing: the part before was not applied, or not noted.
    Behind,
    /// Nothing: these keys, by their index, are something else.
    Wrong(Vec<usize>),
    /// So many tasks, from the first one on; then this key has refused. Nothing is noted.
    Stopped {
        pushed: usize,
        key: usize,
        refusal: Refusal,
    },
    /// Nothing.
    Refused(Refusal),
}

/// Reads a script's answer; `None` if it is none.
pub(super) fn read(reply: Reply) -> Option<Done> {
    let parts = match reply {
        Reply::Array(Some(parts)) => parts,
        Reply::Error(refusal) => return Some(Done::Refused(known(refusal))),
        _ => return None,
    };
    let mut parts = parts.into_iter();
    let word = match parts.next() {
        Some(Reply::Bulk(Some(word))) => word,
        _ => return None,
    };
    let mut numbers = Vec::new();
    let mut words = None;
    for part in parts {
        match part {
            Reply::Integer(number) => numbers.push(u64::try_from(number).ok()?),
            Reply::Bulk(Some(text)) => words = Some(String::from_utf8_lossy(&text).into_owned()),
            _ => return None,
        }
    }
    let index = |number: u64| usize::try_from(number).ok();
    match (word.as_slice(), numbers.as_slice(), words) {
        (b"applied", [late, there], None) => Some(Done::Applied {
            late: *late,
            there: *there,
        }),
        (b"fenced", [], None) => Some(Done::Fenced),
        (b"behind", [], None) => Some(Done::Behind),
        (b"wrong", keys, None) => Some(Done::Wrong(
            keys.iter().copied().map(index).collect::<Option<_>>()?,
        )),
        (b"stopped", [pushed, key], Some(error)) => {
            let error = error.trim_start_matches('-');
            let (code, text) = error.split_once(' ').unwrap_or((error, ""));
            Some(Done::Stopped {
                pushed: index(*pushed)?,
                key: index(*key)?,
                refusal: known(Refusal {
                    code: code.to_owned(),
                    text: text.to_owned(),
                }),
            })
        }
        _ => None,
    }
}

/// A right that is missing inside of a script has no code of its own.
pub(super) fn known(refusal: Refusal) -> Refusal {
    let is_about_rights = refusal.code == "ERR"
        && ["executing the script", "ACL failure"]
            .iter()
            .any(|words| refusal.text.contains(words));
    match is_about_rights {
        true => Refusal {
            code: "NOPERM".to_owned(),
            text: "in a script".to_owned(),
        },
        false => refusal,
    }
}

/// Whether a stream has refused for ever: its last id is the largest that there is.
pub(super) fn is_exhausted(refusal: &Refusal) -> bool {
    refusal.text.contains("equal or smaller") || refusal.text.contains("exhausted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let text = |text: &str| Reply::Bulk(Some(text.as_bytes().to_vec()));
        let refusal = |code: &str, text: &str| Refusal {
            code: code.to_owned(),
            text: text.to_owned(),
        };
        let stopped = |error: &str| {
            let (pushed, key) = (Reply::Integer(3), Reply::Integer(1));
            vec![text("stopped"), pushed, key, text(error)]
        };
        let found = |code: &str, text: &str| {
            Some(Done::Stopped {
                pushed: 3,
                key: 1,
                refusal: refusal(code, text),
            })
        };
        for (parts, expected) in [
            (
                vec![text("applied"), Reply::Integer(2), Reply::Integer(1)],
                Some(Done::Applied { late: 2, there: 1 }),
            ),
            (vec![text("fenced")], Some(Done::Fenced)),
            (
                vec![text("wrong"), Reply::Integer(0), Reply::Integer(2)],
                Some(Done::Wrong(vec![0, 2])),
            ),
            (
                stopped("OOM command not allowed"),
                found("OOM", "command not allowed"),
            ),
            (
                stopped("-READONLY You can't"),
                found("READONLY", "You can't"),
            ),
            (
                stopped("ERR The user executing the script can't run this command or subcommand"),
                found("NOPERM", "in a script"),
            ),
            (
                vec![text("applied"), Reply::Integer(-1), Reply::Integer(0)],
                None,
            ),
            (vec![text("fenced")], Some(Done::Fenced)),
            (vec![text("behind")], Some(Done::Behind)),
            (vec![text("else")], None),
            (vec![], None),
        ] {
            assert_eq!(read(Reply::Array(Some(parts))), expected);
        }
        assert_eq!(
            read(Reply::Error(refusal("NOPERM", "ACL failure in script: x"))),
            Some(Done::Refused(refusal("NOPERM", "ACL failure in script: x")))
        );
        assert_eq!(read(Reply::Integer(1)), None);
    }
}
