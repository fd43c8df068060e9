//! The relay between a scripted intake, gate and lanes.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::gate::clearance::Snapshot;
use crate::outbox::{Field, Position};
use crate::pg::Timestamp;
use crate::route;
use crate::sink::Cause;

mod histories;

const LONG: Duration = Duration::from_secs(60);
/// Far less than the deadline of a drain.
const SOON: Duration = Duration::from_millis(100);

/// A watch over the gate that the relay has started: which walsender, what is wanted, where the news goes.
type Watching = (u32, watch::Receiver<Option<Wanted>>, mpsc::Sender<News>);

/// A relay under test, with everything around it scripted. Two sinks of two lanes: `a.*` goes to the first, `b.*` to
/// the second; nothing else has a route.
struct Bench {
    batches: mpsc::Sender<Batch>,
    line: Option<watch::Sender<Line>>,
    confirmed: watch::Receiver<Confirmation>,
    orders: watch::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    signals: watch::Sender<u8>,
    lanes: Vec<mpsc::Receiver<Vec<Passage>>>,
    gates: UnboundedReceiver<Watching>,
    /// In the lanes, in order of arrival, by lane.
    in_flight: Vec<VecDeque<Passage>>,
    /// What has come into the lanes since it was last looked at, each with its lane.
    arrived: Vec<(usize, Position)>,
    relay: JoinHandle<End>,
}

fn session(number: u64) -> Session {
    Session {
        number,
        generation: 1,
        walsender_pid: 100 + number as u32,
        until: None,
    }
}

fn route(pattern: &str) -> route::Config {
    route::Config {
        task: pattern.parse().expect("a pattern"),
        sink: String::new(),
        retry: route::Retry::default(),
    }
}

fn start(gated: bool, tasks: u64) -> Bench {
    let (batches, from_intake) = mpsc::channel(2);
    let (line, stands) = watch::channel(Line::Down);
    let (confirmed_in, confirmed) = watch::channel(Confirmation::default());
    let (orders_in, orders) = watch::channel(Order::Stream);
    let (reports, from_lanes) = mpsc::channel(64);
    let (signals, signalled) = watch::channel(0);
    let (gate_in, gates) = mpsc::unbounded_channel();
    let (lanes_in, lanes): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::channel(1_000)).unzip();
    let sinks = lanes_in
        .chunks(2)
        .map(|lanes| SinkLanes {
            lanes: lanes.to_vec(),
        })
        .collect();
    let gate: Gate = Box::new(move |walsender, wanted, news| {
        let _ = gate_in.send((walsender, wanted, news));
        Box::pin(std::future::pending())
    });
    let relay = Relay::new(
        Router::new(&[route("a.*"), route("b.*")]),
        vec![0, 1],
        sinks,
        gated.then_some(gate),
        Budget {
            tasks,
            bytes: 10_000,
        },
        Channels {
            batches: from_intake,
            line: stands,
            confirmed: confirmed_in,
            orders: orders_in,
            reports: from_lanes,
            signals: signalled,
        },
    );
    Bench {
        batches,
        line: Some(line),
        confirmed,
        orders,
        reports,
        signals,
        lanes,
        gates,
        in_flight: (0..4).map(|_| VecDeque::new()).collect(),
        arrived: Vec::new(),
        relay: tokio::spawn(relay.run()),
    }
}

/// Numbered by its commit's LSN, and committed under this transaction id.
fn begin(lsn: u64) -> Item {
    Item::Outbox(Event::Begin {
        xid: lsn as u32,
        commit_lsn: Lsn(lsn),
        committed_at: Timestamp(0),
    })
}

fn task(lsn: u64, ordinal: u64, name: &str) -> Item {
    let id = format!("{lsn}/{ordinal}");
    let fields = [
        (Field::Id, id.as_str()),
        (Field::Task, name),
        (Field::Key, "k"),
    ];
    let position = Position {
        commit_lsn: Lsn(lsn),
        ordinal,
    };
    Item::Outbox(Event::Task(Task::from_fields(
        fields,
        position,
        Timestamp(0),
    )))
}

fn commit(lsn: u64) -> Item {
    Item::Outbox(Event::Commit {
        end_lsn: Lsn(lsn + 5),
    })
}

