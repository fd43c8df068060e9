//! A batch on its way to one slot, as arguments of its script, in buffers that are used again.
//!
//! A task for a stream is: index of the key, id, count of what follows, then fields and values, `id` first. Tasks for lists that
//! follow each other are: index of the list, their count, the messages.

use super::Shape;
use super::message::{self, Format};
use crate::envelope::Unfit;
use crate::outbox::{Position, Task};
use crate::sink::redis_client::resp;

/// Redis takes no larger argument (`proto-max-bulk-len`), and closes the connection at one: the same batch for ever.
const MAX_MESSAGE: usize = 512 << 20;
/// Messages in one LPUSH: Lua takes some thousand arguments, not more.
const MAX_RUN: usize = 1_000;
/// Between two rows of a transaction there is room for so many ids.
const ROOM: u64 = 1_000_000;
/// The count of a run, which is not known when it begins, has so many digits.
const COUNT: usize = 4;

/// What goes to one slot.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) slot: u16,
    /// The streams or lists.
    pub(super) keys: Vec<Vec<u8>>,
    /// Arguments, and how many.
    pub(super) body: Vec<u8>,
    pub(super) arguments: usize,
    /// Indices of the tasks, in order.
    pub(super) tasks: Vec<usize>,
    /// For lists: the key, place of the count, and length of the run that goes on.
    run: Option<(usize, usize, usize)>,
}

impl Group {
    /// Nothing, for this slot.
    pub(super) fn begin(&mut self, slot: u16) {
        self.slot = slot;
        self.keys.clear();
        self.body.clear();
        self.arguments = 0;
        self.tasks.clear();
        self.run = None;
    }

    /// Adds a task for a key.
    pub(super) fn add(
        &mut self,
        shape: Shape,
        format: Format,
        key: &[u8],
        task: &Task,
        index: usize,
    ) -> Result<(), Unfit> {
        let before = self.body.len();
        let (keys, arguments, run) = (self.keys.len(), self.arguments, self.run);
        let number = match self.keys.iter().rposition(|known| known == key) {
            Some(number) => number,
            None => {
                self.keys.push(key.to_vec());
                keys
            }
        };
        let written = match shape {
            Shape::Stream => self.add_entry(format, number, task),
            Shape::List => self.add_message(format, number, task),
        };
        let fits = match self.body.len() - before {
            len if len >= MAX_MESSAGE => Err(Unfit::new(format!(
                "the message has {len} bytes, and Redis takes 512 MiB"
            ))),
            _ => Ok(()),
        };
        match written.and(fits) {
            Ok(()) => {
                self.tasks.push(index);
                self.close_count();
                Ok(())
            }
            Err(unfit) => {
                self.body.truncate(before);
                self.keys.truncate(keys);
                (self.arguments, self.run) = (arguments, run);
                Err(unfit)
            }
        }
    }

    fn add_entry(&mut self, format: Format, key: usize, task: &Task) -> Result<(), Unfit> {
        let count = 2 * message::fields(format, task);
        resp::write_bulk(&mut self.body, key.to_string().as_bytes());
        resp::write_bulk(&mut self.body, id(task.position).as_bytes());
        resp::write_bulk(&mut self.body, count.to_string().as_bytes());
        self.arguments += 3 + count;
        message::write_entry(&mut self.body, format, task)
    }

    fn add_message(&mut self, format: Format, key: usize, task: &Task) -> Result<(), Unfit> {
        let run = match self.run {
            Some((of, place, len)) if of == key && len < MAX_RUN => (of, place, len + 1),
            _ => {
                resp::write_bulk(&mut self.body, key.to_string().as_bytes());
                resp::write_header(&mut self.body, b'$', COUNT);
                let place = self.body.len();
                self.body.extend_from_slice(&[b'0'; COUNT]);
                self.body.extend_from_slice(b"\r\n");
                self.arguments += 2;
                (key, place, 1)
            }
        };
        self.run = Some(run);
        self.arguments += 1;
        message::write_message(&mut self.body, format, task)
    }

    /// Writes down how long the run is by now.
    fn close_count(&mut self) {
        if let Some((_, place, len)) = self.run
            && let Some(digits) = self.body.get_mut(place..place + COUNT)
        {
            digits.copy_from_slice(format!("{len:04}").as_bytes());
        }
    }
}

/// The id of an entry: the commit's LSN, and the row's number in its transaction, with room for those that are late.
fn id(position: Position) -> String {
    let Position {
        commit_lsn,
        ordinal,
    } = position;
    format!("{}-{}", commit_lsn.0.max(1), ordinal.saturating_mul(ROOM))
}
