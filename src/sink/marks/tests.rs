//! Notes against a model of everything around them: a stream that sends again, a hold table, a place, and crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::encoding::List;
use super::*;
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

fn task(id: &str, position: Position) -> Task {
    Task::from_fields([(Field::Id, id)], position, Timestamp(0))
}

fn at(lsn: u64, ordinal: u64) -> Position {
    Position {
        commit_lsn: Lsn(lsn),
        ordinal,
    }
}

fn history<'a>(table: &'a TableName) -> History<'a> {
    History {
        system_id: 7,
        timeline: 1,
        slot: "aftercommit",
        table,
    }
}

fn scope(generation: u64) -> Scope {
    Scope::new(&history(&TableName::ours()), "workers", 0, generation)
}

/// A note as the place keeps it.
fn note(named: &[Named]) -> Vec<u8> {
    let mut list = List::default();
    named.iter().for_each(|named| named.list(&mut list));
    list.finish()
}

fn named(id: &str, position: Position) -> Named {
    Named::new(&task(id, position), Mark::Stream(position))
}

fn held(id: &str, position: Position, hold_id: i64) -> Named {
    Named::new(&task(id, position), Mark::Held(hold_id))
}

#[test]
fn a_scope_is_one_history_on_its_way_to_one_lane() {
    let (ours, other) = (
        TableName::ours(),
        "shop.\"out\"\"box\"".parse::<TableName>().unwrap(),
    );
    let base = history(&ours);
    assert_eq!(
        scope(3).to_string(),
        "7:1:aftercommit:\"aftercommit\".\"outbox\":\"workers\":0"
    );
    let scopes = [
        Scope::new(&base, "workers", 0, 1),
        Scope::new(&base, "workers", 1, 1),
        Scope::new(&base, "others", 0, 1),
        Scope::new(
            &History {
                system_id: 8,
                ..base
            },
            "workers",
            0,
            1,
        ),
        Scope::new(
            &History {
                timeline: 2,
                ..base
            },
            "workers",
            0,
            1,
        ),
        Scope::new(&History { slot: "b", ..base }, "workers", 0, 1),
        Scope::new(
            &History {
                table: &other,
                ..base
            },
            "workers",
            0,
            1,
        ),
    ];
    let names: BTreeSet<String> = scopes.iter().map(Scope::to_string).collect();
    assert_eq!(names.len(), scopes.len());
}

#[test]
fn a_history_that_was_replaced_is_not_taken_for_the_old_one() {
    let mut memory = Memory::default();
    assert!(memory.enter(&scope(1)));
    assert_eq!(memory.unread(vec![4]), [4]);
    let rows: Vec<Named> = (0..3)
        .map(|n| named(&format!("a{n}"), at(8, n)))
        .chain([named("b", at(16, 0)), held("c", at(24, 0), 5)])
        .collect();
    memory.recall([(4, note(&rows))]);
    // The same positions and rows, other ids.
    assert!(!memory.has(&named("x0", at(8, 0))));
    assert!(
        !memory.has(&named("x1", at(8, 1))),
        "the first one was another"
    );
    assert!(!memory.has(&named("y", at(16, 0))));
    assert!(!memory.has(&held("z", at(24, 0), 5)));
    assert!(!memory.has(&held("b", at(8, 0), 6)));
    // What was noted.
    assert!(rows.iter().all(|row| memory.has(row)));
    assert!(
        memory.has(&named("c", at(24, 0))),
        "by its position, when its row is gone"
    );
    assert!(!memory.has(&named("a3", at(8, 3))) && !memory.has(&named("d", at(32, 0))));
}

#[test]
fn a_place_that_has_lost_notes_is_not_trusted() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    assert!(memory.unread(Vec::new()).is_empty());
    memory.recall([]);
    let (first, second) = (named("a", at(8, 0)), named("b", at(16, 0)));
    for (number, row) in [first, second].into_iter().enumerate() {
        assert_eq!(memory.sends([row]), number as u64);
        memory.applied(1, 9);
    }
    assert!(
        memory.is_blank(),
        "what was answered does not come again by itself"
    );
    // An outage: all there.
    assert!(memory.unread(vec![1, 0]).is_empty());
    memory.recall([]);
    // A new generation: the server sends again, so what is there is read.
    assert!(!memory.enter(&scope(1)) && memory.enter(&scope(2)));
    assert_eq!(memory.unread(vec![1, 0]), [0, 1]);
    memory.recall([(0, note(&[first])), (1, note(&[second]))]);
    assert!(memory.has(&first) && memory.has(&second));
    // One is gone, so this may be a place that was set back: what it has is read anew.
    assert_eq!(memory.unread(vec![1]), [1]);
    memory.recall([(1, note(&[second]))]);
    assert!(!memory.has(&first) && memory.has(&second));
    assert_eq!(memory.sends([first]), 2);
    // A note that is none says nothing.
    memory.refused();
    assert_eq!(memory.unread(vec![1, 7]), [7]);
    memory.recall([(7, b"?".to_vec())]);
    assert_eq!(memory.sends([first]), 8);
}

