//! What a sink remembers of the notes at its place: what it wrote itself, and what it found there.
//!
//! The sink does the reading and writing; this says what. For each batch: [`Memory::has`] tells the tasks that are there
//! already, [`Memory::sends`] numbers the note, and one of [`Memory::applied`] and [`Memory::refused`] says what became of
//! it. Where a batch goes in parts, each has a note of its own, and several may be under way: they are answered in the order
//! in which they were sent. When no answer came, the notes are looked at again before anything else is sent:
//! [`Memory::unread`], then [`Memory::recall`]. The sink sees to it that what was not answered is not applied after that look.

use std::collections::{HashSet, VecDeque};

use super::{Mark, Scope, Settled, encoding};
use crate::pg::Lsn;

/// Notes take no more room than this at the place, and so no more time and memory to read. When a position stands still for
/// longer than so much work, a crash repeats what is older.
const MAX_BYTES: usize = 4 << 20;
/// The same, as a number of notes: at low rates a note is about one task.
const MAX_NOTES: usize = 1 << 16;
/// Notes that one batch takes away; more wait for the next.
const MAX_FORGOTTEN: usize = 64;
/// What was found, not written, is kept beyond its being settled, if it is no more than so many tasks: what was sent again
/// while the place was away may have gone to the hold, and comes from there later.
const KEPT: usize = 1 << 17;

/// A note at the place.
#[derive(Debug)]
struct Note {
    number: u64,
    bytes: usize,
    tasks: usize,
    /// Of the positions in it.
    newest: Lsn,
    /// The turn of its batch; `None` for what was found.
    turn: Option<u64>,
}

/// What a sink remembers.
#[derive(Debug, Default)]
pub struct Memory {
    scope: Option<Scope>,
    next: u64,
    /// Oldest first.
    notes: VecDeque<Note>,
    /// Notes that were found and are settled, oldest first.
    kept: VecDeque<Note>,
    /// Size of all of these.
    bytes: usize,
    /// Tasks in `kept`.
    kept_tasks: usize,
    /// What was found in notes, sorted.
    found: Vec<Mark>,
    /// The notes of what is under way, or whose answers were lost, in the order in which they were sent.
    under_way: VecDeque<Note>,
}

impl Memory {
    /// What follows is in `scope`. True when its notes must be looked at.
    pub fn enter(&mut self, scope: &Scope) -> bool {
        match &self.scope {
            Some(known) if known == scope => return false,
            Some(known) if known.name == scope.name => self.forget_all(),
            _ => *self = Memory::default(),
        }
        self.scope = Some(scope.clone());
        true
    }

    /// The number of the first note whose batch's answer did not come.
    pub fn in_doubt(&self) -> Option<u64> {
        self.under_way.front().map(|note| note.number)
    }

    /// Which of the notes that are there must be read; ascending.
    pub fn unread(&mut self, mut there: Vec<u64>) -> Vec<u64> {
        there.sort_unstable();
        let notes = self.notes.iter().chain(&self.kept);
        let mut known: HashSet<u64> = notes.map(|note| note.number).collect();
        let is_there = |number: &u64| there.binary_search(number).is_ok();
        if !known.iter().all(is_there) {
            // It was emptied, or is another place: what it had, it has no more.
            self.forget_all();
            known.clear();
        }
        if let Some(last) = there.last() {
            self.next = self.next.max(last.saturating_add(1));
        }
        there.retain(|number| !known.contains(number));
        there
    }

    /// Takes in notes that were read, in ascending order.
    pub fn recall(&mut self, notes: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        for (number, note) in notes {
            let marks = encoding::read(&note).unwrap_or_default();
            let newest = marks.iter().map(|mark| mark.position.commit_lsn).max();
            self.keep(Note {
                number,
                bytes: note.len(),
                tasks: marks.len(),
                newest: newest.unwrap_or_default(),
                turn: None,
            });
            self.found.extend(marks);
        }
        self.found.sort_unstable();
        self.under_way.clear();
    }

    /// Whether nothing was found: no need to ask [`Memory::has`].
    pub fn is_blank(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether the place has it already, as far as was looked.
    pub fn has(&self, mark: &Mark) -> bool {
        self.found.binary_search(mark).is_ok()
    }

    /// A batch goes out, or a part of it, in this turn: the number of its note.
    pub fn sends<'m>(&mut self, batch: impl IntoIterator<Item = &'m Mark>, turn: u64) -> u64 {
        let (mut newest, mut tasks) = (Lsn::ZERO, 0);
        for mark in batch {
            newest = newest.max(mark.position.commit_lsn);
            tasks += 1;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.under_way.push_back(Note {
            number,
            bytes: 0,
            tasks,
            newest,
            turn: Some(turn),
        });
        number
    }

    /// The first of what is under way was applied, with a note of so many bytes.
    pub fn applied(&mut self, bytes: usize) {
        if let Some(note) = self.under_way.pop_front()
            && bytes > 0
        {
            self.keep(Note { bytes, ..note });
        }
    }

    /// The first of what is under way was not applied and will not be, or has left no note.
    pub fn refused(&mut self) {
        self.under_way.pop_front();
    }

    /// What was applied last, in the turn of the batch that is under way, comes again nevertheless: the batch as a whole
    /// was not.
    pub fn will_come_again(&mut self, marks: impl IntoIterator<Item = Mark>) {
        let before = self.found.len();
        self.found.extend(marks);
        if self.found.len() == before {
            return;
        }
        self.found.sort_unstable();
        let turn = self.notes.back().and_then(|note| note.turn);
        for note in self.notes.iter_mut().filter(|note| note.turn == turn) {
            note.turn = None;
        }
    }

    /// Notes that are of no more use: to be taken away with the next batch, and not remembered from here on.
    pub fn forget(&mut self, settled: Settled) -> Vec<u64> {
        let mut forgotten = Vec::new();
        while forgotten.len() < MAX_FORGOTTEN
            && let Some(note) = self.pop_useless(settled)
        {
            self.bytes -= note.bytes;
            forgotten.push(note.number);
        }
        if self.found.len() > KEPT {
            let is_settled = |mark: &Mark| mark.position.commit_lsn < settled.below;
            let settled = self.found.partition_point(is_settled);
            let surplus = self.found.len() - KEPT;
            self.found.drain(..settled.min(surplus));
        }
        forgotten
    }

    fn pop_useless(&mut self, settled: Settled) -> Option<Note> {
        loop {
            if self.kept_tasks > KEPT
                && let Some(note) = self.kept.pop_front()
            {
                self.kept_tasks -= note.tasks;
                return Some(note);
            }
            let full = self.bytes > MAX_BYTES || self.notes.len() + self.kept.len() > MAX_NOTES;
            if full && let Some(note) = self.kept.pop_front() {
                self.kept_tasks -= note.tasks;
                return Some(note);
            }
            let oldest = self.notes.front()?;
            let is_settled = oldest.newest < settled.below
                && oldest.turn.is_none_or(|turn| turn <= settled.turn);
            if !full && !is_settled {
                return None;
            }
            let oldest = self.notes.pop_front()?;
            if full || oldest.turn.is_some() {
                return Some(oldest);
            }
            self.kept_tasks += oldest.tasks;
            self.kept.push_back(oldest);
        }
    }

    fn keep(&mut self, note: Note) {
        self.bytes += note.bytes;
        self.notes.push_back(note);
    }

    fn forget_all(&mut self) {
        self.notes.clear();
        self.kept.clear();
        self.found = Vec::new();
        (self.bytes, self.kept_tasks) = (0, 0);
    }
}
