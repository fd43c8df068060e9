//! The keeper by itself: how soon it is back, and what it does to rows of another history of the server.

use std::sync::Arc;
use std::time::Duration;

use aftercommit::delivery::{Keeper, KeyHasher, News, Rows, Wishes, Work};
use aftercommit::intake::{Confirmation, Identity, Line, Session};
use aftercommit::outbox::TableName;
use aftercommit::pg::Lsn;
use aftercommit::replication::{CopyBoth, Target, Walsender};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::hold_store::Store;
use crate::support::wait::{PATIENCE, eventually};

const SLOT: &str = "aftercommit";

/// A keeper, and the other ends of its channels.
struct Bench {
    line: watch::Sender<Line>,
    work: mpsc::Sender<Work>,
    news: mpsc::Receiver<News>,
    _wishes: watch::Sender<Wishes>,
    _confirmed: watch::Receiver<Confirmation>,
}

impl Bench {
    fn start(url: &str) -> Bench {
        let (line, stands) = watch::channel(Line::Down);
        let (work, to_keep) = mpsc::channel(1);
        let (wishes, wished) = watch::channel(Wishes::default());
        let (tells, news) = mpsc::channel(16);
        let (confirmed, confirmable) = watch::channel(Confirmation::default());
        let keeper = Keeper {
            target: Arc::new(Target::parse(url, None).expect("a URL")),
            slot: SLOT.to_owned(),
            table: TableName::ours(),
            delete_by: Some("id".to_owned()),
            sinks: vec![Arc::from("workers")],
            hasher: KeyHasher::default(),
            release_bytes: 1 << 20,
            slot_lag: 1 << 30,
            line: stands,
            work: to_keep,
            wishes: wished,
            news: tells,
            confirmed,
        };
        tokio::spawn(keeper.run());
        Bench {
            line,
            work,
            news,
            _wishes: wishes,
            _confirmed: confirmable,
        }
    }

    async fn news(&mut self) -> News {
        let news = timeout(PATIENCE, self.news.recv()).await;
        news.expect("news in time").expect("the keeper is there")
    }

    /// The rows and the ids of the next tasks that are due.
    async fn released(&mut self) -> Vec<(i64, String)> {
        loop {
            if let News::Released(released) = self.news().await {
                let pair = |it: &aftercommit::hold::Released| (it.hold_id, it.task.id().to_owned());
                return released.iter().map(pair).collect();
            }
        }
    }

    async fn until_held(&mut self) {
        while !matches!(self.news().await, News::Held { .. }) {}
    }

    async fn until_written(&mut self) {
        while !matches!(self.news().await, News::Written(_)) {}
    }
}

fn session(number: u64, generation: u64, timeline: u32, walsender_pid: u32) -> Session {
    Session {
        number,
        generation,
        identity: Identity {
            system_id: 42,
            timeline,
        },
        walsender_pid,
        start: Lsn::ZERO,
        until: None,
    }
}