#[test]
fn notes_go_when_nothing_in_them_can_come_again() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    let settled = |below, turn| Settled {
        below: Lsn(below),
        turn,
    };
    memory.sends([named("a", at(8, 0))]);
    memory.applied(1, 9);
    memory.sends([named("b", at(16, 0)), held("c", at(8, 1), 1)]);
    memory.applied(2, 20);
    memory.sends([named("d", at(24, 0))]);
    memory.applied(3, 9);
    assert!(memory.forget(settled(8, 9)).is_empty());
    assert_eq!(memory.forget(settled(9, 1)), [0]);
    assert!(
        memory.forget(settled(17, 1)).is_empty(),
        "the row of c may be there"
    );
    assert_eq!(memory.forget(settled(24, 2)), [1]);
    assert_eq!(memory.forget(settled(25, 2)), [2]);
    assert_eq!(memory.forget(settled(99, 9)), [0; 0]);
}

#[test]
fn what_went_to_the_hold_before_the_notes_were_read_is_known_there() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    memory.unread(vec![0]);
    memory.recall([(0, note(&[named("a", at(8, 0)), named("b", at(16, 0))]))]);
    let settled = Settled {
        below: Lsn(99),
        turn: 0,
    };
    assert_eq!(memory.forget(settled), [0]);
    assert!(memory.has(&held("a", at(8, 0), 1)) && memory.has(&held("b", at(16, 0), 2)));
    assert!(!memory.has(&held("c", at(8, 0), 3)));
}

#[test]
fn notes_are_bounded() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    let mut there = BTreeSet::new();
    let mut most = 0;
    for n in 0..200_000u64 {
        let gone = memory.forget(Settled::default());
        there.insert(memory.sends([held("a", at(8 * n, 0), n as i64)]));
        gone.iter()
            .for_each(|number| assert!(there.remove(number), "{number} went twice"));
        memory.applied(u64::MAX, 10);
        most = most.max(there.len());
    }
    assert!(most <= 66_000, "{most}");
}

const LISTS: usize = 2;

/// How a batch ends.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Answered,
    /// It was applied, and the answer was lost.
    AnswerLost,
    /// It never arrived.
    BatchLost,
}

#[derive(Clone, Debug)]
enum Step {
    /// So many more rows come through the stream.
    Arrive(usize),
    /// A batch of so many.
    Deliver(usize, Fate),
    /// So many that wait in memory go to the hold.
    Park(usize),
    /// What was reported is written down.
    Commit,
    /// A held task is due.
    Release(usize),
    /// kill -9, and a start.
    Crash,
    /// Another daemon had the slot for a moment.
    Interlude,
    /// A list is of the wrong type, or is a list again.
    Spoil(usize),
    /// The place loses everything.
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        4 => Just(Fate::Answered), 2 => Just(Fate::AnswerLost), 1 => Just(Fate::BatchLost)
    ];
    prop_oneof![
        6 => (1usize..12).prop_map(Step::Arrive),
        12 => (1usize..8, fate).prop_map(|(size, fate)| Step::Deliver(size, fate)),
        3 => (1usize..8).prop_map(Step::Park),
        6 => Just(Step::Commit),
        6 => (0usize..9).prop_map(Step::Release),
        2 => Just(Step::Crash),
        1 => Just(Step::Interlude),
        1 => (0usize..LISTS).prop_map(Step::Spoil),
    ]
}

/// Reported and not written down yet.
#[derive(Clone, Copy, Debug)]
enum Report {
    Delivered(usize, Mark),
    Parked(usize),
}

