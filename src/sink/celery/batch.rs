//! A batch in its wire form, in buffers that are used again and again.

use std::collections::HashMap;

use uuid::Uuid;

use crate::envelope::celery::Message;
use crate::envelope::kombu::{self, Lists};
use crate::sink::redis_client::outcome::shown;
use crate::sink::redis_client::resp;
use crate::sink::{Cause, Outcome};

/// Redis takes no larger argument (`proto-max-bulk-len`), and closes the connection at one: the same batch for ever.
const MAX_MESSAGE: usize = 512 << 20;
/// What the buffers have grown to beyond this is given back after the batch.
const BUFFERS_KEPT: usize = 4 << 20;
/// For each list, its messages as arguments of one LPUSH.
pub(super) struct Batch {
    /// Bytes of the largest message; less than that.
    limit: usize,
    groups: Vec<Group>,
    used: usize,
    key: Vec<u8>,
    body: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Group {
    pub(super) list: Vec<u8>,
    pub(super) messages: Vec<u8>,
    /// Indices of the tasks, one per message.
    pub(super) tasks: Vec<usize>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            limit: MAX_MESSAGE,
            groups: Vec::new(),
            used: 0,
            key: Vec::new(),
            body: Vec::new(),
        }
    }
}

impl Batch {
    /// The lists that have messages.
    pub(super) fn groups(&self) -> &[Group] {
        self.groups.get(..self.used).unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Gives back what an unusually large batch has needed.
    pub(super) fn shrink(&mut self) {
        self.used = 0;
        let mut kept = 0;
        self.groups.retain(|group| {
            kept += group.messages.capacity();
            kept <= BUFFERS_KEPT
        });
        self.body.clear();
        self.body.shrink_to(BUFFERS_KEPT);
    }

    /// Encodes `message` once for each of `queues`; `arguments` are the bytes of its task's
    /// args and kwargs.
    pub(super) fn add(
        &mut self,
        lists: &Lists,
        message: &Message<'_>,
        (index, arguments): (usize, usize),
        queues: &[&str],
        forbidden: &HashMap<Vec<u8>, Cause>,
    ) -> Outcome {
        if queues.is_empty() {
            return Outcome::Retry(Cause::new(format!(
                "no queue is bound to the exchange {} for the routing key {}: start a worker that declares it",
                shown(message.exchange.as_bytes()),
                shown(message.routing_key.as_bytes()),
            )));
        }
        if !forbidden.is_empty() {
            for queue in queues {
                self.key.clear();
                lists.write_key(&mut self.key, queue, message.priority);
                if let Some(cause) = forbidden.get(&self.key) {
                    return Outcome::Reject(cause.clone());
                }
            }
        }
        let limit = self.limit;
        let too_large = |len: usize| {
            Outcome::Reject(Cause::new(format!(
                "the message has {len} bytes, and Redis takes less than {} MiB",
                limit >> 20
            )))
        };
        // They become base64. What is far too large is not even encoded: that would take its size several times over.
        let least = arguments / 3 * 4;
        if least >= limit {
            return too_large(least);
        }
        for queue in queues {
            self.key.clear();
            lists.write_key(&mut self.key, queue, message.priority);
            let (group, body) = self.group();
            let before = group.messages.len();
            let len = resp::write_bulk_with(&mut group.messages, |out| {
                kombu::write(out, message, Uuid::new_v4(), body);
            });
            if len >= limit {
                group.messages.truncate(before);
                if group.tasks.is_empty() {
                    // It was made for this one, and is the last.
                    self.used -= 1;
                }
                return too_large(len);
            }
            group.tasks.push(index);
        }
        Outcome::Delivered
    }

    /// The group of the list `self.key`, and the scratch space for a body.
    fn group(&mut self) -> (&mut Group, &mut Vec<u8>) {
        let used = self.groups();
        let at = used
            .iter()
            .position(|group| group.list == self.key)
            .unwrap_or(self.used);
        if at == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[at];
        if at == self.used {
            self.used += 1;
            group.list.clone_from(&self.key);
            group.messages.clear();
            group.tasks.clear();
        }
        (group, &mut self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::celery::Defaults;
    use crate::outbox::{Field, Position, Task};
    use crate::pg::Timestamp;

    #[test]
    fn what_is_too_large_leaves_no_trace() {
        let defaults = Defaults {
            queue: "celery".to_owned(),
            origin: "here".to_owned(),
        };
        let lists = Lists {
            prefix: String::new(),
            separator: String::new(),
            steps: vec![0],
        };
        let mut batch = Batch {
            limit: 8_000,
            ..Batch::default()
        };
        // The second is too large once it is encoded, the third from the start.
        for (index, (queue, bytes)) in [("a", 9), ("b", 5_500), ("b", 9_000), ("a", 5_500)]
            .into_iter()
            .enumerate()
        {
            let args = format!("[\"{}\"]", "x".repeat(bytes));
            let fields = [
                (Field::Id, "6b8d3c9e-1b1b-4d4e-9d57-1c1e6f9f0a11"),
                (Field::Task, "a.task"),
                (Field::Args, &args),
            ];
            let task = Task::from_fields(fields, Position::default(), Timestamp(0));
            let message = Message::new(&task, &defaults, Timestamp(0)).expect("a message");
            let place = (index, args.len());
            let outcome = batch.add(&lists, &message, place, &[queue], &HashMap::new());
            assert_eq!(outcome == Outcome::Delivered, index == 0, "{index}");
        }
        let groups = batch.groups();
        assert_eq!(groups.len(), 1);
        assert_eq!((&*groups[0].list, &*groups[0].tasks), (&b"a"[..], &[0][..]));
    }
}