/// A server that takes connections, and closes them; says when each came.
async fn broken_server() -> (String, mpsc::UnboundedReceiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let (attempts, attempted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            drop(socket);
            if attempts.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let url = format!("postgres://nobody@127.0.0.1:{port}/app?sslmode=disable");
    (url, attempted)
}

/// Its pauses grow up to five seconds, while the intake's begin anew: together they would be down for twice as long.
#[tokio::test]
async fn the_keeper_tries_at_once_when_a_new_session_is_up() {
    for goes_down in [false, true] {
        let (url, mut attempts) = broken_server().await;
        let bench = Bench::start(&url);
        bench.line.send_replace(Line::Up(session(1, 1, 1, 1)));
        // The next pause is 1.6 s at least.
        for _ in 0..6 {
            attempts.recv().await.expect("an attempt");
        }
        if goes_down {
            bench.line.send_replace(Line::Down);
            let attempt = timeout(Duration::from_secs(4), attempts.recv()).await;
            assert!(
                attempt.is_err(),
                "there is nothing to try without a session"
            );
        }
        let up = Instant::now();
        bench.line.send_replace(Line::Up(session(2, 1, 1, 1)));
        // And its pauses are short again.
        for most in [500, 1_000, 1_500] {
            let at = attempts.recv().await.expect("an attempt");
            let took = at.duration_since(up);
            assert!(took < Duration::from_millis(most), "{took:?}, {goes_down}");
        }
    }
}

/// Reads the slot, so that the keeper may write.
async fn walsender(url: &str) -> CopyBoth {
    let target = Target::parse(url, None).expect("a URL");
    let walsender = Walsender::connect(&target, "test").await.expect("a login");
    let stream = walsender.start_replication(SLOT, Lsn::ZERO, SLOT).await;
    stream.expect("the slot")
}

/// A standby that took over may give the numbers of lost rows to other tasks.
#[tokio::test]
async fn what_was_released_in_another_history_is_not_taken_for_another_task() {
    let store = Store::start().await;
    let put = |hold_id: i64, id: &str| {
        store.postgres.psql(&format!(
            "insert into aftercommit.hold (hold_id, slot, sink, route, state, blocks, id, task, due_at, commit_lsn,
               ordinal, committed_at)
             overriding system value
             values ({hold_id}, '{SLOT}', 'workers', '*', 'retrying', false, '{id}', 'a.task', now(), '0/{hold_id}', 0, now())"
        ));
    };
    let ids = || {
        store
            .postgres
            .psql("select id from aftercommit.hold order by hold_id")
    };
    for (hold_id, id) in [(1, "lost"), (2, "kept"), (3, "put-off"), (4, "dead")] {
        put(hold_id, id);
    }
    let url = store.postgres.url("daemon");
    let stream = walsender(&url).await;
    let mut bench = Bench::start(&url);
    let first = session(1, 1, 1, stream.backend_pid);
    bench.line.send_replace(Line::Up(first));
    assert_eq!(bench.released().await.len(), 4);

    bench.line.send_replace(Line::Down);
    store
        .postgres
        .psql("delete from aftercommit.hold where hold_id <> 2");
    for hold_id in [1, 3, 4] {
        put(hold_id, &format!("other-{hold_id}"));
    }
    let second = session(2, 2, 2, stream.backend_pid);
    bench.line.send_replace(Line::Up(second));
    bench.until_held().await;
    let confirmation = Confirmation {
        generation: 2,
        identity: second.identity,
        ..Confirmation::default()
    };
    let rows = Rows {
        removed: vec![1, 2],
        postponed: vec![aftercommit::hold::Postponed {
            hold_id: 3,
            due_in: PATIENCE,
            attempts: 7,
            error: "in vain".to_owned(),
        }],
        buried: vec![aftercommit::hold::Buried {
            hold_id: 4,
            attempts: 7,
            error: "gone".to_owned(),
            blocks: false,
        }],
        returned: Vec::new(),
    };
    let work = Work {
        rows,
        confirmation,
        ..Work::default()
    };
    bench.work.send(work).await.expect("the keeper is there");
    bench.until_written().await;
    // What was delivered was delivered, where it is still there; the others are as they were.
    assert_eq!(ids(), "other-1\nother-3\nother-4");
    let mut due = bench.released().await;
    due.sort();
    let others = [1, 3, 4].map(|hold_id| (hold_id, format!("other-{hold_id}")));
    assert_eq!(due, others);
    let touched = "select count(*) from aftercommit.hold where attempts > 0 or state = 'dead'";
    assert_eq!(store.postgres.psql(touched), "0");

    // In one history a row is what it was.
    let rows = Rows {
        removed: vec![1, 3, 4],
        ..Rows::default()
    };
    let work = Work {
        rows,
        confirmation,
        ..Work::default()
    };
    bench.work.send(work).await.expect("the keeper is there");
    bench.until_written().await;
    assert_eq!(ids(), "");
}

/// A statement that nobody waits for any more would keep its locks from the next one, or take its time.
#[tokio::test]
async fn what_is_given_up_ends_on_the_server_too() {
    let store = Store::start().await;
    let url = store.postgres.url("daemon");
    let stream = walsender(&url).await;
    let mut bench = Bench::start(&url);
    let session = session(1, 1, 1, stream.backend_pid);
    bench.line.send_replace(Line::Up(session));
    bench.until_held().await;
    let locker = store.postgres.client().await;
    let lock = "begin; lock table aftercommit.hold in exclusive mode";
    locker.batch_execute(lock).await.expect("a lock");
    let work = Work {
        rows: Rows {
            removed: vec![1],
            ..Rows::default()
        },
        confirmation: Confirmation {
            generation: 1,
            identity: session.identity,
            ..Confirmation::default()
        },
        ..Work::default()
    };
    bench.work.send(work).await.expect("the keeper is there");
    let waiting = "select count(*) from pg_stat_activity
        where application_name = 'aftercommit keeper' and wait_event_type = 'Lock'";
    let counts = async |count: &str| {
        eventually(PATIENCE, count, || async {
            (store.postgres.psql(waiting) == count).then_some(())
        })
        .await;
    };
    counts("1").await;
    bench.line.send_replace(Line::Down);
    counts("0").await;
}
