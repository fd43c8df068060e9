//! What Sidekiq, Dramatiq and BullMQ have in Redis: the messages of their queues, as their workers would read them.

use std::borrow::Cow;

use redis::Connection;
use serde::Deserialize;

use super::Found;
use crate::support::exam::ledger::Delivery;

/// The messages, or ids of messages, of a key of a queue; none where it is what else belongs to one. What belongs to no
/// queue is nobody's.
pub(super) fn messages(redis: &mut Connection, key: &[u8]) -> Vec<Vec<u8>> {
    let kind: String = redis::cmd("TYPE").arg(key).query(redis).expect("TYPE");
    let name = String::from_utf8_lossy(key);
    let known = ["queue:", "dramatiq:", "bull:"].map(|start| name.starts_with(start));
    let command = match kind.as_str() {
        "list" if known.contains(&true) => "LRANGE",
        "zset" if name == "schedule" || name.ends_with(":prioritized") => "ZRANGE",
        "set" if name == "queues" => return Vec::new(),
        _ if known.contains(&true) => return Vec::new(),
        _ => panic!("{name} is nobody's"),
    };
    let range = redis::cmd(command).arg(key).arg(0).arg(-1).clone();
    range.query(redis).expect("a list")
}

/// A job of Sidekiq's.
pub(super) fn add_sidekiq(job: &[u8], found: &mut Found) {
    #[derive(Deserialize)]
    struct Job<'m> {
        #[serde(borrow)]
        class: Cow<'m, str>,
        #[serde(borrow)]
        jid: Cow<'m, str>,
        #[serde(borrow, rename = "aftercommit-lsn")]
        lsn: Cow<'m, str>,
    }
    let Job { class, jid, lsn } = serde_json::from_slice(job).expect("a job");
    found.add(&jid, &class, job.len(), || {
        Delivery::of_arguments(&jid, &lsn, job)
    });
}

/// Messages of Dramatiq's, whose ids are in the list.
pub(super) fn add_dramatiq(redis: &mut Connection, list: &str, ids: &[Vec<u8>], found: &mut Found) {
    if ids.is_empty() {
        return;
    }
    let messages = format!("{list}.msgs");
    let mut command = redis::cmd("HMGET");
    command.arg(&messages).arg(ids);
    let all: Vec<Option<Vec<u8>>> = command.query(redis).expect("messages");
    for message in all {
        add_dramatiq_message(&message.expect("a message to each id"), found);
    }
}

/// A message of Dramatiq's.
pub(super) fn add_dramatiq_message(message: &[u8], found: &mut Found) {
    #[derive(Deserialize)]
    struct Message<'m> {
        #[serde(borrow)]
        actor_name: Cow<'m, str>,
        #[serde(borrow)]
        message_id: Cow<'m, str>,
        #[serde(borrow)]
        options: Options<'m>,
    }
    let Message {
        actor_name,
        message_id,
        options,
    } = serde_json::from_slice(message).expect("a message");
    found.add(&message_id, &actor_name, message.len(), || {
        Delivery::of_event(&message_id, &options.lsn, message)
    });
}

#[derive(Deserialize)]
struct Options<'m> {
    #[serde(borrow, rename = "aftercommit-lsn")]
    lsn: Cow<'m, str>,
}

/// Jobs of BullMQ's, whose ids are in the list: `bull:<queue>:<part>`.
pub(super) fn add_bullmq(redis: &mut Connection, list: &str, ids: &[Vec<u8>], found: &mut Found) {
    if ids.is_empty() {
        return;
    }
    let (queue, _) = list.rsplit_once(':').expect("a queue");
    let mut commands = redis::pipe();
    for id in ids {
        let key = [queue.as_bytes(), b":", id].concat();
        commands
            .cmd("HMGET")
            .arg(key)
            .arg(&["name", "data", "opts"]);
    }
    let jobs: Vec<(String, Vec<u8>, Vec<u8>)> = commands.query(redis).expect("a job to each id");
    for (id, (name, data, options)) in ids.iter().zip(jobs) {
        let id = String::from_utf8_lossy(id);
        let options: Options = serde_json::from_slice(&options).expect("options");
        found.add(&id, &name, data.len(), || {
            Delivery::of_kwargs(&id, &options.lsn, &data)
        });
    }
}
