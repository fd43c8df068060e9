//! Scripts on their way, and what became of them. One for each slot, side by side; or, on one server, one for each part of the
//! batch, one behind the other: while the next part is being written, Redis does the one before.
//!
//! **A part is applied only behind the part before it, when that was applied as a whole.** Its script looks for that part's note
//! in the ledger, and does nothing where there is none: for whatever reason a part was not applied, or not as a whole, none of
//! those behind it is. So no task overtakes an earlier one of its key. What was not applied is gathered and sent again once all parts
//! are answered; what was applied, and not answered, is found in the ledger by its own note.

use std::io::IoSlice;

use super::batch::Group;
use super::push::{Limit, Progress, Pusher};
use super::send::{Head, Rest, marks};
use crate::sink::Outage;
use crate::sink::redis_client::nodes::{Errand, Taken};

/// Tasks in a part, and bytes of their arguments from which on it is full. Small, so that Redis soon has something to do, and
/// has little left to do when the last one is written; large beside what a script costs.
const PART: Limit = Limit {
    tasks: 256,
    bytes: 128 << 10,
};

impl Pusher {
    /// Gathers and sends, and takes in what became of it. False when there was nothing to send.
    pub(super) async fn send(&mut self, progress: &mut Progress<'_>) -> Result<bool, Outage> {
        let used = self.gather(progress, &mut 0, 0, Limit::NONE);
        let mut groups = std::mem::take(&mut self.groups);
        groups.truncate(used);
        groups.retain(|group| !group.tasks.is_empty());
        if groups.is_empty() {
            return Ok(false);
        }
        let mut heads = Vec::with_capacity(groups.len());
        for group in &groups {
            let marks = marks(group, group.tasks.len(), progress);
            heads.push(self.head(group, &marks, None, progress));
        }
        let parts = groups.iter().zip(&heads);
        let (wait, commands) = (&self.wait, self.commands());
        let errands: Vec<Errand<'_>> = parts
            .map(|(group, head)| Errand {
                slot: group.slot,
                request: vec![&head.bytes, &group.body, wait],
                commands,
            })
            .collect();
        let answers = self.nodes.run(&errands).await;
        let mut rest = Rest::default();
        for ((group, head), answer) in groups.iter().zip(&heads).zip(answers) {
            let taken = match answer {
                Ok(replies) => self.take_in(group, head, replies, progress, &mut rest),
                Err(outage) => Err(outage),
            };
            rest.outage = rest.outage.or(taken.err());
        }
        self.groups = groups;
        self.see_to(rest, progress).await?;
        Ok(true)
    }

    /// Gathers and sends in parts, on one server whose ledger is open, and takes in what became of them. False when there was
    /// nothing to send.
    pub(super) async fn send_in_parts(
        &mut self,
        progress: &mut Progress<'_>,
    ) -> Result<bool, Outage> {
        let (mut from, mut heads, mut taken) = (0, Vec::<Head>::new(), None);
        loop {
            let part = heads.len();
            if part == self.groups.len() {
                self.groups.push(Group::default());
            }
            if let Some(group) = self.groups.get_mut(part) {
                group.tasks.clear();
                group.body = std::mem::take(&mut self.spare);
            }
            self.gather(progress, &mut from, part, PART);
            let mut groups = std::mem::take(&mut self.groups);
            let Some(group) = groups.get_mut(part) else {
                break;
            };
            if group.tasks.is_empty() {
                self.spare = std::mem::take(&mut group.body);
                self.groups = groups;
                break;
            }
            let marks = marks(group, group.tasks.len(), progress);
            let after = heads.last().map(|head| head.number);
            let head = self.head(group, &marks, after, progress);
            let Taken { place, link } = match &mut taken {
                Some(taken) => taken,
                None => taken.insert(self.nodes.take().await?),
            };
            let request = [IoSlice::new(&head.bytes), IoSlice::new(&group.body)];
            let sent = link.send(&request).await;
            sent.map_err(|trouble| self.nodes.lost(trouble, place))?;
            self.spare = std::mem::take(&mut group.body);
            self.groups = groups;
            heads.push(head);
        }
        let Some(Taken { place, mut link }) = taken else {
            return Ok(false);
        };
        // For all parts: it counts what the connection has written.
        let sent = link.send(&[IoSlice::new(&self.wait)]).await;
        let expected = heads.len() + usize::from(self.replicas > 0);
        let replies = match sent {
            Ok(()) => link.replies(expected).await,
            Err(trouble) => Err(trouble),
        };
        let replies = replies.map_err(|trouble| self.nodes.lost(trouble, &place))?;
        self.nodes.give_back(Taken { place, link });
        let mut rest = Rest::default();
        let mut replies = replies.into_iter();
        let groups = std::mem::take(&mut self.groups);
        for (group, head) in groups.iter().zip(&heads) {
            let reply = replies.by_ref().take(1);
            let taken = self.take_in(group, head, reply, progress, &mut rest);
            rest.outage = rest.outage.or(taken.err());
        }
        self.groups = groups;
        let replicas = self.has_replicas(replies.next());
        rest.outage = rest.outage.or(replicas.err());
        self.see_to(rest, progress).await?;
        Ok(true)
    }
}
