//! Dramatiq's queues in Redis: a hash of messages, and a list of their ids.

use std::borrow::Cow;
use std::time::Duration;

use crate::envelope::Unfit;
use crate::envelope::dramatiq::Message;
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::redis::batch::{Group, Kind};
use crate::sink::redis::form::{Form, Look};
use crate::sink::redis::script;
use crate::sink::redis_client::outcome::Wording;

const WORDING: Wording = Wording {
    url: "url",
    kind: "part of a Dramatiq queue",
    rights: "+eval +type +hget +hset +hdel +hkeys +hmget +expire +rpush",
    keys: "~<namespace>:* and ~aftercommit:*",
    cluster: ", where Dramatiq cannot work: name one Redis",
};

/// Messages of queues.
pub(super) struct Messages {
    /// With its colon.
    prefix: String,
    queue: String,
    ahead: Duration,
}

impl Messages {
    pub(super) fn new(namespace: &str, queue: &str, ahead: Duration) -> Messages {
        Messages {
            prefix: format!("{namespace}:"),
            queue: queue.to_owned(),
            ahead,
        }
    }
}

impl Form for Messages {
    fn wording(&self) -> &'static Wording {
        &WORDING
    }

    fn script(&self) -> &'static [u8] {
        script::RUN_COMMANDS
    }

    fn how(&self, group: &Group) -> (Cow<'static, [u8]>, String) {
        (Cow::Owned(group.kinds()), String::new())
    }

    fn place(&self, task: &Task, now: Timestamp, out: &mut Vec<u8>) -> Result<(), Unfit> {
        let message = Message::new(task, &self.queue, now)?;
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(message.queue().as_bytes());
        Ok(())
    }

    fn add(
        &self,
        group: &mut Group,
        place: &[u8],
        task: &Task,
        now: Timestamp,
    ) -> Result<(), Unfit> {
        group.enter(place, |group, _| {
            let messages = group.key(&[place, b".msgs"].concat(), Kind::Hash);
            let ids = group.key(place, Kind::List);
            (
                vec![messages, ids],
                ("HSET", messages),
                Some(("RPUSH", ids)),
            )
        });
        let id = task.id();
        group.argument(|out| {
            out.extend_from_slice(id.as_bytes());
            Ok(())
        })?;
        group.argument(|out| {
            Message::new(task, &self.queue, now)?.write(out, Some(id));
            Ok(())
        })?;
        group.then_argument(id.as_bytes());
        Ok(())
    }

    fn look(&self) -> Look {
        let ids = format!("{}{}", self.prefix, self.queue).into_bytes();
        let messages = [&ids[..], b".msgs"].concat();
        let mut look = Look::default();
        look.command(&[b"HSET", &messages, b"", b""]);
        look.command(&[b"RPUSH", &ids, b""]);
        look.keys = vec![(ids, "list"), (messages, "hash")];
        look
    }

    fn keeps(&self) -> Duration {
        self.ahead
    }
}