/// Everything, seen from above. Tasks are numbers.
struct World {
    positions: Vec<Position>,
    // The place.
    notes: BTreeMap<u64, Vec<u8>>,
    applied: Vec<u32>,
    spoiled: [bool; LISTS],
    // The database: what survives a crash of ours.
    settled: Vec<bool>,
    hold: BTreeMap<i64, usize>,
    next_hold_id: i64,
    // The process.
    memory: Memory,
    claimed: bool,
    generation: u64,
    turn: u64,
    written: u64,
    reports: Vec<Report>,
    queue: VecDeque<(usize, Mark)>,
    arrived: usize,
    under_way: BTreeSet<i64>,
    /// In doubt: handed over, and no answer came.
    doubtful: BTreeSet<usize>,
    /// These may be repeated: applied before a crash, and held without a look at the notes, before it or after it.
    excused: BTreeSet<usize>,
}

impl World {
    fn new(transactions: &[u64]) -> World {
        let positions: Vec<Position> = transactions
            .iter()
            .enumerate()
            .flat_map(|(n, rows)| (0..*rows).map(move |row| at(8 * (n as u64 + 1), row)))
            .collect();
        World {
            applied: vec![0; positions.len()],
            settled: vec![false; positions.len()],
            positions,
            notes: BTreeMap::new(),
            spoiled: [false; LISTS],
            hold: BTreeMap::new(),
            next_hold_id: 1,
            memory: Memory::default(),
            claimed: false,
            generation: 1,
            turn: 1,
            written: 0,
            reports: Vec::new(),
            queue: VecDeque::new(),
            arrived: 0,
            under_way: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            excused: BTreeSet::new(),
        }
    }

    fn named(&self, (number, mark): (usize, Mark)) -> Named {
        Named::new(&task(&format!("t{number}"), self.positions[number]), mark)
    }

