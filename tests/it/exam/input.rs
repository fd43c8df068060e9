//! Row 21: what the application writes at once.

use std::time::Duration;

use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{Outlet, by_profile};
use crate::support::exam::IN_FLIGHT;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21() {
    sit(
        "21",
        "one transaction of a million rows, with kills in it",
        one_transaction,
    )
    .await;
}

async fn one_transaction(sheet: Sheet) {
    let (rows, kills) = by_profile((60_000, 2), (1_000_000, 4));
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    // As many as most will have in flight.
    let in_flight = 4096;
    let config = trial
        .config()
        .replace(&format!("in_flight = {IN_FLIGHT}"), "");
    let mut writer = trial.exam.writer(1).await;
    writer.client.batch_execute("begin").await.expect("begin");
    writer.insert(rows).await.expect("rows");
    writer.client.batch_execute("commit").await.expect("commit");
    // Nothing of it is confirmed before its end: it all comes again, where the outlet does not know what it has.
    let mut exposed = 0;
    for kill in 1..=kills {
        let mut life = trial.start(&config);
        let part = rows * kill / (kills + 1);
        trial
            .exam
            .wait_for_pushed(exposed + part.min(rows - in_flight))
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        life.kill9();
        exposed = trial.exam.pushed().await;
    }
    let life = trial.start(&config);
    sheet.at_least("kills", kills, kills);
    trial
        .conclude(life, Outlet::Redis.duplicates(exposed))
        .await;
}
