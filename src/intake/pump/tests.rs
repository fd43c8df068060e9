//! The reader's loop against a scripted walsender, on a clock that jumps: when it speaks, what it confirms, and how it
//! ends.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::duplex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::script::*;
use super::*;
use crate::intake::Confirmation;
use crate::outbox::{Columns, Config};

const GENERATION: u64 = 3;

/// A pump under test, with everything around it scripted.
struct Bench {
    server: Walsender,
    batches: mpsc::Receiver<Batch>,
    line: watch::Receiver<Line>,
    confirmed: watch::Sender<Confirmation>,
    orders: watch::Sender<Order>,
    watch: mpsc::Sender<Seen>,
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
        walsender_pid: 1,
        until,
    };
    let open = Open {
        stream: Stream::new(client, BytesMut::new()),
        assembler: Assembler::new(Columns::new(&Config::default()).expect("columns")),
        session,
    };
    let mut channels = Channels {
        batches: batches_in,
        line: line_in,
        confirmed: confirmable,
        orders: ordered,
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
        pump,
    }
}

impl Bench {
    fn settle(&self, generation: u64, lsn: u64) {
        let lsn = ConfirmedLsn::vouch(Lsn(lsn));
        self.confirmed
            .send_replace(Confirmation { generation, lsn });
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

/// More transactions than the pump takes while the relay takes none: from 100 on, in steps of 10.
fn many() -> Vec<u8> {
    (1..2_000).flat_map(|n| transaction(100 * n)).collect()
}

#[tokio::test(start_paused = true)]
async fn speaks_every_ten_seconds_while_the_relay_takes_nothing() {
    let mut bench = start_with(4096, None).await;
    let bytes = many();
    let rest = bench.server.flood(&bytes).await;
    let mut last = Instant::now();
    for _ in 0..20 {
        let status = bench.server.status(ms(10_000)).await;
        assert!(status.at - last <= ms(10_000) + GRAIN);
        assert_eq!(status.flushed, Lsn(0));
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
async fn a_storm_of_demands_is_answered_calmly_and_ends_the_session() {
    let mut bench = start().await;
    bench.server.send(&transaction(100)).await;
    bench.items(3).await;
    let stormy = Instant::now();
    let storm: Vec<u8> = (0..100).flat_map(|_| keepalive(150, true)).collect();
    let mut heard = Vec::new();
    let mut settled = false;
    // A walsender that waits for us sends without end.
    for _ in 0..100 {
        bench.server.send(&storm).await;
        while let Some(message) = bench.server.hear(ms(1)).await {
            heard.push((Instant::now(), message));
        }
        tokio::time::sleep(ms(9)).await;
        while bench.batches.try_recv().is_ok() {}
        if !settled && stormy.elapsed() > ms(500) {
            // What was in flight is delivered, and then nothing keeps the server from going.
            settled = true;
            bench.settle(GENERATION, 105);
        }
    }
    let last = bench.server.farewell().await;
    assert_eq!(
        last.flushed,
        Lsn(105),
        "what is settled, and not the keepalive's"
    );
    assert!(stormy.elapsed() <= ms(2_000), "{:?}", stormy.elapsed());
    let times: Vec<Instant> = heard.iter().map(|(at, _)| *at).collect();
    // As heard through a grain of a few milliseconds.
    assert!(times.windows(4).all(|t| t[3] - t[0] >= ms(50)), "{times:?}");
    assert!((20..=110).contains(&heard.len()), "{}", heard.len());
    assert!(matches!(bench.ended().await, Ended::Left));
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

#[tokio::test(start_paused = true)]
async fn frames_cut_anywhere_make_the_same_items() {
    let bytes = [
        keepalive(50, false),
        transaction(100),
        begin(200, 701),
        insert("a", "shop.pay"),
        insert("b", "shop.pay"),
        keepalive(150, false),
        commit(200, 210),
        keepalive(300, true),
        words(b'N', "00000", "a notice"),
        transaction(400),
    ]
    .concat();
    let expected = [
        "alive 50",
        "begin 100",
        "task row-100 0",
        "commit 105",
        "begin 200",
        "task a 0",
        "task b 1",
        "alive 150",
        "commit 210",
        "alive 300",
        "begin 400",
        "task row-400 0",
        "commit 405",
    ];
    for cut in 0..=bytes.len() {
        let mut bench = start().await;
        bench.server.send(&bytes[..cut]).await;
        tokio::time::sleep(ms(1)).await;
        bench.server.send(&bytes[cut..]).await;
        let items = bench.items(expected.len()).await;
        assert_eq!(items, expected, "cut at {cut}");
    }
    // Byte by byte.
    let mut bench = start().await;
    let (server, batches) = (&mut bench.server, &mut bench.batches);
    let taking = async {
        let mut items = Vec::new();
        while items.len() < expected.len() {
            let batch = batches.recv().await.expect("a batch");
            items.extend(batch.items.iter().map(told));
        }
        items
    };
    let ((), items) = tokio::join!(server.trickle(&bytes), taking);
    assert_eq!(items, expected);
}

#[tokio::test(start_paused = true)]
async fn what_the_protocol_does_not_have_stops_and_nothing_of_it_is_handed_over() {
    let stop = Policy::Stop(Stop::Runtime);
    let mut bad: Vec<(Vec<u8>, Policy)> = Vec::new();
    for tag in 0..=255u8 {
        if !b"wk".contains(&tag) {
            bad.push((message(b'd', &[tag; 40]), stop));
        }
        // The other letters of protocol 1 are skipped, or fail for being short.
        if !b"ORYBCIUDTM".contains(&tag) {
            bad.push((xlog(&[tag, 0, 0, 0]), stop));
        }
    }
    for whole in [
        begin(500, 1),
        commit(500, 505),
        relation(),
        insert("x", "y"),
        keepalive(9, true),
    ] {
        let payload = &whole[5..];
        for end in 0..payload.len() {
            bad.push((message(b'd', &payload[..end]), stop));
        }
        bad.push((message(b'd', &[payload, b"!"].concat()), stop));
    }
    bad.push((commit(500, 505), stop));
    bad.push((insert("x", "y"), stop));
    bad.push(([begin(500, 1), begin(600, 2)].concat(), stop));
    bad.push(([begin(500, 1), commit(501, 505)].concat(), stop));
    bad.push(([begin(500, 1), xlog(b"I\0\0\0\x09N\0\0")].concat(), stop));
    for (bytes, policy) in bad {
        let mut bench = start().await;
        bench.server.send(&transaction(100)).await;
        assert_eq!(
            bench.items(3).await,
            ["begin 100", "task row-100 0", "commit 105"]
        );
        bench
            .server
            .send(&[keepalive(300, false), bytes.clone()].concat())
            .await;
        assert!(bench.batches.recv().await.is_none(), "{bytes:?}");
        let error = bench.error().await;
        assert_eq!(error.policy(), policy, "{bytes:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn how_a_session_breaks_decides_what_is_done() {
    use Stop::{Configuration, PublicationLost, Runtime, SlotLost};
    for (last, policy) in [
        (words(b'E', "57P01", "terminating"), Policy::Reconnect),
        (words(b'E', "53200", "out of memory"), Policy::Reconnect),
        (
            words(b'E', "58P01", "WAL segment removed"),
            Policy::Stop(SlotLost),
        ),
        (
            words(b'E', "42704", "publication does not exist"),
            Policy::Stop(PublicationLost),
        ),
        (
            words(b'N', "55000", "skipped loading publication"),
            Policy::Stop(PublicationLost),
        ),
        (words(b'E', "XX000", "damaged"), Policy::Stop(Runtime)),
        (message(b'c', b""), Policy::Reconnect),
        (message(b'C', b"COPY 0\0"), Policy::Reconnect),
        (message(b'Z', b"I"), Policy::Stop(Runtime)),
        // A table without the column `task`: the operator's.
        (
            xlog(b"R\0\0\x40\x07aftercommit\0outbox\0d\0\x01\0id\0\0\0\0\x19\xFF\xFF\xFF\xFF"),
            Policy::Stop(Configuration),
        ),
        // The header of a frame that is never to be had in full.
        (b"d\x7F\xFF\xFF\xFF".to_vec(), Policy::Stop(Runtime)),
        (b"d\0\0\0\x03".to_vec(), Policy::Stop(Runtime)),
    ] {
        let mut bench = start().await;
        bench
            .server
            .send(&[transaction(100), last.clone()].concat())
            .await;
        let error = bench.error().await;
        assert_eq!(error.policy(), policy, "{last:?}: {error}");
    }
    // Closed, or half closed, between frames and inside of one.
    let bytes = transaction(100);
    for end in [bytes.len(), bytes.len() - 3, 2, 0] {
        for half in [false, true] {
            let mut bench = start().await;
            bench.server.send(&bytes[..end]).await;
            match half {
                true => bench.server.half_close().await,
                false => bench.server = Walsender::new(duplex(1).0),
            }
            let error = bench.error().await;
            assert_eq!(error.policy(), Policy::Reconnect, "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn finish_confirms_says_goodbye_and_ends() {
    let mut bench = start().await;
    bench.server.send(&transaction(100)).await;
    bench.items(3).await;
    bench.settle(GENERATION, 105);
    let ordered = Instant::now();
    bench.orders.send_replace(Order::Finish);
    assert_eq!(bench.server.farewell().await.flushed, Lsn(105));
    assert_eq!(ordered.elapsed(), ms(0), "it waits for nothing");
    // The server takes its time to close; what it still sends is nobody's.
    bench.server.send(&transaction(200)).await;
    tokio::time::sleep(ms(500)).await;
    assert!(!bench.pump.is_finished());
    bench.server.half_close().await;
    let batches = &mut bench.batches;
    assert!(
        batches.recv().await.is_none(),
        "nothing more is handed over"
    );
    assert!(matches!(bench.ended().await, Ended::Finished));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_carried_out_within_two_seconds_whatever_the_server_does() {
    for order in [Order::Leave, Order::Finish] {
        for kind in ["idle", "full", "deaf"] {
            let mut bench = match kind {
                "deaf" => start_with(7, None).await,
                _ => start_with(4096, None).await,
            };
            match kind {
                "full" => drop(bench.server.flood(&many()).await.len()),
                // The server does not read; an update gets stuck halfway.
                "deaf" => tokio::time::sleep(ms(12_000)).await,
                _ => {}
            }
            let ordered = Instant::now();
            bench.orders.send_replace(order);
            let ended = timeout(ms(60_000), &mut bench.pump).await;
            let took = ordered.elapsed();
            assert!(took <= ms(2_000) + GRAIN, "{order:?}, {kind}: {took:?}");
            match (ended, order) {
                (Ok(Ok(Ended::Left)), Order::Leave) | (Ok(Ok(Ended::Finished)), Order::Finish) => {}
                _ => panic!("{order:?}, {kind}"),
            }
        }
    }
}

/// A server in fast shutdown sends its keepalives behind the data: who does not read does not hear them.
#[tokio::test(start_paused = true)]
async fn leaves_on_the_word_of_the_watch_also_while_the_relay_takes_nothing() {
    let mut bench = start_with(4096, None).await;
    bench.server.flood(&many()).await;
    bench.settle(GENERATION, 105);
    let heard = Instant::now();
    bench
        .watch
        .send(Seen::Leaving)
        .await
        .expect("the pump is there");
    assert_eq!(bench.server.farewell().await.flushed, Lsn(105));
    assert!(heard.elapsed() <= ms(2_000));
    drop(bench.server);
    let ended = timeout(ms(10), bench.pump).await.expect("at once");
    assert!(matches!(ended, Ok(Ended::Left)));
}

#[tokio::test(start_paused = true)]
async fn a_drift_ends_the_session() {
    let bench = start().await;
    let error = Error::judged(Place::Preflight, Policy::Stop(Stop::SlotLost), "gone");
    bench
        .watch
        .send(Seen::Drift(error))
        .await
        .expect("the pump is there");
    assert_eq!(bench.error().await.policy(), Policy::Stop(Stop::SlotLost));
}

#[tokio::test(start_paused = true)]
async fn ends_when_the_relay_is_gone() {
    let mut bench = start().await;
    bench.batches.close();
    bench.server.send(&transaction(100)).await;
    bench.server.farewell().await;
    assert!(matches!(bench.ended().await, Ended::Finished));
}
