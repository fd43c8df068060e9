//! A model of everything around a memory: a stream that sends again, a hold table, a place, and crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

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
    Delivered(usize, Origin),
    Parked(usize),
}

/// Where a task comes from: the stream, or a row of the hold table.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Stream,
    Held(i64),
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
    queue: VecDeque<(usize, Origin)>,
    arrived: usize,
    under_way: BTreeSet<i64>,
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
        }
    }

    fn mark(&self, number: usize) -> Mark {
        mark(&format!("t{number}"), self.positions[number])
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
                        Some((number, Origin::Stream)) => {
                            self.reports.push(Report::Parked(number));
                        }
                        Some((_, Origin::Held(hold_id))) => {
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
                    self.queue.push_back((number, Origin::Held(hold_id)));
                }
            }
            Step::Crash => {
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
                self.queue.push_back((number, Origin::Stream));
            }
        }
        self.arrived = until;
    }

    fn commit(&mut self) {
        for report in std::mem::take(&mut self.reports) {
            match report {
                Report::Delivered(number, Origin::Stream) => self.settled[number] = true,
                Report::Delivered(_, Origin::Held(hold_id)) => {
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
        let batch: Vec<(usize, Origin)> = self.queue.drain(..size).collect();
        if !self.claimed {
            self.memory.enter(&scope(self.generation));
            let unread = self.memory.unread(self.notes.keys().copied().collect());
            let read = unread.into_iter();
            let read = read.map(|number| (number, self.notes[&number].clone()));
            self.memory.recall(read.collect::<Vec<_>>());
            self.claimed = true;
        }
        let (mut delivered, missing): (Vec<_>, Vec<_>) = batch
            .iter()
            .copied()
            .partition(|(number, _)| self.memory.has(&self.mark(*number)));
        if !missing.is_empty() {
            let gone = self.memory.forget(settled(self.below().0, self.written));
            let marks: Vec<Mark> = missing.iter().map(|it| self.mark(it.0)).collect();
            let number = self.memory.sends(&marks, self.turn);
            let (fits, spoiled): (Vec<(usize, Origin)>, Vec<_>) = missing
                .iter()
                .partition(|(number, _)| !self.spoiled[number % LISTS]);
            let mut stored = Vec::new();
            if fate != Fate::BatchLost {
                gone.iter()
                    .for_each(|number| drop(self.notes.remove(number)));
                for list in 0..LISTS {
                    let of_list = fits.iter().filter(|it| it.0 % LISTS == list);
                    let of_list: Vec<Mark> = of_list.map(|it| self.mark(it.0)).collect();
                    stored.extend(note(&of_list));
                }
                if !stored.is_empty() {
                    self.notes.insert(number, stored.clone());
                }
                fits.iter()
                    .for_each(|(number, _)| self.applied[*number] += 1);
            }
            if fate != Fate::Answered {
                self.claimed = false;
                batch
                    .into_iter()
                    .rev()
                    .for_each(|it| self.queue.push_front(it));
                return;
            }
            self.memory.applied(stored.len());
            delivered.extend(fits);
            self.queue.extend(spoiled);
        }
        let reports = delivered.into_iter();
        self.reports
            .extend(reports.map(|(number, origin)| Report::Delivered(number, origin)));
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
    #![proptest_config(ProptestConfig::with_cases(500))]

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
            prop_assert!(*times == 1, "task {} came {} times", number, times);
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
