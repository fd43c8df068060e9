//! A batch on its way to one slot, as arguments of its script, in buffers that are used again.
//!
//! An entry of a stream is: index of the key, id, count of what follows, then fields and values, `id` first. Everything else is
//! a sequence of commands: name, index of the key, how many tasks are complete once it is done, count of what follows, and the
//! command's arguments behind its key. Tasks for one place that follow each other share their commands.

use super::form::Write;
use crate::envelope::Unfit;
use crate::sink::redis_client::resp;

/// Redis takes no larger argument (`proto-max-bulk-len`), and closes the connection at one: the same batch for ever.
const MAX_MESSAGE: usize = 512 << 20;
/// Tasks in one command: Lua takes some thousand arguments, not more.
const MAX_RUN: usize = 1_000;
/// Counts that are not known when a command begins have so many digits.
const COUNT: usize = 4;

/// What goes to one slot.
#[derive(Debug, Default)]
pub(in crate::sink) struct Group {
    pub(super) slot: u16,
    /// Keys of the script, and of what kind they are.
    pub(super) keys: Vec<Key>,
    /// Names of places, and the keys that belong to each.
    places: Vec<(Vec<u8>, Vec<usize>)>,
    /// Arguments, and how many.
    pub(super) body: Vec<u8>,
    pub(super) arguments: usize,
    /// Indices of the tasks, in order.
    pub(super) tasks: Vec<usize>,
    run: Option<Run>,
    /// What stands behind the run's first command: arguments of its second one.
    tail: Vec<u8>,
}

/// A key of the script.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
}

/// What a key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sink) enum Kind {
    Stream,
    List,
    Hash,
    Set,
    SortedSet,
    Text,
}

impl Kind {
    /// The letter by which a script knows it.
    fn letter(self) -> u8 {
        match self {
            Kind::Stream => b'x',
            Kind::List => b'l',
            Kind::Hash => b'h',
            Kind::Set => b's',
            Kind::SortedSet => b'z',
            Kind::Text => b't',
        }
    }
}