fn alive(lsn: u64) -> Item {
    Item::Keepalive(Lsn(lsn))
}

/// A transaction of one task `a.x`, with one key for all.
fn transaction(lsn: u64) -> Vec<Item> {
    vec![begin(lsn), task(lsn, 0, "a.x"), commit(lsn)]
}

fn joined<const N: usize>(parts: [Vec<Item>; N]) -> Vec<Item> {
    parts.into_iter().flatten().collect()
}

impl Bench {
    fn up(&self, session: Session) {
        self.line().send_replace(Line::Up(session));
    }

    fn line(&self) -> &watch::Sender<Line> {
        self.line.as_ref().expect("the intake is there")
    }

    /// The intake hands over; false if the relay does not take it now.
    async fn offer(&self, session: u64, items: Vec<Item>) -> bool {
        let batch = Batch { session, items };
        timeout(SOON, self.batches.send(batch)).await.is_ok()
    }

    async fn send(&self, session: u64, items: Vec<Item>) {
        assert!(self.offer(session, items).await, "the relay takes nothing");
    }

    /// Whether the relay takes batches: two that mean nothing, and then there is room for more.
    async fn takes(&self) -> bool {
        tokio::time::sleep(SOON).await;
        self.batches.capacity() == 2
    }

    /// Lets everything happen that can, and collects what has come into the lanes.
    async fn settle_down(&mut self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        for (lane, inbox) in self.lanes.iter_mut().enumerate() {
            while let Ok(passages) = inbox.try_recv() {
                let positions = passages.iter().map(|passage| passage.task.position);
                self.arrived
                    .extend(positions.map(|position| (lane, position)));
                self.in_flight[lane].extend(passages);
            }
        }
    }

    /// The ids of what is in the lanes, lane after lane.
    async fn in_flight(&mut self) -> Vec<String> {
        self.settle_down().await;
        let all = self.in_flight.iter().flatten();
        all.map(|passage| passage.task.id().to_owned()).collect()
    }

    fn take(&mut self, id: &str) -> Passage {
        for lane in &mut self.in_flight {
            if let Some(index) = lane.iter().position(|passage| passage.task.id() == id) {
                return lane.remove(index).expect("it is there");
            }
        }
        panic!("{id} is not in flight");
    }

    async fn deliver(&mut self, id: &str) {
        let passage = self.take(id);
        let report = Report::Delivered {
            counts: vec![(passage.ticket, 1)],
            tasks: 1,
            bytes: passage.task.size(),
        };
        self.reports.send(report).await.expect("the relay is there");
        self.settle_down().await;
    }

    async fn reject(&mut self, id: &str) {
        let task = self.take(id).task;
        let cause = Cause::new("no good");
        let report = Report::Rejected { task, cause };
        self.reports.send(report).await.expect("the relay is there");
        self.settle_down().await;
    }

    fn confirmed(&self) -> u64 {
        self.confirmed.borrow().lsn.lsn().0
    }

    /// The gate's watch of the session that began last.
    async fn gate(&mut self) -> Watching {
        timeout(LONG, self.gates.recv())
            .await
            .expect("in time")
            .expect("a gate")
    }

    /// As the intake does when it has been told to finish; says how the relay ended, and how long that took.
    async fn end(mut self) -> (End, Duration) {
        let since = Instant::now();
        let finish = self.orders.wait_for(|order| *order == Order::Finish);
        drop(
            timeout(LONG, finish)
                .await
                .expect("in time")
                .expect("the relay is there"),
        );
        drop(self.batches);
        let end = timeout(LONG, self.relay).await.expect("in time");
        (end.expect("no panic"), since.elapsed())
    }

    async fn ends_clean(self) {
        let (end, took) = self.end().await;
        assert!(matches!(end, End::Clean), "{end:?}");
        assert!(took < SOON, "{took:?}");
    }

    async fn halts(self, with: Stop, words: &str) {
        let (end, took) = self.end().await;
        let End::Halted(halt) = end else {
            panic!("clean");
        };
        assert!(halt.stop == with && halt.words.contains(words), "{halt:?}");
        assert!(took < SOON, "{took:?}");
    }
}

