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
#[derive(Default)]
pub(super) struct Batch {
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

    /// Encodes `message` once for each of `queues`.
    pub(super) fn add(
        &mut self,
        lists: &Lists,
        message: &Message<'_>,
        index: usize,
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
        for queue in queues {
            self.key.clear();
            lists.write_key(&mut self.key, queue, message.priority);
            let (group, body) = self.group();
            let before = group.messages.len();
            let len = resp::write_bulk_with(&mut group.messages, |out| {
                kombu::write(out, message, Uuid::new_v4(), body);
            });
            if len >= MAX_MESSAGE {
                group.messages.truncate(before);
                return Outcome::Reject(Cause::new(format!(
                    "the message has {len} bytes, and Redis takes 512 MiB"
                )));
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
