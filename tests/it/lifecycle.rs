//! The daemon's life: how it stops, how another takes over, how it ends by itself.

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::exam::Exam;

const BULK: &str = "insert into aftercommit.outbox (task, key, kwargs)
    select 'exam.bulk', n % 1000, json_build_object('n', n, 'padding', repeat('x', 100)) from generate_series(1, 200000) n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_the_middle_of_a_large_transaction_completes_it() {
    let exam = Exam::start();
    let daemon = Daemon::start(&exam.config());
    let t = Instant::now();
    exam.postgres.psql(BULK);
    eprintln!("BULK {:?}", t.elapsed());
    exam.wait_for_pushed(1).await;
    eprintln!("first {:?}", t.elapsed());
    exam.wait_for_pushed(200000).await;
    eprintln!("all {:?} {}", t.elapsed(), daemon.peak_rss());
    eprintln!("{}", exam.different().await);
    eprintln!("all {:?}", t.elapsed());
}
