//! The reader's loop against a scripted walsender, on a clock that jumps: when it speaks, what it confirms, and how it
//! ends.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::duplex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use std::sync::Arc;

use super::script::*;
use super::*;
use crate::budget::Memory;
use crate::intake::Confirmation;
use crate::outbox::{Columns, Config};

mod breakage;
mod ending;
mod rows;

const GENERATION: u64 = 3;

/// A pump under test, with everything around it scripted.
struct Bench {
    server: Walsender,
    batches: mpsc::Receiver<Batch>,
    line: watch::Receiver<Line>,
    confirmed: watch::Sender<Confirmation>,
    orders: watch::Sender<Order>,
    watch: mpsc::Sender<Seen>,
    memory: Arc<Memory>,
    pump: JoinHandle<Ended>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn start() -> Bench {
    start_with(1 << 20, None).await
}

/// `pipe` is how many bytes either side takes unread.
async fn start_with(pipe: usize, until: Option<Lsn>) -> Bench {
    start_behind(None, pipe, until).await
}

/// `rows` go before the stream.
async fn start_behind(rows: Option<Rows>, pipe: usize, until: Option<Lsn>) -> Bench {
    let (server, client) = duplex(pipe);
    let (batches_in, batches) = mpsc::channel(2);
    let (line_in, line) = watch::channel(Line::Down);
    let (confirmed, confirmable) = watch::channel(Confirmation::default());
    // Ordered for an earlier session.
    let (orders, mut ordered) = watch::channel(Order::Stream);
    ordered.mark_unchanged();
    orders.send_replace(Order::Leave);
    let (watch, sees) = mpsc::channel(1);
    let session = Session {
        number: 7,
        generation: GENERATION,
        identity: crate::intake::Identity::default(),
        walsender_pid: 1,
        start: Lsn::ZERO,
        until,
    };
    let open = Open {
        stream: Stream::new(client, BytesMut::new()),
        assembler: Assembler::new(Columns::new(&Config::default()).expect("columns")),
        session,
        received: Lsn(if rows.is_some() { 50 } else { 0 }),
        rows,
    };
    let memory = Memory::new(1 << 20);
    let mut channels = Channels {
        batches: batches_in,
        line: line_in,
        confirmed: confirmable,
        orders: ordered,
        memory: memory.clone(),
    };
    let pump = tokio::spawn(async move { run(open, sees, &mut channels, |_| {}).await });
    let mut up = line.clone();
    let session = up
        .wait_for(|line| matches!(line, Line::Up(session) if session.number == 7))
        .await;
    drop(session.expect("the session is announced"));
    Bench {
        server: Walsender::new(server),
        batches,
        line,
        confirmed,
        orders,
        watch,
        memory,
        pump,
    }
}

impl Bench {
    fn settle(&self, generation: u64, lsn: u64) {
        let lsn = ConfirmedLsn::vouch(Lsn(lsn));
        self.confirmed.send_replace(Confirmation {
            generation,
            lsn,
            ..Confirmation::default()
        });
    }

    /// The items of so many frames, in words.
    async fn items(&mut self, count: usize) -> Vec<String> {
        let mut items = Vec::new();
        while items.len() < count {
            let batch = timeout(ms(60_000), self.batches.recv()).await;
            let batch = batch.expect("a batch in time").expect("the pump is there");
            assert_eq!(batch.session, 7);
            items.extend(batch.items.iter().map(told));
        }
        items
    }

    async fn error(self) -> Error {
        match self.ended().await {
            Ended::Failed(error) => error,
            _ => panic!("no error"),
        }
    }

