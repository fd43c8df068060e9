//! Dramatiq's queues in Redis: a hash of messages, and a list of their ids.

use std::borrow::Cow;
use std::time::Duration;

use crate::envelope::Unfit;
use crate::envelope::dramatiq::{Defaults, Message};
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::redis::batch::{Group, Kind};
use crate::sink::redis::form::{Fit, Form, Look, Write};
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
    defaults: Defaults,
}

impl Messages {
    pub(super) fn new(namespace: &str, defaults: Defaults) -> Messages {
        Messages {
            prefix: format!("{namespace}:"),
            defaults,
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

    fn check<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<Fit<'t>, Unfit> {
        Ok(Box::new(Checked {
            prefix: &self.prefix,
            id: task.id(),
            message: Message::new(task, &self.defaults, now)?,
        }))
    }

    fn look(&self) -> Look {
        let ids = format!("{}{}", self.prefix, self.defaults.queue).into_bytes();
        let messages = [&ids[..], b".msgs"].concat();
        let mut look = Look::default();
        look.command(&[b"HSET", &messages, b"", b""]);
        look.command(&[b"RPUSH", &ids, b""]);
        look.keys = vec![(ids, "list"), (messages, "hash")];
        look
    }

    fn keeps(&self) -> Duration {
        self.defaults.ahead
    }
}

/// A message that can be written.
struct Checked<'t> {
    prefix: &'t str,
    id: &'t str,
    message: Message<'t>,
}

impl Write for Checked<'_> {
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(self.message.queue().as_bytes());
        Ok(())
    }

    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
        group.enter(place, |group, _| {
            let messages = group.key(&[place, b".msgs"].concat(), Kind::Hash);
            let ids = group.key(place, Kind::List);
            (
                vec![messages, ids],
                ("HSET", messages),
                Some(("RPUSH", ids)),
            )
        });
        group.argument(|out| {
            out.extend_from_slice(self.id.as_bytes());
            Ok(())
        })?;
        group.argument(|out| {
            self.message.write(out, Some(self.id));
            Ok(())
        })?;
        group.then_argument(self.id.as_bytes());
        Ok(())
    }
}
