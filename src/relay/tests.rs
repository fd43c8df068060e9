//! The relay between a scripted intake, gate and lanes.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::delivery::{Ids, Message, Origin, Passage, Strain, Written};
use crate::gate::clearance::Snapshot;
use crate::gate::watcher::Wanted;
use crate::hold::{Park, State};
use crate::intake::{Confirmation, Identity};
use crate::outbox::{Field, Position};
use crate::pg::Timestamp;
use crate::route;

mod ending;
mod gate;
mod held;
mod histories;
mod stream;

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
    memory: Arc<Memory>,
    reports: mpsc::Sender<Report>,
    signals: watch::Sender<u8>,
    strained: watch::Receiver<Strain>,
    lanes: Vec<mpsc::Receiver<Message>>,
    /// What the keeper has put into the hold.
    held: Arc<Mutex<Vec<Park>>>,
    /// As the keeper: what is due, and so on.
    kept: mpsc::Sender<Kept>,
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
        identity: Identity::default(),
        walsender_pid: 100 + number as u32,
        start: Lsn::ZERO,
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
    let (relay, bench) = build(gated, tasks);
    bench(tokio::spawn(relay.run()))
}

/// A relay that does not run yet, and its bench for when it does.
fn build(gated: bool, tasks: u64) -> (Relay, impl FnOnce(JoinHandle<End>) -> Bench) {
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
        .zip(["first", "second"])
        .map(|(lanes, name)| SinkLanes {
            name: name.into(),
            keeps: Duration::from_secs(2),
            lanes: lanes.to_vec(),
        })
        .collect();
    let (work, to_keep) = mpsc::channel(1);
    let (wishes, _) = watch::channel(Wishes::default());
    let (strain, strained) = watch::channel(Strain::default());
    let memory = Memory::new(10_000);
    let (tells, kept) = mpsc::channel(4);
    let held = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(keep(
        stands.clone(),
        to_keep,
        tells.clone(),
        confirmed_in,
        held.clone(),
    ));
    let gate: Gate = Box::new(move |walsender, wanted, news| {
        let _ = gate_in.send((walsender, wanted, news));
        Box::pin(std::future::pending())
    });
    let relay = Relay::new(
        Routes {
            router: Router::new(&[route("a.*"), route("b.*")]),
            ways: vec![("a.*".into(), 0), ("b.*".into(), 1)],
        },
        sinks,
        KeyHasher::default(),
        gated.then_some(gate),
        tasks,
        Channels {
            batches: from_intake,
            line: stands,
            orders: orders_in,
            reports: from_lanes,
            strain,
            work,
            wishes,
            kept,
            memory: memory.clone(),
            signals: signalled,
        },
    );
    let bench = move |running| Bench {
        batches,
        line: Some(line),
        confirmed,
        orders,
        memory,
        reports,
        signals,
        strained,
        lanes,
        held,
        kept: tells,
        gates,
        in_flight: (0..4).map(|_| VecDeque::new()).collect(),
        arrived: Vec::new(),
        relay: running,
    };
    (relay, bench)
}

/// A keeper that writes everything down at once.
async fn keep(
    mut line: watch::Receiver<Line>,
    mut work: mpsc::Receiver<Work>,
    tells: mpsc::Sender<Kept>,
    confirmed: watch::Sender<Confirmation>,
    held: Arc<Mutex<Vec<Park>>>,
) {
    let mut told = 0;
    loop {
        let news = tokio::select! {
            Ok(()) = line.changed() => match &*line.borrow_and_update() {
                Line::Up(session) if session.generation != told => {
                    told = session.generation;
                    Kept::Held { session: *session, keys: vec![Vec::new(); 2], positions: HashSet::new() }
                }
                _ => continue,
            },
            Some(work) = work.recv() => {
                let sizes = work.parks.iter().map(|park| park.task.size());
                let written = Written {
                    parked: work.tickets.iter().copied().zip(sizes).collect(),
                    lanes: work.lanes,
                    confirmation: work.confirmation,
                    saved: work.confirmation,
                };
                held.lock().expect("a lock").extend(work.parks);
                confirmed.send_replace(work.confirmation);
                Kept::Written(written)
            }
            else => return,
        };
        if tells.send(news).await.is_err() {
            return;
        }
    }
}

/// As the intake makes it.
fn batch(memory: &Arc<Memory>, session: u64, items: Vec<Item>) -> Batch {
    let bytes = items.iter().map(Item::size).sum();
    Batch {
        session,
        items,
        charge: memory.charge(bytes),
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
        let batch = batch(&self.memory, session, items);
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
            while let Ok(message) = inbox.try_recv() {
                let Message::Tasks(passages) = message else {
                    continue;
                };
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
        let mut report = Report {
            delivered: 1,
            ..Report::default()
        };
        match passage.origin {
            Origin::Stream(ticket) => {
                report.counts.push((ticket, 1));
                report.bytes = passage.task.size();
            }
            Origin::Hold { hold_id, .. } => report.rows.removed.push(hold_id),
        }
        self.reports.send(report).await.expect("the relay is there");
        self.settle_down().await;
    }

    /// The lane gives a task up.
    async fn reject(&mut self, id: &str) {
        let passage = self.take(id);
        let Origin::Stream(ticket) = passage.origin else {
            panic!("{id} is not from the stream");
        };
        let park = Park {
            task: passage.task,
            sink: "first".into(),
            route: "a.*".into(),
            state: State::Dead,
            due_in: None,
            due_at: None,
            blocks: false,
            attempts: 1,
            error: Some("no good".to_owned()),
        };
        let report = Report {
            parks: vec![(ticket, park)],
            ids: Ids::default(),
            ..Report::default()
        };
        self.reports.send(report).await.expect("the relay is there");
        self.settle_down().await;
    }

    /// Id and state of what is held.
    fn held(&self) -> Vec<(String, State)> {
        let held = self.held.lock().expect("a lock");
        let rows = held
            .iter()
            .map(|park| (park.task.id().to_owned(), park.state));
        rows.collect()
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