    async fn ended(self) -> Ended {
        let ended = timeout(ms(120_000), self.pump).await;
        let ended = ended.expect("it ends").expect("it does not panic");
        assert!(matches!(*self.line.borrow(), Line::Down));
        ended
    }
}

fn told(item: &Item) -> String {
    match item {
        Item::Outbox(Event::Begin { commit_lsn, .. }) => format!("begin {}", commit_lsn.0),
        Item::Outbox(Event::Task(task)) => format!("task {} {}", task.id(), task.position.ordinal),
        Item::Outbox(Event::Commit { end_lsn }) => format!("commit {}", end_lsn.0),
        Item::Keepalive(wal_end) => format!("alive {}", wal_end.0),
    }
}

#[tokio::test(start_paused = true)]
async fn speaks_every_ten_seconds_while_the_server_is_idle() {
    let mut bench = start().await;
    let mut last = Instant::now();
    for round in 0..20 {
        let status = bench.server.status(ms(10_000)).await;
        assert!(status.at - last <= ms(10_000) + GRAIN, "{round}");
        last = status.at;
        // An idle server answers only when it is asked.
        if status.asks {
            bench.server.send(&keepalive(0, false)).await;
        }
    }
    assert!(matches!(&*bench.line.borrow(), Line::Up(session) if session.number == 7));
    assert!(!bench.pump.is_finished());
}

#[tokio::test(start_paused = true)]
async fn reads_nothing_while_the_memory_is_used_up_and_goes_on_when_it_is_free() {
    let mut bench = start().await;
    let charge = bench.memory.charge(1 << 20);
    // One read may have been under way.
    bench.server.send(&transaction(100)).await;
    drop(timeout(ms(50), bench.batches.recv()).await);
    bench.server.send(&transaction(200)).await;
    // Longer than any silence that would be an error.
    let nothing = timeout(ms(60_000), bench.batches.recv()).await;
    assert!(nothing.is_err(), "it reads");
    assert!(!bench.pump.is_finished(), "not reading is not silence");
    drop(charge);
    let batch = bench.batches.recv().await.expect("a batch");
    assert!(!batch.items.is_empty());
}

/// More transactions than the pump takes while the relay takes none: from 100 on, in steps of 10.
fn many() -> Vec<u8> {
    (1..2_000).flat_map(|n| transaction(100 * n)).collect()
}

#[tokio::test(start_paused = true)]
async fn speaks_more_often_while_the_relay_takes_nothing() {
    let mut bench = start_with(4096, None).await;
    let bytes = many();
    let rest = bench.server.flood(&bytes).await;
    let mut last = Instant::now();
    // Longer than any silence that would be an error.
    for _ in 0..200 {
        let status = bench.server.status(ms(500)).await;
        assert!(status.at - last <= ms(500) + GRAIN);
        assert!(status.at - last >= ms(400), "nobody asks anything");
        assert_eq!((status.flushed, status.asks), (Lsn(0), false));
        last = status.at;
    }
    assert!(!bench.pump.is_finished(), "not reading is not silence");
    assert_eq!(
        bench.server.flood(rest).await.len(),
        rest.len(),
        "not a byte was read"
    );
    // What is settled meanwhile is confirmed, as far as it was received.
    bench.settle(GENERATION, 105);
    assert_eq!(bench.server.confirmation(105).await, 0);

    // The relay takes again: nothing is lost of what waited.
    let mut next = 100;
    let sending = bench.server.send(rest);
    let taking = async {
        while next < 200_000 {
            let batch = bench.batches.recv().await.expect("a batch");
            for item in &batch.items {
                if let Item::Outbox(Event::Commit { end_lsn }) = item {
                    assert_eq!(end_lsn.0, next + 5);
                    next += 100;
                }
            }
        }
    };
    tokio::join!(sending, taking);
}

/// Nothing can be settled without the session: if it were not noticed, the relay might take nothing for ever.
#[tokio::test(start_paused = true)]
async fn a_walsender_that_has_gone_is_noticed_while_nothing_is_read() {
    for memory_is_full in [false, true] {
        let mut bench = start_with(4096, None).await;
        let _charge = memory_is_full.then(|| bench.memory.charge(1 << 20));
        bench.server.flood(&many()).await;
        let gone = Instant::now();
        drop(bench.server);
        let ended = timeout(ms(60_000), bench.pump).await.expect("it ends");
        let took = gone.elapsed();
        assert!(took <= ms(500) + GRAIN, "{took:?}, {memory_is_full}");
        match ended.expect("it does not panic") {
            Ended::Failed(error) => assert_eq!(error.policy(), Policy::Reconnect, "{error}"),
            _ => panic!("no error"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_asked_about_and_then_an_error() {
    let mut bench = start().await;
    let start = Instant::now();
    let mut asked = false;
    loop {
        match bench.server.hear(ms(60_000)).await {
            Some(Heard::Status(status)) => asked |= status.asks,
            Some(Heard::Closed) => break,
            other => panic!("{other:?}"),
        }
    }
    let silent = Instant::now() - start;
    assert!(asked);
    assert!(
        silent >= SILENCE && silent <= SILENCE + STATUS_INTERVAL,
        "{silent:?}"
    );
    let error = bench.error().await;
    assert_eq!(error.policy(), Policy::Reconnect, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_demands_an_answer_gets_one_at_once() {
    let mut bench = start().await;
    for _ in 0..5 {
        tokio::time::sleep(ms(1_300)).await;
        let demanded = Instant::now();
        bench.server.send(&keepalive(50, true)).await;
        let status = bench.server.status(ms(20)).await;
        assert!(status.at - demanded <= ms(20) + GRAIN);
        bench.items(1).await;
    }
    // One that demands none gets none.
    bench.server.send(&keepalive(60, false)).await;
    assert_eq!(bench.server.hear(ms(5_000)).await, None);
    assert!(!bench.pump.is_finished());
}

#[tokio::test(start_paused = true)]
async fn confirms_no_more_than_was_received_and_nothing_of_another_generation() {
    let mut bench = start().await;
    bench.settle(GENERATION - 1, 90);
    bench.server.send(&keepalive(95, true)).await;
    assert_eq!(bench.server.status(ms(20)).await.flushed, Lsn(0));
    bench.settle(GENERATION, 1_000_000);
    assert_eq!(bench.server.confirmation(95).await, 0);
    bench.items(1).await;
    // A transaction is received with its Commit, not before; an XLogData's positions are no boundary.
    let bytes = transaction(100);
    let (most, end) = bytes.split_at(bytes.len() - 1);
    bench.server.send(most).await;
    assert_eq!(bench.server.status(ms(10_000)).await.flushed, Lsn(95));
    bench.server.send(end).await;
    bench.server.confirmation(105).await;
    bench.items(3).await;
    // Never backwards, whatever comes.
    bench.settle(GENERATION, 40);
    bench.server.send(&keepalive(20, true)).await;
    assert_eq!(bench.server.status(ms(20)).await.flushed, Lsn(105));
    bench.settle(GENERATION + 1, 104);
    bench.server.send(&keepalive(300, true)).await;
    assert_eq!(bench.server.status(ms(20)).await.flushed, Lsn(105));
}

#[tokio::test(start_paused = true)]
async fn news_is_confirmed_within_half_a_second_and_once() {
    let mut bench = start().await;
    bench
        .server
        .send(&[transaction(100), transaction(200)].concat())
        .await;
    bench.items(6).await;
    for lsn in [105, 205] {
        bench.settle(GENERATION, lsn);
        let status = bench.server.status(STATUS_INTERVAL).await;
        assert_eq!(status.flushed, Lsn(lsn));
    }
    assert_eq!(bench.server.hear(ms(8_000)).await, None);
}

#[tokio::test(start_paused = true)]
async fn to_end_at_a_position_the_server_is_asked_how_far_it_is() {
    let mut bench = start_with(1 << 20, Some(Lsn(500))).await;
    for _ in 0..5 {
        assert!(bench.server.status(STATUS_INTERVAL).await.asks);
        bench.server.send(&keepalive(400, false)).await;
    }
}
