//! What a sink remembers of the notes at its place: what it wrote itself, and what it found there.
//!
//! The sink does the reading and writing; this says what. For each batch: [`Memory::has`] tells the tasks that are there
//! already, [`Memory::sends`] numbers the note and remembers that the end of this batch is in doubt, and one of
//! [`Memory::applied`] and [`Memory::refused`] ends the doubt. When neither came, because an answer was lost, the notes are
//! looked at again before anything else is sent: [`Memory::unread`], then [`Memory::recall`]. The sink sees to it that a
//! batch whose answer was lost is not applied after that look.

use std::collections::{HashMap, HashSet, VecDeque};

use super::encoding::{self, Item, Run};
use super::{Mark, Scope, Settled};
use crate::outbox::{Position, Task};
use crate::pg::Lsn;

/// Notes take no more room than this at the place, and so no more time to read. A position that stands still for longer
/// than so much work can repeat what is older.
const MAX_BYTES: usize = 8 << 20;
/// The same, as a number of notes: at low rates a note is about one task.
const MAX_NOTES: usize = 1 << 16;
/// Notes that one batch takes away; more wait for the next.
const MAX_FORGOTTEN: usize = 64;
/// Notes that were found, not written, are kept beyond their being settled: what was sent again while the place was away may
/// have gone to the hold, and comes from there later. So many of them, and until so many others came from the hold: more
/// than are under way at a time.
const MAX_ASIDE: usize = 256;
const HELD_BEHIND: u64 = 1 << 16;
/// What they list is remembered, unless it is more than so many rows.
const MAX_SETTLED_ROWS: usize = 1 << 18;
/// Doubtful tasks that were applied, and have not come again: some never do.
const MAX_TAKEN: usize = 1 << 16;

/// What names a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    /// Where it comes from this time.
    pub mark: Mark,
    /// Its position: the same wherever it comes from.
    pub position: Position,
    /// [`encoding::hash`] of its id.
    pub hash: u32,
}

impl Named {
    /// Names a task.
    pub fn new(task: &Task, mark: Mark) -> Named {
        Named {
            mark,
            position: task.position,
            hash: encoding::hash(task.id()),
        }
    }

    /// Adds it to a note: a held one with its position too, by which it may come again when its row is gone, as long as
    /// something older keeps the stream from being confirmed.
    pub fn list(&self, list: &mut encoding::List) {
        if let Mark::Held(hold_id) = self.mark {
            list.add_held(hold_id, self.hash);
        }
        list.add(self.position, self.hash);
    }
}

/// A note at the place.
#[derive(Debug)]
struct Note {
    number: u64,
    bytes: usize,
    /// Of the positions in it.
    newest: Lsn,
    /// Tasks from the hold in it.
    held: u64,
    /// Of all tasks from the hold in notes, the last in this one.
    held_until: u64,
    /// When it was reported; `None` for what was found.
    turn: Option<u64>,
}

/// What was found in notes.
#[derive(Debug, Default)]
struct Found {
    /// By first position.
    runs: Vec<Run>,
    /// Rows in them.
    rows: usize,
    held: HashSet<(i64, u32)>,
}

/// What a sink remembers.
#[derive(Debug, Default)]
pub struct Memory {
    scope: Option<Scope>,
    next: u64,
    /// Oldest first.
    notes: VecDeque<Note>,
    /// Notes without which nothing of the stream would be repeated, but a task that comes from the hold might be.
    aside: Vec<Note>,
    bytes: usize,
    held_until: u64,
    found: Found,
    /// The batch that is under way, or whose answer was lost.
    doubt: Vec<Named>,
    /// The note's number, if there is a doubt.
    doubtful: Option<u64>,
    /// Doubtful tasks that turned out to be applied. They may come again by the hold, where their mark is another.
    taken: HashMap<Position, u32>,
}

impl Memory {
    /// What follows is in `scope`. True when its notes must be looked at.
    pub fn enter(&mut self, scope: &Scope) -> bool {
        match &self.scope {
            Some(known) if known == scope => return false,
            Some(known) if known.name == scope.name => self.forget_notes(),
            _ => *self = Memory::default(),
        }
        self.scope = Some(scope.clone());
        true
    }

    /// Which of the notes that are there must be read; ascending.
    pub fn unread(&mut self, mut there: Vec<u64>) -> Vec<u64> {
        there.sort_unstable();
        let known = |notes: &Memory| -> HashSet<u64> {
            let all = notes.notes.iter().chain(&notes.aside);
            all.map(|note| note.number).collect()
        };
        let is_there = |number: &u64| there.binary_search(number).is_ok();
        if !known(self).iter().all(is_there) {
            // It was emptied, or is another place: what it had, it has no more.
            self.forget_notes();
            self.taken.clear();
        }
        if let Some(last) = there.last() {
            self.next = self.next.max(last.saturating_add(1));
        }
        let known = known(self);
        there.retain(|number| !known.contains(number));
        there
    }

