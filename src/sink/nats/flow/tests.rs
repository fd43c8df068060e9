//! The order of sending, against a model of a stream that others write to, that is full at times, and that loses answers.

use proptest::prelude::*;

use super::*;
use crate::outbox::{Field, Position};
use crate::pg::Timestamp;

fn batch(keys: &[Option<u8>]) -> Vec<Task> {
    let task = |key: &Option<u8>| {
        let key = key.map(|key| key.to_string());
        let fields = key.as_deref().map(|key| (Field::Key, key));
        Task::from_fields(fields, Position::default(), Timestamp(0))
    };
    keys.iter().map(task).collect()
}

fn retry() -> Outcome {
    Outcome::Retry(Cause::new("no"))
}

/// All that may be sent now.
fn sent(flow: &mut Flow) -> Vec<(usize, Option<usize>)> {
    std::iter::from_fn(|| flow.send())
        .map(|send| (send.task, send.behind))
        .collect()
}

#[test]
fn a_run_goes_at_once_behind_guards() {
    let batch = batch(&[Some(1), None, Some(1), Some(2), Some(1)]);
    let mut flow = Flow::new(&batch, Pace::RUNS);
    let expected = [(0, None), (2, Some(0)), (4, Some(2)), (1, None), (3, None)];
    assert_eq!(sent(&mut flow), expected);
    for task in [0, 1, 3] {
        flow.answered(task, Answer::Stored);
    }
    for task in [2, 4] {
        flow.answered(task, Answer::Overtaken);
    }
    assert_eq!(
        sent(&mut flow),
        [(2, None), (4, Some(2))],
        "the rest once more"
    );
    for task in [2, 4] {
        flow.answered(task, Answer::Stored);
    }
    assert_eq!(sent(&mut flow), []);
    assert!(flow.is_quiet());
    assert_eq!(flow.outcomes(), vec![Outcome::Delivered; 5]);
}

#[test]
fn one_by_one_needs_no_guards() {
    let batch = batch(&[Some(1), Some(1), Some(2), Some(1)]);
    let mut flow = Flow::new(&batch, Pace::SINGLE);
    assert_eq!(sent(&mut flow), [(0, None), (2, None)]);
    flow.answered(0, Answer::Stored);
    assert_eq!(sent(&mut flow), [(1, None)]);
    flow.answered(1, Answer::Failed(retry()));
    assert_eq!(sent(&mut flow), []);
    flow.answered(2, Answer::Stored);
    assert!(flow.is_quiet());
    let outcomes = flow.outcomes();
    let delivered: Vec<bool> = outcomes.iter().map(|o| *o == Outcome::Delivered).collect();
    assert_eq!(delivered, [true, false, true, false]);
    assert_eq!(outcomes[1], retry());
}

#[test]
fn what_fails_while_its_run_is_written_ends_the_run() {
    let batch = batch(&[Some(1), Some(1), Some(1)]);
    let mut flow = Flow::new(&batch, Pace::RUNS);
    assert_eq!(flow.send().map(|send| send.task), Some(0));
    assert_eq!(flow.send().map(|send| send.task), Some(1));
    flow.answered(1, Answer::Failed(Outcome::Reject(Cause::new("bad"))));
    assert_eq!(flow.send(), None);
    flow.answered(0, Answer::Stored);
    assert!(flow.is_quiet());
    let outcomes = flow.outcomes();
    assert_eq!(outcomes[0], Outcome::Delivered);
    assert!(matches!(outcomes[1], Outcome::Reject(_)));
    assert!(matches!(outcomes[2], Outcome::Retry(_)));
}

#[test]
fn answers_to_nothing_are_nobodys() {
    let batch = batch(&[Some(1), Some(1)]);
    let mut flow = Flow::new(&batch, Pace::SINGLE);
    flow.answered(0, Answer::Stored);
    flow.answered(7, Answer::Stored);
    assert_eq!(sent(&mut flow), [(0, None)]);
    flow.answered(1, Answer::Stored);
    flow.answered(0, Answer::Stored);
    flow.answered(0, Answer::Failed(retry()));
    assert_eq!(sent(&mut flow), [(1, None)]);
    assert_eq!(flow.unanswered(), [1]);
}