/// A command for all tasks of a run: its name, and the index of its key.
pub(in crate::sink) type Command = (&'static str, usize);

/// Tasks for one place that follow each other.
#[derive(Clone, Debug)]
struct Run {
    place: usize,
    /// Where the count of its first command's arguments stands.
    counts: usize,
    tasks: usize,
    arguments: usize,
    /// The command that follows when the run ends.
    then: Option<Command>,
}

impl Group {
    /// Nothing, for a slot.
    pub(super) fn nothing(slot: u16) -> Group {
        Group {
            slot,
            ..Group::default()
        }
    }

    /// Nothing, for this slot; the buffers stay.
    pub(super) fn begin(&mut self, slot: u16) {
        self.slot = slot;
        self.keys.clear();
        self.places.clear();
        self.body.clear();
        self.arguments = 0;
        self.tasks.clear();
        self.run = None;
        self.tail.clear();
    }

    /// Adds a task for a place.
    pub(super) fn add(
        &mut self,
        task: &dyn Write,
        place: &[u8],
        index: usize,
    ) -> Result<(), Unfit> {
        let goes_on = self.run.as_ref().is_some_and(|run| {
            let name = self.places.get(run.place).map(|(name, _)| name.as_slice());
            name == Some(place) && run.tasks < MAX_RUN
        });
        if !goes_on {
            self.end_run();
        }
        let (body, tail, keys) = (self.body.len(), self.tail.len(), self.keys.len());
        let (places, arguments, run) = (self.places.len(), self.arguments, self.run.clone());
        let written = task.add(self, place);
        let fits = match self.body.len() - body {
            len if len >= MAX_MESSAGE => Err(Unfit::new(format!(
                "the message has {len} bytes, and Redis takes 512 MiB"
            ))),
            _ => Ok(()),
        };
        if let Err(unfit) = written.and(fits) {
            self.body.truncate(body);
            self.tail.truncate(tail);
            self.keys.truncate(keys);
            self.places.truncate(places);
            (self.arguments, self.run) = (arguments, run);
            return Err(unfit);
        }
        self.tasks.push(index);
        if let Some(run) = &mut self.run {
            run.tasks += 1;
            let done = if run.then.is_some() { 0 } else { run.tasks };
            write_count(&mut self.body, run.counts, done);
            // Behind the digits: CR, LF, and the header of the next.
            write_count(&mut self.body, run.counts + COUNT + 6, run.arguments);
        }
        Ok(())
    }

    /// All tasks are there.
    pub(super) fn end_run(&mut self) {
        let run = self.run.take();
        if let Some(Run {
            tasks,
            then: Some((name, key)),
            ..
        }) = run
        {
            self.command(name, key, tasks, tasks);
            self.body.append(&mut self.tail);
            self.arguments += tasks;
        }
    }

    /// The places that a key belongs to.
    pub(super) fn places_of(&self, key: usize) -> impl Iterator<Item = &[u8]> {
        let places = self.places.iter();
        places.filter_map(move |(name, keys)| keys.contains(&key).then_some(name.as_slice()))
    }

    /// The index of a place's first key; `open` gives all of them, where the place is new.
    pub(in crate::sink) fn first_key(
        &mut self,
        place: &[u8],
        open: impl FnOnce(&mut Group) -> Vec<usize>,
    ) -> usize {
        match self.places.iter().rfind(|(name, _)| name == place) {
            Some((_, keys)) => keys.first().copied().unwrap_or_default(),
            None => {
                let keys = open(self);
                let first = keys.first().copied().unwrap_or_default();
                self.places.push((place.to_vec(), keys));
                first
            }
        }
    }

    /// Goes on with the run of this place, or begins one. `open` is given the group, and whether the place is new to it; it
    /// gives back the place's keys, the command to which each task adds arguments, and the one that follows.
    pub(in crate::sink) fn enter(
        &mut self,
        place: &[u8],
        open: impl FnOnce(&mut Group, bool) -> (Vec<usize>, Command, Option<Command>),
    ) {
        if self.run.is_some() {
            return;
        }
        let known = self.places.iter().position(|(name, _)| name == place);
        let (keys, (name, key), then) = open(self, known.is_none());
        let place = known.unwrap_or_else(|| {
            self.places.push((place.to_vec(), keys));
            self.places.len() - 1
        });
        self.command(name, key, 0, 0);
        // Two counts of so many digits, each with its line's end, and a header between.
        let counts = self.body.len() - (2 * (COUNT + 2) + 4);
        self.run = Some(Run {
            place,
            counts,
            tasks: 0,
            arguments: 0,
            then,
        });
    }

    /// A letter for each key, that says what it must be.
    pub(in crate::sink) fn kinds(&self) -> Vec<u8> {
        self.keys.iter().map(|key| key.kind.letter()).collect()
    }

    /// The index of a key of the script.
    pub(in crate::sink) fn key(&mut self, name: &[u8], kind: Kind) -> usize {
        match self.keys.iter().rposition(|key| key.name == name) {
            Some(key) => key,
            None => {
                let name = name.to_vec();
                self.keys.push(Key { name, kind });
                self.keys.len() - 1
            }
        }
    }

    /// A command of its own, before those of the run.
    pub(in crate::sink) fn first(&mut self, (name, key): Command, argument: &[u8]) {
        self.command(name, key, 0, 1);
        resp::write_bulk(&mut self.body, argument);
        self.arguments += 1;
    }

    /// An argument, of the run's first command if there is a run.
    pub(in crate::sink) fn argument(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unfit>,
    ) -> Result<(), Unfit> {
        let mut written = Ok(());
        resp::write_bulk_with(&mut self.body, |out| written = write(out));
        self.arguments += 1;
        if let Some(run) = &mut self.run {
            run.arguments += 1;
        }
        written
    }

    /// The task's argument of the command that follows.
    pub(in crate::sink) fn then_argument(&mut self, argument: &[u8]) {
        resp::write_bulk(&mut self.tail, argument);
    }

    fn command(&mut self, name: &str, key: usize, done: usize, arguments: usize) {
        resp::write_bulk(&mut self.body, name.as_bytes());
        resp::write_bulk(&mut self.body, key.to_string().as_bytes());
        for count in [done, arguments] {
            resp::write_bulk(&mut self.body, format!("{count:0COUNT$}").as_bytes());
        }
        self.arguments += 4;
    }
}

/// Overwrites a count.
fn write_count(body: &mut [u8], at: usize, count: usize) {
    if let Some(digits) = body.get_mut(at..at + COUNT) {
        let mut rest = count;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two commands for a place, and one before; a task without a name is unfit.
    struct Pair<'t>(&'t str, &'t str);

    impl Write for Pair<'_> {
        fn place(&self, _: &mut Vec<u8>) -> Result<(), Unfit> {
            Ok(())
        }

        fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
            let Pair(id, name) = *self;
            group.enter(place, |group, is_new| {
                let hash = group.key(&[place, b".h"].concat(), Kind::Hash);
                let list = group.key(place, Kind::List);
                if is_new {
                    group.first(("SADD", hash), b"x");
                }
                (vec![hash, list], ("HSET", hash), Some(("RPUSH", list)))
            });
            group.argument(|out| {
                out.extend_from_slice(id.as_bytes());
                Ok(())
            })?;
            group.then_argument(id.as_bytes());
            group.argument(|_| match name {
                "" => Err(Unfit::new("no name")),
                _ => Ok(()),
            })
        }
    }

    fn arguments(group: &Group) -> Vec<String> {
        let mut rest = group.body.as_slice();
        let mut found = Vec::new();
        while let Ok(Some((resp::Reply::Bulk(Some(text)), len))) = resp::parse(rest) {
            found.push(String::from_utf8(text.to_vec()).unwrap());
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
        found
    }

    #[test]
    fn tasks_that_follow_each_other_share_their_commands() {
        let mut group = Group::default();
        group.begin(0);
        for (n, (id, place, name)) in [
            ("1", "a", ""),
            ("2", "a", "t"),
            ("3", "a", ""),
            ("4", "a", "t"),
            ("5", "b", ""),
            ("6", "b", "t"),
            ("7", "a", "t"),
            ("8", "c", ""),
        ]
        .into_iter()
        .enumerate()
        {
            let added = group.add(&Pair(id, name), place.as_bytes(), n);
            assert_eq!(added.is_ok(), !name.is_empty(), "{id}");
        }
        group.end_run();
        let words = "SADD 0 0000 0001 x HSET 0 0000 0004 2  4  RPUSH 1 0002 0002 2 4 \
                     SADD 2 0000 0001 x HSET 2 0000 0002 6  RPUSH 3 0001 0001 6 \
                     HSET 0 0000 0002 7  RPUSH 1 0001 0001 7";
        assert_eq!(arguments(&group).join(" "), words);
        assert_eq!(group.arguments, arguments(&group).len());
        assert_eq!(group.tasks, [1, 3, 5, 6]);
        let names: Vec<&[u8]> = group.keys.iter().map(|key| key.name.as_slice()).collect();
        assert_eq!(names, [&b"a.h"[..], b"a", b"b.h", b"b"]);
        assert_eq!(group.places_of(1).collect::<Vec<_>>(), [b"a"]);
        assert_eq!(group.places_of(2).collect::<Vec<_>>(), [b"b"]);
    }
}
