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
    assert!(!memory.has(&named("x1", at(8, 1))));
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
    memory.recall([(0, note(&[named("a", at(8, 0)), named("b", at(8, 1))]))]);
    let settled = Settled {
        below: Lsn(99),
        turn: 0,
    };
    assert!(memory.forget(settled).is_empty());
    assert!(memory.has(&held("a", at(8, 0), 1)) && memory.has(&held("b", at(8, 1), 2)));
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
