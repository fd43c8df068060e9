//! kill -9 of the daemon.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::AsyncCommands;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, IN_FLIGHT, LIST, assert_discreet};

const ROUNDS: usize = 30;
/// A status update every 100 ms; the rest is for a busy machine.
const UNCONFIRMED: Duration = Duration::from_secs(1);

/// How many messages there were, and when.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<Vec<(Instant, usize)>>>);

impl Arrivals {
    /// Looks at the list all the time.
    async fn watch(exam: &Exam) -> Arrivals {
        let mut connection = exam.redis.connection().await;
        let arrivals = Arrivals::default();
        let seen = arrivals.clone();
        tokio::spawn(async move {
            while let Ok(length) = connection.llen(LIST).await {
                seen.0
                    .lock()
                    .expect("no panic")
                    .push((Instant::now(), length));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        arrivals
    }

    /// How many there were at most at `time`.
    fn at(&self, time: Instant) -> usize {
        let seen = self.0.lock().expect("no panic");
        let before = seen.iter().rev().find(|(at, _)| *at <= time);
        before.map_or(0, |(_, length)| *length)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_random_moments_loses_nothing() {
    let mut exam = Exam::start();
    let mut random = exam.random(0);
    let arrivals = Arrivals::watch(&exam).await;
    let load = exam.load(3, Duration::from_millis(120));
    // Delivered and not confirmed: what may come twice, at most.
    let mut exposed: HashSet<String> = HashSet::new();
    let mut most_exposed = 0;
    for round in 0..ROUNDS {
        let before = exam.pushed().await;
        let mut daemon = Daemon::start(&exam.config());
        let started = Instant::now();
        // Two in three are killed at work, the others wherever they are in their start.
        if round % 3 != 0 {
            exam.wait_for_pushed(before + 1).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..600))).await;
        daemon.kill9();
        let killed = Instant::now();
        assert_discreet(&daemon);

        let confirmed = exam.confirmed_at_rest().await;
        let deliveries = exam.deliveries().await;
        let known: HashSet<&str> = deliveries[..before].iter().map(|d| d.id.as_str()).collect();
        let twice = deliveries[before..]
            .iter()
            .filter(|d| known.contains(d.id.as_str()));
        for delivery in twice {
            assert!(exposed.contains(&delivery.id), "{delivery:?} was confirmed");
        }
        let now: HashMap<&str, u64> = deliveries.iter().map(|d| (d.id.as_str(), d.lsn)).collect();
        // A life shorter than that may have confirmed nothing at all.
        let earlier = match killed - started < UNCONFIRMED {
            true => exposed.len(),
            false => 0,
        };
        exposed = now
            .iter()
            .filter(|(_, lsn)| **lsn >= confirmed)
            .map(|(id, _)| (*id).to_owned())
            .collect();
        let recent = deliveries.len() - arrivals.at(killed - UNCONFIRMED);
        assert!(
            exposed.len() <= IN_FLIGHT + recent + earlier,
            "round {round}: {} delivered and not confirmed, {recent} of them lately, {earlier} before",
            exposed.len()
        );
        most_exposed = most_exposed.max(exposed.len());
    }
    let written = load.stop().await;
    let mut daemon = Daemon::start(&exam.config());
    let receipt = exam.receipt().await;
    eprintln!("{written:?}; at most {most_exposed} delivered and not confirmed");
    receipt.assert_sound("kill -9", ROUNDS * most_exposed);
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
}
