//! Pure: the held tasks that were released and are under way to their sinks: how many more may follow, and from where to
//! look on.

use std::collections::HashMap;

use crate::hold::{Batch, Place, Released};

/// Tasks of one look.
const LOOK_TASKS: usize = 2_048;
/// Tasks of a sink that may be under way.
const UNDER_WAY: usize = 4 * LOOK_TASKS;

/// The released tasks that are under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// Sink and size of each, by its row.
    rows: HashMap<i64, (usize, usize)>,
    sinks: Vec<Sink>,
    /// Bytes that each sink may have under way.
    bytes: usize,
}

#[derive(Debug)]
struct Sink {
    tasks: usize,
    bytes: usize,
    /// What is due before this place is under way, or was passed over.
    place: Place,
}

impl UnderWay {
    /// Nothing is, for so many sinks, which may have so many bytes under way together.
    pub(super) fn new(sinks: usize, bytes: usize) -> UnderWay {
        let sink = || Sink {
            tasks: 0,
            bytes: 0,
            place: Place::START,
        };
        UnderWay {
            rows: HashMap::new(),
            sinks: (0..sinks).map(|_| sink()).collect(),
            bytes: bytes / sinks.max(1),
        }
    }

    /// How much more may be released for a sink now; `None` where nothing.
    pub(super) fn room(&self, sink: usize) -> Option<Batch> {
        let of = self.sinks.get(sink)?;
        let tasks = UNDER_WAY.saturating_sub(of.tasks).min(LOOK_TASKS);
        let bytes = self.bytes.saturating_sub(of.bytes);
        if tasks == 0 || bytes == 0 && of.bytes > 0 {
            return None;
        }
        Some(Batch {
            tasks: i64::try_from(tasks).unwrap_or(i64::MAX),
            bytes: i64::try_from(bytes.max(1)).unwrap_or(i64::MAX),
        })
    }

    /// Where to look on for a sink; at the start, the rows that are under way must be left out.
    pub(super) fn place(&self, sink: usize) -> Place {
        self.sinks.get(sink).map_or(Place::START, |of| of.place)
    }

    /// A look for a sink has come to this place.
    pub(super) fn came_to(&mut self, sink: usize, place: Place) {
        if let Some(of) = self.sinks.get_mut(sink) {
            of.place = of.place.max(place);
        }
    }

    /// The rows of a sink.
    pub(super) fn rows(&self, sink: usize) -> impl Iterator<Item = i64> {
        let of_sink = move |(row, (of, _)): (&i64, &(usize, usize))| (*of == sink).then_some(*row);
        self.rows.iter().filter_map(of_sink)
    }

    /// Leaves out of what was found what is under way.
    pub(super) fn leave_out(&self, found: &mut Vec<Released>) {
        found.retain(|task| !self.rows.contains_key(&task.hold_id));
    }

    /// A task is released to a sink.
    pub(super) fn start(&mut self, sink: usize, task: &Released) {
        let size = task.task.size();
        if let Some(of) = self.sinks.get_mut(sink) {
            of.tasks += 1;
            of.bytes += size;
            self.rows.insert(task.hold_id, (sink, size));
        }
    }

    /// It was heard what has become of a row.
    pub(super) fn end(&mut self, row: i64) {
        self.take(row);
    }

    /// A row was given back as it is: it is still due, before what was found since.
    pub(super) fn give_back(&mut self, row: i64) {
        if let Some(of) = self.take(row) {
            of.place = Place::START;
        }
    }

    fn take(&mut self, row: i64) -> Option<&mut Sink> {
        let (sink, size) = self.rows.remove(&row)?;
        let of = self.sinks.get_mut(sink)?;
        of.tasks -= 1;
        of.bytes -= size;
        Some(of)
    }
}
