//! Pure: the held tasks that were released and are under way to their sinks: how many more may follow, and from where to
//! look on.

use std::collections::{HashMap, HashSet};

use crate::delivery::report::Rows;
use crate::hold::{Batch, Place, Queue, Released};
use crate::intake::Identity;
use crate::outbox::Field;

/// Tasks of one look.
const LOOK_TASKS: usize = 2_048;
/// Tasks of a sink that may be under way.
const UNDER_WAY: usize = 4 * LOOK_TASKS;

/// The released tasks that are under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// By their rows.
    rows: HashMap<i64, Row>,
    sinks: Vec<Sink>,
    /// Bytes that each sink may have under way.
    bytes: usize,
    /// Queues from which rows were taken, and that nobody has looked after since.
    touched: HashSet<Queue>,
}

#[derive(Debug)]
struct Row {
    sink: usize,
    bytes: usize,
    /// The task's id, and the history in which its row was read: numbers of rows mean something in one history only.
    id: String,
    identity: Identity,
    /// The queue that it is in, if it blocks.
    queue: Option<Queue>,
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
            touched: HashSet::new(),
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
        let of_sink = self.rows.iter().filter(move |(_, row)| row.sink == sink);
        of_sink.map(|(hold_id, _)| *hold_id)
    }

    /// Leaves out of what was found what is under way.
    pub(super) fn leave_out(&self, found: &mut Vec<Released>) {
        found.retain(|task| !self.rows.contains_key(&task.hold_id));
    }

    /// A task is released to a sink.
    pub(super) fn start(&mut self, sink: usize, task: &Released, identity: Identity) {
        let bytes = task.task.size();
        if let Some(of) = self.sinks.get_mut(sink) {
            of.tasks += 1;
            of.bytes += bytes;
            let queue = task.task.text(Field::Key).map(|key| Queue {
                sink: task.sink.clone(),
                key: key.to_owned(),
            });
            let row = Row {
                sink,
                bytes,
                id: task.task.id().to_owned(),
                identity,
                queue,
            };
            self.rows.insert(task.hold_id, row);
        }
    }

    /// Those of these rows that were read in another history than this one, with the ids of their tasks.
    pub(super) fn foreign(
        &self,
        rows: &Rows,
        identity: Identity,
    ) -> impl Iterator<Item = (i64, String)> {
        let known = rows.hold_ids().filter_map(|hold_id| {
            let row = self.rows.get(&hold_id)?;
            Some((hold_id, row))
        });
        let foreign = known.filter(move |(_, row)| row.identity != identity);
        foreign.map(|(hold_id, row)| (hold_id, row.id.clone()))
    }

    /// What has become of rows is written down.
    pub(super) fn end(&mut self, rows: &Rows) {
        for hold_id in &rows.removed {
            self.take_out(*hold_id);
        }
        for row in &rows.buried {
            self.take_out(row.hold_id);
        }
        for row in &rows.postponed {
            self.take(row.hold_id);
        }
        for hold_id in &rows.returned {
            if let Some(row) = self.take(*hold_id)
                && let Some(of) = self.sinks.get_mut(row.sink)
            {
                // It is still due, before what was found since.
                of.place = Place::START;
            }
        }
    }

    /// Queues that are to be looked after, so many at most.
    pub(super) fn touched(&self, most: usize) -> Vec<Queue> {
        self.touched.iter().take(most).cloned().collect()
    }

    /// Queues were looked after.
    pub(super) fn looked_after(&mut self, queues: &[Queue]) {
        for queue in queues {
            self.touched.remove(queue);
        }
    }

    /// All queues were looked after.
    pub(super) fn looked_after_all(&mut self) {
        self.touched.clear();
    }

    /// A row has left its queue.
    fn take_out(&mut self, hold_id: i64) {
        let row = self.take(hold_id);
        self.touched.extend(row.and_then(|row| row.queue));
    }

    fn take(&mut self, hold_id: i64) -> Option<Row> {
        let row = self.rows.remove(&hold_id)?;
        if let Some(of) = self.sinks.get_mut(row.sink) {
            of.tasks -= 1;
            of.bytes -= row.bytes;
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::{Buried, Postponed, State};
    use crate::outbox::{Position, Task};
    use crate::pg::Timestamp;

    fn released(hold_id: i64, key: Option<&str>, bytes: usize) -> Released {
        let name = "x".repeat(bytes);
        let fields = [(Field::Task, &*name)].into_iter();
        let fields = fields.chain(key.map(|key| (Field::Key, key)));
        Released {
            hold_id,
            task: Task::from_fields(fields, Position::default(), Timestamp(0)),
            sink: "sink".into(),
            route: String::new(),
            state: State::Retrying,
            attempts: 0,
        }
    }

    const HERE: Identity = Identity {
        system_id: 1,
        timeline: 1,
    };

    #[test]
    fn what_one_sink_has_under_way_takes_no_room_from_another() {
        let mut under_way = UnderWay::new(2, 20_000);
        let room = under_way.room(0);
        under_way.start(0, &released(1, None, 9_000), HERE);
        assert!(under_way.room(0).is_some(), "some is left");
        under_way.start(0, &released(2, None, 9_000), HERE);
        assert_eq!(under_way.room(0), None);
        assert_eq!(under_way.room(1), room);
        let one = Rows {
            removed: vec![1],
            ..Rows::default()
        };
        under_way.end(&one);
        assert!(under_way.room(0).is_some());
        for hold_id in 0..UNDER_WAY as i64 {
            under_way.start(1, &released(100 + hold_id, None, 0), HERE);
        }
        assert_eq!(under_way.room(1), None);
        assert_eq!(under_way.room(2), None, "no such sink");
    }

    #[test]
    fn a_task_that_is_larger_than_the_room_still_comes() {
        let mut under_way = UnderWay::new(1, 0);
        assert_eq!(under_way.room(0).map(|batch| batch.bytes), Some(1));
        under_way.start(0, &released(1, None, 10), HERE);
        assert_eq!(under_way.room(0), None);
    }

    #[test]
    fn what_is_given_back_is_looked_for_from_the_start() {
        let mut under_way = UnderWay::new(1, 1 << 20);
        let tasks = [1, 2, 3, 4].map(|hold_id| released(hold_id, Some("k"), 1));
        let place = Place::at(Timestamp(7), 4);
        under_way.came_to(0, place);
        tasks.iter().for_each(|task| under_way.start(0, task, HERE));
        let postponed = Postponed {
            hold_id: 1,
            due_in: std::time::Duration::ZERO,
            attempts: 1,
            error: String::new(),
        };
        under_way.end(&Rows {
            postponed: vec![postponed],
            ..Rows::default()
        });
        assert_eq!(under_way.place(0), place, "it is due later");
        assert_eq!(under_way.touched(9), [], "and still first in its queue");
        under_way.end(&Rows {
            returned: vec![2],
            ..Rows::default()
        });
        assert_eq!(under_way.place(0), Place::START);
        let mut rows: Vec<i64> = under_way.rows(0).collect();
        rows.sort_unstable();
        assert_eq!(rows, [3, 4]);
        let mut found = tasks.to_vec();
        under_way.leave_out(&mut found);
        let found: Vec<i64> = found.iter().map(|task| task.hold_id).collect();
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn a_queue_is_looked_after_once_a_row_has_left_it() {
        let mut under_way = UnderWay::new(1, 1 << 20);
        for (hold_id, key) in [(1, Some("k")), (2, Some("k")), (3, Some("l")), (4, None)] {
            under_way.start(0, &released(hold_id, key, 1), HERE);
        }
        let buried = Buried {
            hold_id: 3,
            attempts: 1,
            error: String::new(),
            blocks: false,
        };
        under_way.end(&Rows {
            removed: vec![1, 2, 4],
            buried: vec![buried],
            ..Rows::default()
        });
        let mut touched = under_way.touched(9);
        touched.sort();
        let keys: Vec<&str> = touched.iter().map(|queue| &*queue.key).collect();
        assert_eq!(keys, ["k", "l"]);
        assert_eq!(under_way.touched(1).len(), 1);
        under_way.looked_after(&touched[..1]);
        assert_eq!(under_way.touched(9), touched[1..]);
        under_way.looked_after_all();
        assert_eq!(under_way.touched(9), []);
    }
}
