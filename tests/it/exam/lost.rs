//! Rows 17 and 27: the slot is lost, or a standby takes over.

use std::time::{Duration, Instant};

use super::sheet::{Sheet, sit};
use super::trial::{Life, Trial, edited};
use super::{Outlet, SERVER_BACK, by_profile};
use crate::support::exam::{CANARY_SECRET, Exam, IN_FLIGHT, says};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::redis;
use crate::support::wait::{PATIENCE, eventually, until};

/// The slot, or the publication, is lost.
const LOST: i32 = 3;
/// What was settled may take so long to leave the outbox; the rest is for a busy machine.
const UNSETTLED: Duration = Duration::from_secs(1);
/// The slot's copy, and the table's: the version that has slots on standbys.
const WITH_SLOTS: u32 = 18;

/// The same configuration, with consent.
fn consenting(config: &str) -> String {
    edited(config, "[postgres]\n", "[postgres]\nheal = true\n")
}

/// How many were delivered and may still be in the outbox.
async fn unsettled(trial: &mut Trial) -> usize {
    let all = trial.deliveries().await.len();
    IN_FLIGHT + all - trial.at(Instant::now() - UNSETTLED)
}

/// Whether it says what is in doubt, and what to do.
fn in_words(life: &Life) {
    let log = life.log();
    let told = log.contains("In doubt: ") && log.contains("heal = true");
    life.sheet()
        .count("stopped without the gap in words", usize::from(!told), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_17() {
    sit("17", "slot dropped; slot invalidated", lost_slots).await;
}

async fn lost_slots(sheet: Sheet) {
    dropped(&sheet).await;
    invalidated(&sheet).await;
}

/// Takes the slot away, also from a walsender that reads it.
const DROP: &str = "do $$ begin
    for attempt in 1..1000 loop
      perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'aftercommit' and active;
      begin
        perform pg_drop_replication_slot('aftercommit');
        return;
      exception when object_in_use then perform pg_sleep(0.005);
      end;
    end loop;
    raise 'the slot is still in use';
  end $$";

async fn dropped(sheet: &Sheet) {
    let rounds = by_profile(2, 20);
    let mut trial = Trial::new(sheet, Outlet::Redis);
    let config = trial.config();
    let load = trial.load();
    let mut life = trial.start(&config);
    let mut again = 0;
    for round in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 300).await;
        trial.exam.postgres.psql(DROP);
        again += unsettled(&mut trial).await;
        let lost = Instant::now();
        if round == 0 {
            // The first time without consent.
            life.ends(LOST).await;
            in_words(&life);
            life = trial.start(&consenting(&config));
        }
        trial.recovery(lost, SERVER_BACK).await;
        is_healed(&mut life, round.max(1)).await;
    }
    load.stop().await;
    sheet.at_least("slots dropped", rounds, rounds);
    trial.conclude(life, again).await;
}

/// Waits until it has settled what was in the table, for the so many-th time.
async fn is_healed(life: &mut Life, times: usize) {
    eventually(PATIENCE, "the end of the healing", || {
        let records = life.records();
        let healed = records.iter().filter(|it| says(it, "the slot is healed"));
        let done = healed.count() >= times;
        async move { done.then_some(()) }
    })
    .await;
}

async fn invalidated(sheet: &Sheet) {
    let options = Options {
        settings: &[
            ("max_slot_wal_keep_size", "1MB"),
            ("min_wal_size", "32MB"),
            ("max_wal_size", "32MB"),
        ],
        ..Options::default()
    };
    let exam = Exam::start_on(options, redis::Options::default());
    let mut trial = Trial::on(sheet, Outlet::Redis, exam);
    let config = trial.config();
    let mut life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(300).await;
    life.kill9();
    let again = unsettled(&mut trial).await;
    let postgres = &trial.exam.postgres;
    until(PATIENCE, "the slot to be invalidated", || {
        postgres.psql("select pg_logical_emit_message(false, 'x', 'x')");
        postgres.psql("select pg_switch_wal()");
        postgres.psql("checkpoint");
        let status = "select wal_status from pg_replication_slots";
        (postgres.psql(status) == "lost").then_some(())
    });
    let mut life = trial.start(&config);
    life.ends(LOST).await;
    in_words(&life);
    let back = Instant::now();
    let mut life = trial.start(&consenting(&config));
    trial.recovery(back, SERVER_BACK).await;
    is_healed(&mut life, 1).await;
    load.stop().await;
    trial.conclude(life, again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_27_with_slot() {
    sit("27", "failover to a standby that has the slot", with_slot).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_27_without_slot() {
    sit("27", "failover to a standby without the slot", without_slot).await;
}

/// A daemon's configuration that knows both servers.
fn of_both(trial: &Trial, standby: &Postgres) -> String {
    let (one, two) = (trial.exam.postgres.port(), standby.port());
    let url = format!("postgres://{SUPERUSER}:{CANARY_SECRET}@127.0.0.1:{one},127.0.0.1:{two}/app");
    trial.config_through(&url, &trial.exam.redis.url(0))
}

/// Lets the daemon work under load, and replaces the primary with its standby. What the standby has is the truth then.
async fn fail_over(trial: &mut Trial, mut standby: Postgres) {
    let load = trial.load();
    let before = trial.different().await;
    trial.wait_for(before + 500).await;
    std::mem::swap(&mut trial.exam.postgres, &mut standby);
    standby.kill9();
    trial.exam.postgres.promote();
    load.stop().await;
}

async fn with_slot(sheet: Sheet) {
    if !Postgres::available_or_skip(WITH_SLOTS) {
        return sheet.skip(format!("Postgres {WITH_SLOTS} is not installed"));
    }
    for _ in 0..by_profile(1, 5) {
        let options = Options {
            version: WITH_SLOTS,
            ..Options::default()
        };
        let exam = Exam::start_on(options, redis::Options::default());
        let mut trial = Trial::on(&sheet, Outlet::Redis, exam);
        let standby = trial.exam.postgres.create_standby("standby", false);
        let config = of_both(&trial, &standby);
        let mut life = trial.start(&config);
        life.wait_for_log("the stream", |it| says(it, "streaming"))
            .await;
        trial.exam.postgres.keep_slots_on(&standby);
        fail_over(&mut trial, standby).await;
        // What was settled since the standby's last copy of the slot.
        let copied = trial.exam.confirmed();
        let deliveries = trial.deliveries().await.iter();
        let exposed = IN_FLIGHT + deliveries.filter(|it| it.lsn >= copied).count();
        let load = trial.load();
        trial.recovery(Instant::now(), SERVER_BACK).await;
        load.stop().await;
        trial.conclude(life, exposed).await;
    }
}

async fn without_slot(sheet: Sheet) {
    for _ in 0..by_profile(1, 5) {
        let mut trial = Trial::new(&sheet, Outlet::Redis);
        // Synchronous: a task that was sent is of a row that the standby has.
        let standby = trial.exam.postgres.create_standby("standby", true);
        let config = of_both(&trial, &standby);
        let mut life = trial.start(&config);
        fail_over(&mut trial, standby).await;
        let again = unsettled(&mut trial).await;
        life.ends(LOST).await;
        in_words(&life);
        let slots = trial
            .exam
            .postgres
            .psql("select count(*) from pg_replication_slots");
        sheet.count(
            "slots made without a word",
            slots.parse().expect("a number"),
            0,
        );

        let mut life = trial.start(&consenting(&config));
        let load = trial.load();
        trial.recovery(Instant::now(), SERVER_BACK).await;
        is_healed(&mut life, 1).await;
        load.stop().await;
        trial.conclude(life, again).await;
    }
}
