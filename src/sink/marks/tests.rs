//! What a memory says of notes, case by case; and against a model of everything around it.

mod model;

use std::collections::BTreeSet;

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
fn note(marks: &[Mark]) -> Vec<u8> {
    let mut list = List::default();
    marks.iter().for_each(|mark| list.add(*mark));
    list.finish()
}

fn mark(id: &str, position: Position) -> Mark {
    Mark::of(&task(id, position))
}

fn settled(below: u64, turn: u64) -> Settled {
    Settled {
        below: Lsn(below),
        turn,
    }
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
    let marks: Vec<Mark> = (0..3)
        .map(|n| mark(&format!("a{n}"), at(8, n)))
        .chain([mark("b", at(16, 0))])
        .collect();
    assert!(memory.is_blank());
    memory.recall([(4, note(&marks))]);
    assert!(!memory.is_blank());
    assert!(marks.iter().all(|mark| memory.has(mark)));
    for (id, position) in [
        ("x0", at(8, 0)),
        ("x1", at(8, 1)),
        ("a0", at(8, 1)),
        ("a3", at(8, 3)),
        ("b", at(24, 0)),
        ("y", at(16, 0)),
    ] {
        assert!(!memory.has(&mark(id, position)), "{id}");
    }
}

#[test]
fn parts_under_way_are_answered_in_their_order() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    assert!(memory.unread(Vec::new()).is_empty());
    memory.recall([]);
    let marks: Vec<Mark> = (0..4).map(|n| mark(&format!("a{n}"), at(8, n))).collect();
    for (number, mark) in (0..).zip(&marks) {
        assert_eq!(memory.sends([mark], 1), number);
    }
    assert_eq!(memory.in_doubt(), Some(0));
    memory.applied(9);
    assert_eq!(memory.in_doubt(), Some(1));
    memory.refused();
    assert_eq!(memory.in_doubt(), Some(2));
    // The others had no answer: one of them was applied.
    assert_eq!(memory.unread(vec![2, 0]), [2]);
    memory.recall([(2, note(&marks[2..3]))]);
    assert_eq!(memory.in_doubt(), None);
    let there: Vec<bool> = marks.iter().map(|mark| memory.has(mark)).collect();
    assert_eq!(there, [false, false, true, false]);
}

#[test]
fn a_place_that_has_lost_notes_is_not_trusted() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    assert!(memory.unread(Vec::new()).is_empty());
    memory.recall([]);
    let (first, second) = (mark("a", at(8, 0)), mark("b", at(16, 0)));
    for (number, mark) in [first, second].iter().enumerate() {
        assert_eq!(memory.sends([mark], 1), number as u64);
        memory.applied(9);
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
    assert_eq!(memory.sends([&first], 1), 2);
    memory.refused();
    // A note that is none says nothing.
    assert_eq!(memory.unread(vec![1, 7]), [7]);
    memory.recall([(7, b"?".to_vec())]);
    assert_eq!(memory.sends([&first], 1), 8);
}

#[test]
fn notes_go_when_nothing_in_them_can_come_again() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    memory.sends([&mark("a", at(8, 0))], 1);
    memory.applied(9);
    memory.sends([&mark("b", at(16, 0)), &mark("c", at(8, 1))], 2);
    memory.applied(20);
    memory.sends([&mark("d", at(24, 0))], 3);
    memory.applied(9);
    assert!(memory.forget(settled(8, 9)).is_empty());
    assert_eq!(memory.forget(settled(9, 1)), [0]);
    assert!(memory.forget(settled(16, 9)).is_empty(), "b comes again");
    // One of them may have come from the hold, and be there still.
    assert!(memory.forget(settled(17, 1)).is_empty());
    assert_eq!(memory.forget(settled(24, 2)), [1]);
    assert_eq!(memory.forget(settled(25, 3)), [2]);
    assert_eq!(memory.forget(settled(99, 9)), [0; 0]);
}

#[test]
fn what_was_answered_of_a_batch_that_failed_is_known_when_it_comes_again() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    let (first, second) = (mark("a", at(8, 0)), mark("b", at(16, 0)));
    for (turn, mark) in [(1, first), (2, second)] {
        memory.sends([&mark], turn);
        memory.applied(9);
    }
    memory.will_come_again([]);
    assert!(memory.is_blank());
    memory.will_come_again([second]);
    assert!(memory.has(&second) && !memory.has(&first));
    // It may go to the hold meanwhile: its note stays, where the other's goes.
    assert_eq!(memory.forget(settled(99, 2)), [0]);
    assert!(memory.forget(settled(99, 2)).is_empty() && memory.has(&second));
}

#[test]
fn what_was_found_is_known_when_it_has_gone_to_the_hold() {
    let mut memory = Memory::default();
    memory.enter(&scope(1));
    memory.unread(vec![0]);
    let marks = [mark("a", at(8, 0)), mark("b", at(8, 1))];
    memory.recall([(0, note(&marks))]);
    assert!(memory.forget(settled(99, 0)).is_empty());
    assert!(marks.iter().all(|mark| memory.has(mark)));
    // But for so much that this can't be.
    let many: Vec<Mark> = (0..140_000).map(|n| mark("", at(16, n))).collect();
    memory.unread(vec![0, 1, 2]);
    memory.recall([(1, note(&many)), (2, note(&[mark("c", at(24, 0))]))]);
    assert!(memory.forget(settled(15, 0)).is_empty());
    assert!(memory.has(&many[0]));
    assert_eq!(memory.forget(settled(99, 0)), [0, 1]);
    assert!(!memory.has(&many[0]) && memory.has(&many[100_000]));
    assert!(memory.has(&mark("c", at(24, 0))));
}

#[test]
fn notes_are_bounded_in_number_and_size() {
    for size in [10, 1_000] {
        let mut memory = Memory::default();
        memory.enter(&scope(1));
        let mut there = BTreeSet::new();
        let mut most = 0;
        for n in 0..80_000 {
            let gone = memory.forget(Settled::default());
            there.insert(memory.sends([&mark("a", at(8 * n, 0))], n));
            gone.iter()
                .for_each(|number| assert!(there.remove(number), "{number} went twice"));
            memory.applied(size);
            most = most.max(there.len());
        }
        let bound = 65_538.min((4 << 20) / size + 2);
        assert!(most <= bound && most > bound / 2, "{most} of {size} bytes");
    }
}