    /// Takes in notes that were read, in ascending order. After that there is no doubt.
    pub fn recall(&mut self, notes: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        for (number, note) in notes {
            let items = encoding::read(&note).unwrap_or_default();
            let (mut newest, mut held) = (Lsn::ZERO, 0);
            for item in items {
                match item {
                    Item::Run(run) => {
                        newest = newest.max(run.first.commit_lsn);
                        self.found.add(run);
                    }
                    Item::Held { hold_id, hash } => {
                        held += 1;
                        self.found.held.insert((hold_id, hash));
                    }
                }
            }
            self.keep(number, note.len(), newest, held, None);
        }
        self.found.runs.sort_by_key(|run| run.first);
        let doubt = std::mem::take(&mut self.doubt);
        if self.doubtful.take().is_some() {
            if self.taken.len() > MAX_TAKEN {
                self.taken.clear();
            }
            for named in doubt.iter().filter(|named| self.found.has(named)) {
                self.taken.insert(named.position, named.hash);
            }
        }
        self.doubt = doubt;
    }

    /// Whether the place has it already.
    pub fn has(&self, named: &Named) -> bool {
        self.found.has(named) || self.taken.get(&named.position) == Some(&named.hash)
    }

    /// Whether nothing is known that could be repeated: no need to ask [`Memory::has`].
    pub fn is_blank(&self) -> bool {
        self.taken.is_empty() && self.found.runs.is_empty() && self.found.held.is_empty()
    }

    /// A batch goes out: the number of its note.
    pub fn sends(&mut self, batch: impl IntoIterator<Item = Named>) -> u64 {
        debug_assert!(self.doubtful.is_none(), "a doubt is ended first");
        self.doubt.clear();
        self.doubt.extend(batch);
        let number = self.next;
        self.doubtful = Some(number);
        self.next = self.next.saturating_add(1);
        number
    }

    /// The batch was applied, with a note of so many bytes.
    pub fn applied(&mut self, turn: u64, bytes: usize) {
        let Some(number) = self.doubtful.take() else {
            return;
        };
        let (mut newest, mut held) = (Lsn::ZERO, 0);
        for named in &self.doubt {
            newest = newest.max(named.position.commit_lsn);
            held += u64::from(matches!(named.mark, Mark::Held(_)));
        }
        if bytes > 0 {
            self.keep(number, bytes, newest, held, Some(turn));
        }
    }

    /// The batch was not applied and will not be, or has left no note.
    pub fn refused(&mut self) {
        self.doubtful = None;
    }

    /// It was answered for these that they are there: they do not come again.
    pub fn answered(&mut self, batch: &[Named]) {
        if !self.taken.is_empty() {
            for named in batch {
                self.taken.remove(&named.position);
            }
        }
    }

    /// Notes that are of no more use: to be taken away with the next batch, and not remembered from here on.
    pub fn forget(&mut self, settled: Settled) -> Vec<u64> {
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.notes.front() {
            let full = self.bytes > MAX_BYTES || self.notes.len() > MAX_NOTES;
            if forgotten.len() >= MAX_FORGOTTEN || !full && oldest.newest >= settled.below {
                break;
            }
            let Some(note) = self.notes.pop_front() else {
                break;
            };
            match !full && (note.held > 0 || note.turn.is_none()) {
                true => self.aside.push(note),
                false => self.drop(&note, &mut forgotten),
            }
        }
        let found_notes = self.aside.iter().filter(|note| note.turn.is_none());
        let mut found_notes = found_notes.count();
        for note in std::mem::take(&mut self.aside) {
            let done = match note.turn {
                Some(turn) => turn <= settled.turn,
                None => self.held_until - note.held_until >= HELD_BEHIND || found_notes > MAX_ASIDE,
            };
            found_notes -= usize::from(note.turn.is_none() && done);
            match done && forgotten.len() < MAX_FORGOTTEN {
                true => self.drop(&note, &mut forgotten),
                false => self.aside.push(note),
            }
        }
        let newest = self.found.runs.last();
        if self.found.rows > MAX_SETTLED_ROWS
            && newest.is_some_and(|newest| newest.first.commit_lsn < settled.below)
        {
            self.found.runs = Vec::new();
            self.found.rows = 0;
        }
        forgotten
    }

    fn drop(&mut self, note: &Note, forgotten: &mut Vec<u64>) {
        self.bytes -= note.bytes;
        forgotten.push(note.number);
    }

    fn keep(&mut self, number: u64, bytes: usize, newest: Lsn, held: u64, turn: Option<u64>) {
        self.held_until += held;
        self.bytes += bytes;
        self.notes.push_back(Note {
            number,
            bytes,
            newest,
            held,
            held_until: self.held_until,
            turn,
        });
    }

    fn forget_notes(&mut self) {
        self.notes.clear();
        self.aside.clear();
        self.bytes = 0;
        self.found = Found::default();
    }
}

impl Found {
    fn add(&mut self, run: Run) {
        self.rows += run.hashes.len();
        self.runs.push(run);
    }

    /// By its row in the hold table, or by its position, wherever it comes from this time.
    fn has(&self, named: &Named) -> bool {
        if let Mark::Held(hold_id) = named.mark
            && self.held.contains(&(hold_id, named.hash))
        {
            return true;
        }
        let after = |run: &Run| run.first <= named.position;
        let behind = self.runs.partition_point(after);
        let run = behind.checked_sub(1).and_then(|at| self.runs.get(at));
        run.and_then(|run| run.get(named.position)) == Some(named.hash)
    }
}
