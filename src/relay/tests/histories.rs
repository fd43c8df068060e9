//! Random histories through the relay: a server that sends again what was not confirmed, a gate that clears late,
//! lanes that answer in any order, connections that break.

use proptest::prelude::*;

use super::*;

/// One step of a history. Numbers choose among what is possible at that point.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many frames, as one batch.
    Send(usize),
    Keepalive,
    /// The next transaction becomes visible.
    Visible,
    Deliver(usize),
    /// The connection is lost and made anew; the flag: the relay hears of the loss only with the next session.
    Reconnect(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..9).prop_map(Step::Send),
        2 => Just(Step::Keepalive),
        4 => Just(Step::Visible),
        6 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<bool>().prop_map(Step::Reconnect),
    ]
}

/// The server's side: transaction `i` commits at `100 * (i + 1)` and ends 5 above.
struct History {
    rows: Vec<u64>,
    /// The next transaction, and the next frame in it: 0 is Begin, then the rows, then Commit.
    next: (usize, u64),
    session: u64,
    /// Transactions that are visible.
    visible: usize,
    gate: Option<Watching>,
    dispatched: Vec<u64>,
    delivered: Vec<u64>,
    /// By lane, the last position that came into it.
    last: Vec<Position>,
    bench: Bench,
}

fn lsn(transaction: usize) -> u64 {
    100 * (transaction as u64 + 1)
}

impl History {
    async fn step(&mut self, step: Step, gated: bool) {
        match step {
            Step::Send(frames) => self.send(frames),
            Step::Keepalive => {
                let sent = lsn(self.next.0) - 50;
                self.hand_over(vec![alive(sent)]);
            }
            Step::Visible => self.visible = self.rows.len().min(self.visible + 1),
            Step::Deliver(choice) => {
                let ids = self.bench.in_flight().await;
                if !ids.is_empty() {
                    let id = ids[choice % ids.len()].clone();
                    self.bench.deliver(&id).await;
                    self.delivered[transaction_of(&id)] += 1;
                }
            }
            Step::Reconnect(at_once) => {
                self.bench.line().send_replace(Line::Down);
                if !at_once {
                    self.bench.settle_down().await;
                }
                self.connect(gated).await;
            }
        }
        if let Some((_, wanted, news)) = &self.gate
            && wanted.borrow().is_some()
        {
            let _ = news.try_send(sees(lsn(self.visible) as u32));
        }
        self.check().await;
    }

    async fn connect(&mut self, gated: bool) {
        self.session += 1;
        let confirmed = self.bench.confirmed();
        let first = (0..self.rows.len()).find(|&it| lsn(it) + 5 > confirmed);
        self.next = (first.unwrap_or(self.rows.len()), 0);
        self.bench.up(session(self.session));
        if gated {
            self.gate = Some(self.bench.gate().await);
        }
    }

    fn hand_over(&mut self, items: Vec<Item>) -> bool {
        let session = self.session;
        let batch = batch(&self.bench.memory, session, items);
        self.bench.batches.try_send(batch).is_ok()
    }

    fn send(&mut self, frames: usize) {
        let mut next = self.next;
        let mut items = Vec::new();
        for _ in 0..frames {
            let (transaction, frame) = next;
            let Some(&rows) = self.rows.get(transaction) else {
                break;
            };
            let at = lsn(transaction);
            items.push(match frame {
                0 => begin(at),
                _ if frame <= rows => task(at, frame - 1, ["a.x", "b.x"][(at / 100 % 2) as usize]),
                _ => commit(at),
            });
            next = if frame > rows {
                (transaction + 1, 0)
            } else {
                (transaction, frame + 1)
            };
        }
        if self.hand_over(items) {
            self.next = next;
        }
    }

    async fn check(&mut self) {
        self.bench.settle_down().await;
        for (lane, position) in std::mem::take(&mut self.bench.arrived) {
            let transaction = position.commit_lsn.0 as usize / 100 - 1;
            assert!(
                position > self.last[lane],
                "{position:?} came again, or out of order"
            );
            self.last[lane] = position;
            self.dispatched[transaction] += 1;
            assert!(
                self.gate.is_none() || transaction < self.visible,
                "{position:?} is not visible"
            );
        }
        let confirmed = self.bench.confirmed();
        for (transaction, rows) in self.rows.iter().enumerate() {
            if lsn(transaction) + 5 <= confirmed {
                assert_eq!(self.delivered[transaction], *rows, "confirmed {confirmed}");
            }
        }
        assert!(!self.bench.relay.is_finished());
    }
}

fn transaction_of(id: &str) -> usize {
    let lsn = id
        .split_once('/')
        .and_then(|(lsn, _)| lsn.parse::<usize>().ok());
    lsn.expect("an id of the script") / 100 - 1
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn each_row_goes_once_in_order_and_when_it_may(
        rows in proptest::collection::vec(0u64..5, 1..8),
        steps in proptest::collection::vec(step(), 0..150),
        gated: bool,
        budget in 1u64..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let zeros = vec![0; rows.len()];
            let mut history = History {
                rows,
                next: (0, 0),
                session: 0,
                visible: 0,
                gate: None,
                dispatched: zeros.clone(),
                delivered: zeros,
                last: vec![Position::default(); 4],
                bench: start(gated, budget),
            };
            history.connect(gated).await;
            let finish = (0..300).map(|n| match n % 3 {
                0 => Step::Send(3),
                1 => Step::Visible,
                _ => Step::Deliver(n),
            });
            for step in steps.into_iter().chain(finish).chain([Step::Keepalive]) {
                history.step(step, gated).await;
            }
            assert_eq!(history.dispatched, history.rows);
            assert_eq!(history.delivered, history.rows);
            let end = lsn(history.rows.len()) - 50;
            assert_eq!(history.bench.confirmed(), end);
            history.bench.signals.send_replace(1);
            history.bench.ends_clean().await;
        });
    }
}
