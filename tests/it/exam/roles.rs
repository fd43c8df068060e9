//! Row 26: two daemons on one slot.

use std::time::{Duration, Instant};

use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{Outlet, by_profile};
use crate::support::exam::{IN_FLIGHT, says};

/// From the death of the active daemon to the first new delivery of the other.
const TAKES_OVER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_26() {
    sit(
        "26",
        "two daemons on one slot, the active one killed",
        takeovers,
    )
    .await;
}

async fn takeovers(sheet: Sheet) {
    let rounds = by_profile(1, 12);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = trial.config();
    let load = trial.load();
    let mut active = trial.start(&config);
    let mut exposed = 0;
    for _ in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        let mut other = trial.start(&config);
        other
            .wait_for_log("that it stands by", |record| says(record, "standing by"))
            .await;
        let said = other.records().len();
        // Long enough for some attempts.
        trial.look_on(Duration::from_secs(4)).await;
        sheet.count("said while it waits", other.records().len() - said, 0);
        sheet.count("ended while it waits", usize::from(!other.running()), 0);

        active.kill9();
        let killed = Instant::now();
        trial.recovery(killed, TAKES_OVER).await;
        let second = killed - Duration::from_secs(1);
        exposed += IN_FLIGHT + trial.at(killed) - trial.at(second);
        active = other;
    }
    load.stop().await;
    sheet.at_least("takeovers", rounds, rounds);
    trial
        .conclude(active, Outlet::Redis.duplicates(exposed))
        .await;
}