    /// All that was committed before is settled, and written down.
    fn below(&self) -> Lsn {
        let open = self.settled.iter().position(|settled| !settled);
        open.map_or(Lsn(u64::MAX), |first| self.positions[first].commit_lsn)
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Arrive(count) => self.arrive(count),
            Step::Deliver(size, fate) => self.deliver(size, fate),
            Step::Park(count) => {
                for _ in 0..count {
                    match self.queue.pop_front() {
                        Some((number, Mark::Stream(_))) => {
                            self.reports.push(Report::Parked(number));
                            if self.applied[number] > 0 && !self.doubtful.contains(&number) {
                                self.excused.insert(number);
                            }
                        }
                        Some((_, Mark::Held(hold_id))) => {
                            self.under_way.remove(&hold_id);
                        }
                        None => {}
                    }
                }
            }
            Step::Commit => self.commit(),
            Step::Release(nth) => {
                let waits = |(id, _): &(&i64, _)| !self.under_way.contains(id);
                let due = self.hold.iter().filter(waits).nth(nth);
                if let Some((&hold_id, &number)) = due {
                    self.under_way.insert(hold_id);
                    self.queue.push_back((number, Mark::Held(hold_id)));
                }
            }
            Step::Crash => {
                let parked = self.hold.values().copied();
                let reported = self.reports.iter().filter_map(|report| match report {
                    Report::Parked(number) => Some(*number),
                    Report::Delivered(..) => None,
                });
                let parked: BTreeSet<usize> = parked.chain(reported).collect();
                self.excused.extend(self.doubtful.intersection(&parked));
                self.doubtful.clear();
                self.memory = Memory::default();
                (self.turn, self.written) = (1, 0);
                self.start_again();
            }
            Step::Interlude => {
                self.generation += 1;
                self.commit();
                self.start_again();
            }
            Step::Spoil(list) => self.spoiled[list] = !self.spoiled[list],
            Step::Flush => {
                self.notes.clear();
                self.claimed = false;
                self.excused.extend(0..self.positions.len());
            }
        }
    }

    /// The server sends from the confirmed position on; what the hold has is settled.
    fn start_again(&mut self) {
        self.claimed = false;
        self.reports.clear();
        self.queue.clear();
        self.under_way.clear();
        let (below, until) = (self.below(), self.arrived);
        self.arrived = self.positions.partition_point(|it| it.commit_lsn < below);
        self.arrive(until - self.arrived);
    }

    fn arrive(&mut self, count: usize) {
        let until = (self.arrived + count).min(self.positions.len());
        for number in self.arrived..until {
            if !self.hold.values().any(|held| *held == number) {
                let mark = Mark::Stream(self.positions[number]);
                self.queue.push_back((number, mark));
            }
        }
        self.arrived = until;
    }

    fn commit(&mut self) {
        for report in std::mem::take(&mut self.reports) {
            if let Report::Delivered(number, _) = report {
                self.doubtful.remove(&number);
            }
            match report {
                Report::Delivered(number, Mark::Stream(_)) => self.settled[number] = true,
                Report::Delivered(_, Mark::Held(hold_id)) => {
                    self.hold.remove(&hold_id);
                    self.under_way.remove(&hold_id);
                }
                Report::Parked(number) => {
                    self.settled[number] = true;
                    self.hold.insert(self.next_hold_id, number);
                    self.next_hold_id += 1;
                }
            }
        }
        self.written = self.turn;
        self.turn += 1;
    }

    fn deliver(&mut self, size: usize, fate: Fate) {
        let size = size.min(self.queue.len());
        let batch: Vec<(usize, Mark)> = self.queue.drain(..size).collect();
        if !self.claimed {
            self.memory.enter(&scope(self.generation));
            let unread = self.memory.unread(self.notes.keys().copied().collect());
            let read = unread
                .into_iter()
                .map(|number| (number, self.notes[&number].clone()));
            self.memory.recall(read.collect::<Vec<_>>());
            self.claimed = true;
        }
        let (there, missing): (Vec<_>, Vec<_>) = batch
            .iter()
            .copied()
            .partition(|&it| self.memory.has(&self.named(it)));
        let settled = Settled {
            below: self.below(),
            turn: self.written,
        };
        let mut delivered = there;
        if !missing.is_empty() {
            let gone = self.memory.forget(settled);
            let number = self
                .memory
                .sends(missing.iter().map(|&it| self.named(it)).collect::<Vec<_>>());
            let (fits, spoiled): (Vec<_>, Vec<_>) = missing
                .iter()
                .partition(|(number, _)| !self.spoiled[number % LISTS]);
            let mut stored = Vec::new();
            if fate != Fate::BatchLost {
                gone.iter().for_each(|number| drop(self.notes.remove(number)));
                for list in 0..LISTS {
                    let of_list: Vec<Named> = fits
                        .iter()
                        .filter(|(number, _)| number % LISTS == list)
                        .map(|&it| self.named(it))
                        .collect();
                    stored.extend(note(&of_list));
                }
                if !stored.is_empty() {
                    self.notes.insert(number, stored.clone());
                }
                fits.iter().for_each(|(number, _)| self.applied[*number] += 1);
            }
            if fate != Fate::Answered {
                self.claimed = false;
                self.doubtful.extend(missing.iter().map(|(number, _)| *number));
                batch.into_iter().rev().for_each(|it| self.queue.push_front(it));
                return;
            }
            self.memory.applied(self.turn, stored.len());
            delivered.extend(fits);
            self.queue.extend(spoiled);
        }
        let answered: Vec<Named> = delivered.iter().map(|&it| self.named(it)).collect();
        self.memory.answered(&answered);
        for (number, mark) in delivered {
            self.reports.push(Report::Delivered(number, mark));
        }
    }

    /// Lets everything come to its end.
    fn finish(&mut self) {
        self.spoiled = [false; LISTS];
        self.arrive(self.positions.len());
        for _ in 0..3 {
            while !self.queue.is_empty() {
                self.deliver(5, Fate::Answered);
            }
            self.commit();
            for _ in 0..self.hold.len() {
                self.run(Step::Release(0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens, nothing is lost, and nothing is applied twice.
    #[test]
    fn each_task_is_applied_once(
        transactions in proptest::collection::vec(1u64..5, 1..14),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(&transactions);
        steps.into_iter().for_each(|step| world.run(step));
        world.finish();
        prop_assert!(world.hold.is_empty() && world.settled.iter().all(|settled| *settled));
        for (number, times) in world.applied.iter().enumerate() {
            prop_assert!(*times >= 1, "task {} is lost", number);
            let most = if world.excused.contains(&number) { u32::MAX } else { 1 };
            prop_assert!(*times <= most, "task {} came {} times", number, times);
        }
    }

    /// A place that loses everything, at any time, makes us repeat, and lose nothing that comes after.
    #[test]
    fn a_place_that_was_emptied_loses_nothing_that_comes_after(
        transactions in proptest::collection::vec(1u64..5, 1..14),
        steps in proptest::collection::vec(prop_oneof![9 => step(), 1 => Just(Step::Flush)], 1..120),
    ) {
        let mut world = World::new(&transactions);
        steps.into_iter().for_each(|step| world.run(step));
        world.finish();
        prop_assert!(world.applied.iter().all(|times| *times >= 1));
    }
}