#[test]
fn runs_are_short_where_others_write_and_grow_again() {
    let mut pace = Pace::RUNS;
    (0..20).for_each(|_| pace.slower());
    assert_eq!(
        pace,
        Pace {
            run: 1,
            ..Pace::RUNS
        }
    );
    (0..1000).for_each(|_| pace.faster());
    assert_eq!(pace, Pace::RUNS);
    let mut pace = Pace::SINGLE;
    pace.faster();
    assert_eq!(pace, Pace::SINGLE);
}

/// A stream as the server has it: what it has stored, and its last message.
#[derive(Default)]
struct Stream {
    stored: Vec<usize>,
    last: Option<usize>,
}

/// What happens at one message.
#[derive(Clone, Copy, Debug)]
enum Event {
    Plain,
    /// Another writer's message comes before it.
    Foreign,
    /// The stream takes nothing.
    Full,
    /// Its answer is lost.
    Lost,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Plain),
        2 => Just(Event::Foreign),
        1 => Just(Event::Full),
        1 => Just(Event::Lost),
    ]
}

proptest! {
    #[test]
    fn nothing_of_a_key_overtakes(
        keys in prop::collection::vec(prop::option::weighted(0.8, 0u8..4), 1..60),
        events in prop::collection::vec(event(), 1..400),
        single in any::<bool>(),
        at_once in 1usize..40,
    ) {
        let batch = batch(&keys);
        let mut flow = Flow::new(&batch, if single { Pace::SINGLE } else { Pace::RUNS });
        let mut stream = Stream::default();
        let mut events = events.into_iter().cycle();
        let mut under_way = VecDeque::new();
        let mut steps = 0;
        loop {
            let written: Vec<Send> = (0..at_once).map_while(|_| flow.send()).collect();
            under_way.extend(written);
            let Some(send) = under_way.pop_front() else {
                // Answers that are lost are missed at the end of the wait.
                let missed = flow.unanswered();
                if missed.is_empty() {
                    break;
                }
                for task in missed {
                    flow.answered(task, Answer::Failed(retry()));
                }
                continue;
            };
            steps += 1;
            prop_assert!(steps < 10_000, "it does not end");
            let event = events.next().unwrap_or(Event::Plain);
            if matches!(event, Event::Foreign) {
                stream.last = None;
            }
            let guard_holds = send.behind.is_none_or(|behind| stream.last == Some(behind));
            let answer = match event {
                _ if stream.stored.contains(&send.task) => Answer::Stored,
                _ if !guard_holds => Answer::Overtaken,
                Event::Full => Answer::Failed(retry()),
                _ => {
                    stream.stored.push(send.task);
                    stream.last = Some(send.task);
                    Answer::Stored
                }
            };
            if !matches!(event, Event::Lost) {
                flow.answered(send.task, answer);
            }
            // Whenever the place goes away, what is said to be stored is, and nothing ahead of it in its key is in doubt.
            let known = flow.known();
            let is_known = |task: &usize| known[*task].is_some();
            for task in (0..keys.len()).filter(is_known) {
                prop_assert!(stream.stored.contains(&task), "{task} is not stored");
                let mut ahead = (0..task).filter(|other| keys[task].is_some() && keys[*other] == keys[task]);
                prop_assert!(ahead.all(|other| is_known(&other)), "before {task}");
            }
        }
        prop_assert!(flow.is_quiet());
        let outcomes = flow.outcomes();
        for key in 0..4 {
            let of_key = |task: &&usize| keys[**task] == Some(key);
            let stored: Vec<usize> = stream.stored.iter().filter(of_key).copied().collect();
            let all: Vec<usize> = (0..keys.len()).collect();
            let all: Vec<usize> = all.iter().filter(of_key).copied().collect();
            prop_assert!(all.starts_with(&stored), "{stored:?} of {all:?}");
            let delivered = all.iter().take_while(|task| outcomes[**task] == Outcome::Delivered);
            prop_assert!(delivered.count() <= stored.len());
            let later = all.iter().skip_while(|task| outcomes[**task] == Outcome::Delivered);
            for task in later {
                prop_assert!(outcomes[*task] != Outcome::Delivered);
            }
        }
        for (task, outcome) in outcomes.iter().enumerate() {
            prop_assert!(*outcome != Outcome::Delivered || stream.stored.contains(&task));
        }
    }
}