/// Sees every transaction below `xmax`.
fn sees(xmax: u32) -> News {
    News::Cleared(Clearance {
        snapshot: Some(Snapshot::parse(&format!("{xmax}:{xmax}:")).expect("a snapshot")),
        replayed: None,
    })
}

fn wanted(wants: &watch::Receiver<Option<Wanted>>) -> Option<u64> {
    wants.borrow().map(|wanted| wanted.commit_lsn.0)
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_is_confirmed_and_nothing_else() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![alive(50)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 50, "idle: the keepalive's");
    bench
        .send(
            1,
            joined([
                transaction(100),
                vec![alive(150)],
                transaction(200),
                vec![alive(300)],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
    assert_eq!(bench.confirmed(), 50, "in flight");
    bench.deliver("200/0").await;
    assert_eq!(bench.confirmed(), 50, "an earlier one is in flight");
    bench.deliver("100/0").await;
    assert_eq!(
        bench.confirmed(),
        300,
        "all is settled: the last keepalive's"
    );
    // Of a transaction that has not come in full nothing is confirmed, and no keepalive inside of it.
    bench
        .send(1, vec![begin(400), task(400, 0, "a.x"), alive(390)])
        .await;
    bench.settle_down().await;
    bench.deliver("400/0").await;
    assert_eq!(bench.confirmed(), 300);
    bench.send(1, vec![commit(400)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 405);
    bench.signals.send_replace(1);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_waits_at_the_gate_and_all_behind_it_too() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (walsender, wants, news) = bench.gate().await;
    assert_eq!(walsender, 101);
    bench.send(1, transaction(100)).await;
    bench
        .send(
            1,
            joined([
                transaction(200),
                vec![alive(250)],
                transaction(300),
                vec![alive(400), alive(500)],
            ]),
        )
        .await;
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(wanted(&wants), Some(100));
    assert_eq!(
        bench.confirmed(),
        0,
        "a keepalive behind a waiting transaction"
    );

    // A clearance that is too old lets nothing pass, and the question stays.
    news.send(sees(100)).await.expect("heard");
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(wanted(&wants), Some(100));

    news.send(sees(201)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
    assert_eq!(wanted(&wants), Some(300));
    bench.deliver("100/0").await;
    bench.deliver("200/0").await;
    assert_eq!(bench.confirmed(), 250);
    news.send(sees(400)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["300/0"]);
    assert_eq!(bench.confirmed(), 250);
    bench.deliver("300/0").await;
    assert_eq!(bench.confirmed(), 500);
    // What is known to be visible does not wait; and again what is not.
    bench.send(1, transaction(350)).await;
    bench.send(1, transaction(450)).await;
    assert_eq!(bench.in_flight().await, ["350/0"]);
    assert_eq!(wanted(&wants), Some(450));
}

#[tokio::test(start_paused = true)]
async fn what_the_gate_knew_does_not_count_for_the_next_session() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench.send(1, transaction(100)).await;
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.send(1, transaction(200)).await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);

    // The session is lost while news is on its way, and another server answers in its place.
    let late = news.send(sees(2_000));
    bench.line().send_replace(Line::Down);
    let _ = late.await;
    bench.settle_down().await;
    bench.up(Session {
        generation: 2,
        ..session(2)
    });
    let (_, wants, fresh) = bench.gate().await;
    assert!(
        news.send(sees(2_000)).await.is_err(),
        "nobody listens to the old watch"
    );
    bench.send(2, transaction(300)).await;
    assert_eq!(bench.in_flight().await.len(), 2, "nothing more passes");
    assert_eq!(wanted(&wants), Some(300));
    fresh.send(sees(301)).await.expect("heard");
    assert_eq!(bench.in_flight().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_is_left() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    news.send(News::ServerLeaving).await.expect("heard");
    bench.settle_down().await;
    assert_eq!(*bench.orders.borrow(), Order::Leave);
}

/// What holds the whole budget stands at the gate of a session that is gone. Without the word of it the gate would
/// never be cleared, and the budget never free.
#[tokio::test(start_paused = true)]
async fn a_lost_session_is_heard_of_while_the_budget_is_used_up() {
    let mut bench = start(true, 2);
    bench.up(session(1));
    bench.gate().await;
    for lsn in [100, 200, 300, 400] {
        bench.send(1, transaction(lsn)).await;
    }
    assert!(!bench.takes().await, "the budget is used up");
    bench.line().send_replace(Line::Down);
    bench.up(session(2));
    let (walsender, wants, news) = bench.gate().await;
    assert_eq!(walsender, 102);
    assert!(bench.takes().await);
    // What was left over from the first session is dropped, and comes again.
    assert!(bench.in_flight().await.is_empty());
    for lsn in [100, 200] {
        bench.send(2, transaction(lsn)).await;
    }
    bench.settle_down().await;
    assert_eq!(wanted(&wants), Some(100));
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
}

#[tokio::test(start_paused = true)]
async fn a_halt_is_heard_of_while_the_budget_is_used_up() {
    let mut bench = start(true, 1);
    bench.up(session(1));
    bench.gate().await;
    for lsn in [100, 200, 300] {
        bench.send(1, transaction(lsn)).await;
    }
    assert!(!bench.takes().await);
    let halt = Halt {
        stop: Stop::SlotLost,
        words: "the slot is gone".to_owned(),
    };
    bench.line().send_replace(Line::Halted(halt));
    bench.halts(Stop::SlotLost, "the slot is gone").await;
}

/// The reason must not be buried under what follows from it: the intake ends, with a transaction cut in the middle.
#[tokio::test(start_paused = true)]
async fn a_halt_in_the_middle_of_a_transaction_drains_and_tells_its_own_reason() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(
            1,
            vec![begin(100), task(100, 0, "a.x"), task(100, 1, "a.x")],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "100/1"]);
    let halt = Halt {
        stop: Stop::Configuration,
        words: "row 3 is no task".to_owned(),
    };
    let line = bench.line.take().expect("the intake");
    line.send_replace(Line::Down);
    line.send_replace(Line::Halted(halt));
    drop(line);
    drop(std::mem::replace(&mut bench.batches, mpsc::channel(1).0));
    bench.settle_down().await;
    assert!(!bench.relay.is_finished(), "something is in flight");
    bench.deliver("100/0").await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/1").await;
    bench.halts(Stop::Configuration, "row 3").await;
}

#[tokio::test(start_paused = true)]
async fn an_intake_or_lanes_that_die_end_the_daemon() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.line = None;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;

    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.reports = mpsc::channel(1).0;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;

    // One lane of several.
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.lanes.clear();
    bench.send(1, transaction(100)).await;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_come_again_after_a_lost_connection_are_not_dispatched_twice() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench
        .send(
            1,
            vec![begin(200), task(200, 0, "a.x"), task(200, 1, "b.x")],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0", "200/1"]);
    bench.line().send_replace(Line::Down);
    bench.deliver("200/0").await;
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 0, "to nobody");
    // What was still on its way from the lost session does not pass, nor complete anything.
    bench.send(1, vec![task(200, 2, "a.x"), commit(200)]).await;
    assert_eq!(bench.in_flight().await, ["200/1"]);

    bench.up(session(2));
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 105);
    bench.send(2, vec![alive(90)]).await;
    bench
        .send(
            2,
            joined([
                transaction(100),
                vec![
                    alive(107),
                    begin(200),
                    task(200, 0, "a.x"),
                    task(200, 1, "b.x"),
                    task(200, 2, "a.x"),
                ],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["200/2", "200/1"]);
    bench.deliver("200/1").await;
    bench.deliver("200/2").await;
    assert_eq!(bench.confirmed(), 105, "its Commit has not come");
    bench.send(2, vec![commit(200)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 205);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_was_cut_and_does_not_come_again_halts() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![begin(100), task(100, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(session(2));
    bench.send(2, transaction(300)).await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 0);
    bench
        .halts(Stop::SlotLost, "without sending the one at 0/64 again")
        .await;
}

#[tokio::test(start_paused = true)]
async fn draining_completes_the_open_transaction_and_takes_no_other() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.send(1, vec![begin(200), task(200, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    bench
        .send(
            1,
            vec![
                task(200, 1, "a.x"),
                commit(200),
                alive(250),
                begin(300),
                task(300, 0, "a.x"),
                commit(300),
                alive(400),
            ],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0", "200/1"]);
    for id in ["200/1", "200/0", "100/0"] {
        assert!(!bench.relay.is_finished());
        assert_eq!(bench.confirmed(), 0);
        bench.deliver(id).await;
    }
    assert_eq!(
        bench.confirmed(),
        250,
        "and not the keepalive behind what was not taken"
    );
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn draining_with_nothing_in_flight_ends_at_once_whatever_waits_at_the_gate() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench
        .send(1, joined([transaction(100), vec![alive(150)]]))
        .await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    let _ = news.try_send(sees(1_000));
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(bench.confirmed(), 0);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn cleared_while_draining_is_not_taken_and_what_is_behind_not_confirmed() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench.send(1, transaction(100)).await;
    news.send(sees(101)).await.expect("heard");
    bench
        .send(1, joined([transaction(200), vec![alive(300)]]))
        .await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.signals.send_replace(1);
    bench.settle_down().await;
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0"]);
    // Nor after a new session.
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(session(2));
    bench.settle_down().await;
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_ends_and_so_does_a_second_signal() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    let (end, took) = bench.end().await;
    assert!(matches!(end, End::Clean));
    assert!(
        took >= DRAIN_WITHIN && took < DRAIN_WITHIN + SOON,
        "{took:?}"
    );

    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    bench.signals.send_replace(2);
    bench.ends_clean().await;
}

/// Half of a transaction has gone, the rest of it can't come.
#[tokio::test(start_paused = true)]
async fn draining_without_a_session_does_not_wait_for_one() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![begin(100), task(100, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/0").await;
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_task_halts_after_the_others_are_delivered_and_stays_unconfirmed() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(
            1,
            joined([
                transaction(100),
                transaction(200),
                vec![begin(300), task(300, 0, "a.x")],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0", "300/0"]);
    bench.reject("200/0").await;
    // Nothing new goes, not even of the open transaction: it cannot be confirmed, and would only be sent twice.
    bench
        .send(
            1,
            joined([
                vec![task(300, 1, "a.x"), commit(300), alive(350)],
                transaction(400),
                vec![alive(500)],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "300/0"]);
    bench.deliver("300/0").await;
    assert!(!bench.relay.is_finished(), "it drains the others");
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
    bench
        .halts(Stop::Runtime, "task 200/0 (\"a.x\"), committed at 0/C8")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_route_halts_and_is_not_confirmed() {
    let mut bench = start(false, 4);
    bench.up(session(1));
    let mut items = joined([transaction(100), vec![begin(200)]]);
    // More than the budget: their room must not be waited for.
    items.extend((0..50).map(|ordinal| task(200, ordinal, "c.x")));
    bench.send(1, items).await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
    bench.halts(Stop::Runtime, "no [[route]] matches").await;
}

#[tokio::test(start_paused = true)]
async fn takes_nothing_while_the_budget_is_used_up_but_hears_reports() {
    for by_bytes in [false, true] {
        let mut bench = start(false, if by_bytes { 1_000 } else { 3 });
        bench.up(session(1));
        let name = match by_bytes {
            true => format!("a.{}", "x".repeat(4_000)),
            false => "a.x".to_owned(),
        };
        for lsn in [100, 200, 300] {
            bench
                .send(1, vec![begin(lsn), task(lsn, 0, &name), commit(lsn)])
                .await;
        }
        assert_eq!(bench.in_flight().await.len(), 3);
        for lsn in [400, 500] {
            bench
                .send(1, vec![begin(lsn), task(lsn, 0, &name), commit(lsn)])
                .await;
        }
        assert!(!bench.takes().await);
        assert!(!bench.offer(1, vec![alive(600)]).await);
        assert_eq!(bench.in_flight().await.len(), 3);
        bench.deliver("100/0").await;
        assert_eq!(bench.confirmed(), 105);
        assert_eq!(bench.in_flight().await, ["200/0", "300/0", "400/0"]);
        assert!(!bench.takes().await);
        bench.signals.send_replace(1);
        for id in ["200/0", "300/0", "400/0"] {
            bench.deliver(id).await;
        }
        assert_eq!(bench.confirmed(), 405);
        bench.ends_clean().await;
    }
}

/// Empty transactions and keepalives take no task's place, but memory.
#[tokio::test(start_paused = true)]
async fn the_gate_holds_a_bounded_number_of_items() {
    let mut bench = start(true, 10);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    let mut lsn = 100;
    while bench
        .offer(
            1,
            vec![begin(lsn), commit(lsn), alive(lsn + 6), alive(lsn + 7)],
        )
        .await
    {
        lsn += 10;
        assert!(lsn < 1_000, "it takes everything");
    }
    news.send(sees(10_000)).await.expect("heard");
    assert!(bench.takes().await);
    assert_eq!(bench.confirmed(), lsn - 3);
}

#[tokio::test(start_paused = true)]
async fn another_generation_starts_over() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(
            1,
            joined([
                transaction(1_000),
                transaction(2_000),
                vec![begin(3_000), task(3_000, 0, "a.x")],
            ]),
        )
        .await;
    bench.settle_down().await;
    bench.deliver("1000/0").await;
    assert_eq!(bench.confirmed(), 1_005);
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(Session {
        generation: 2,
        ..session(2)
    });
    bench.settle_down().await;
    let confirmed = *bench.confirmed.borrow();
    assert_eq!((confirmed.generation, confirmed.lsn.lsn()), (2, Lsn::ZERO));
    // The same LSNs mean other transactions.
    bench
        .send(
            2,
            joined([vec![alive(50)], transaction(100), transaction(2_000)]),
        )
        .await;
    assert_eq!(
        bench.in_flight().await,
        ["2000/0", "3000/0", "100/0", "2000/0"]
    );
    bench.deliver("2000/0").await;
    bench.deliver("3000/0").await;
    assert_eq!(bench.confirmed(), 50, "settled of another generation");
    bench.deliver("2000/0").await;
    assert_eq!(bench.confirmed(), 50);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 2_005);
    bench.signals.send_replace(1);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn until_ends_when_everything_up_to_there_is_settled() {
    let until = |lsn| Session {
        until: Some(Lsn(lsn)),
        ..session(1)
    };
    // By a commit.
    let mut bench = start(false, 100);
    bench.up(until(205));
    bench
        .send(
            1,
            joined([transaction(100), transaction(200), transaction(300)]),
        )
        .await;
    bench.settle_down().await;
    bench.deliver("200/0").await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 205);
    assert!(
        !bench.relay.is_finished(),
        "300 is on its way, and would come twice"
    );
    bench.deliver("300/0").await;
    assert_eq!(bench.confirmed(), 305);
    bench.ends_clean().await;
    // By a keepalive.
    let mut bench = start(false, 100);
    bench.up(until(205));
    bench.send(1, vec![alive(204)]).await;
    bench.settle_down().await;
    assert_eq!(*bench.orders.borrow(), Order::Stream);
    bench.send(1, vec![alive(205)]).await;
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn one_key_goes_through_one_lane_and_none_through_all() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    let unkeyed = |ordinal| {
        let position = Position {
            commit_lsn: Lsn(100),
            ordinal,
        };
        let id = format!("100/{ordinal}");
        let fields = [(Field::Id, id.as_str()), (Field::Task, "b.x")];
        Item::Outbox(Event::Task(Task::from_fields(
            fields,
            position,
            Timestamp(0),
        )))
    };
    let keyed = (0..10).map(|ordinal| task(100, ordinal, "a.x"));
    bench
        .send(
            1,
            [begin(100)]
                .into_iter()
                .chain(keyed)
                .chain((10..20).map(unkeyed))
                .collect(),
        )
        .await;
    bench.settle_down().await;
    let lengths: Vec<usize> = bench.in_flight.iter().map(VecDeque::len).collect();
    assert!(
        matches!(lengths[..], [10, 0, 5, 5] | [0, 10, 5, 5]),
        "{lengths:?}"
    );
    for lane in &bench.in_flight {
        assert!(lane.iter().map(|p| p.task.position).is_sorted());
    }
}
