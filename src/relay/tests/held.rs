//! What waits in the hold table, and what comes back from there.

use super::*;
use crate::hold::Released;

fn released(hold_id: i64, task_name: &str, sink: &str) -> Released {
    let Item::Outbox(Event::Task(task)) = task(9_000, hold_id as u64, task_name) else {
        panic!("a task");
    };
    Released {
        hold_id,
        task,
        sink: sink.into(),
        route: "a.*".to_owned(),
        state: State::Retrying,
        attempts: 2,
    }
}

impl Bench {
    async fn tell(&self, news: Kept) {
        self.kept.send(news).await.expect("the relay is there");
    }

    /// Sink and origin of what is in flight.
    async fn origins(&mut self) -> Vec<(usize, Origin)> {
        self.settle_down().await;
        let lanes = self.in_flight.iter().enumerate();
        lanes
            .flat_map(|(lane, passages)| passages.iter().map(move |it| (lane / 2, it.origin)))
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_due_goes_to_its_sink_and_a_stop_waits_for_it() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .tell(Kept::Released(vec![
            released(1, "a.x", "first"),
            // Its route leads elsewhere now, and its sink is still there.
            released(2, "a.x", "second"),
            // Its sink has been renamed.
            released(3, "b.x", "former"),
            // Nowhere to go.
            released(4, "c.x", "former"),
        ]))
        .await;
    let hold = |hold_id| Origin::Hold {
        hold_id,
        attempts: 2,
    };
    assert_eq!(
        bench.origins().await,
        [(0, hold(1)), (1, hold(2)), (1, hold(3))]
    );
    bench.signals.send_replace(1);
    for hold_id in [1, 2, 3] {
        assert!(!bench.relay.is_finished());
        bench.deliver(&format!("9000/{hold_id}")).await;
    }
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_time_has_not_come_is_held() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    let timed = |ordinal, run_at| {
        let Item::Outbox(Event::Task(plain)) = task(100, ordinal, "a.x") else {
            panic!("a task");
        };
        let fields = [
            (Field::Id, plain.id()),
            (Field::Task, "a.x"),
            (Field::RunAt, run_at),
        ];
        let timed = Task::from_fields(fields, plain.position, Timestamp(0));
        Item::Outbox(Event::Task(timed))
    };
    bench
        .send(
            1,
            vec![
                begin(100),
                timed(0, "2000-01-01 00:00:01+00"),
                timed(1, "2000-01-01 00:00:10+00"),
                commit(100),
            ],
        )
        .await;
    assert_eq!(
        bench.in_flight().await,
        ["100/0"],
        "its sink keeps it for a second"
    );
    assert_eq!(bench.held(), [("100/1".to_owned(), State::Scheduled)]);
    let due_at = bench.held.lock().expect("a lock")[0].due_at;
    assert_eq!(due_at, Some(Timestamp(10_000_000)));
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_already_is_settled_when_it_comes_again() {
    let mut bench = start(false, 100);
    let session = Session {
        generation: 7,
        ..session(1)
    };
    bench.up(session);
    bench.settle_down().await;
    let position = Position {
        commit_lsn: Lsn(100),
        ordinal: 0,
    };
    bench
        .tell(Kept::Held {
            session,
            keys: vec![Vec::new(); 2],
            positions: HashSet::from([position]),
        })
        .await;
    bench
        .send(1, joined([transaction(100), transaction(200)]))
        .await;
    assert_eq!(bench.in_flight().await, ["200/0"]);
    assert_eq!(bench.confirmed(), 105);
}
