//! Floor 8: starts the parts, and is the only one that does; hears the signals; ends with an exit code.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::error;

use crate::budget::Memory;
use crate::delivery::{Keeper, KeyHasher, Lane, Marking, Rule, Strain, Wishes};
use crate::gate::watcher::Watch;
use crate::intake::{self, Confirmation, Intake, Line, Order};
use crate::partitions::Partitions;
use crate::relay::{self, End, Gate, LANE_SLACK, Relay, Routes, SinkLanes};
use crate::sink::Sink;
use crate::units::BackoffRange;

/// Batches between intake and relay that are under way. Few: each is a whole read's worth.
const BATCHES: usize = 2;
/// Reports of lanes that are under way.
const REPORTS: usize = 64;
/// What the keeper has told and the relay not heard.
const KEPT: usize = 4;
/// Of the memory budget, this part is for tasks that come from the hold table.
const RELEASED_PART: usize = 4;
/// How long sinks may take to end what they have started.
const LANES_END: Duration = Duration::from_millis(1500);
/// Pauses while a sink is away. Short enough that deliveries go on within five seconds of its return, however long it
/// was away.
const OUTAGE: BackoffRange = BackoffRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(1),
};

/// A sink's part of a [`Plan`].
pub struct PlannedSink {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// How long it may be away before its tasks go to the hold.
    pub spill_after: Duration,
    /// One client for each of its lanes.
    pub lanes: Vec<Box<dyn Sink>>,
}

/// What is to run: the configuration, checked and resolved.
pub struct Plan {
    /// The stream.
    pub intake: Intake,
    /// The gate; `None` where it is switched off.
    pub gate: Option<Watch>,
    /// What keeps the outbox's partitions, where that is ours to do.
    pub partitions: Option<Partitions>,
    /// The routes.
    pub routes: Routes,
    /// By route: what it says of failures.
    pub rules: Arc<[Rule]>,
    /// The column of a task's id, where settled rows are to be deleted.
    pub delete_by: Option<String>,
    /// The sinks.
    pub sinks: Vec<PlannedSink>,
    /// Bytes of WAL that the server may keep for the slot before stalled sinks spill.
    pub slot_lag: u64,
    /// Tasks that are read and not settled, at most.
    pub in_flight: u64,
    /// Bytes of tasks in memory.
    pub memory: usize,
}

/// Runs the plan to its end.
///
/// # Errors
/// When the process cannot have a thread, a runtime, or its signals.
pub fn run(plan: Plan) -> std::io::Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run_parts(plan))
}

async fn run_parts(plan: Plan) -> std::io::Result<End> {
    let (batches, from_intake) = mpsc::channel(BATCHES);
    let (line, stands) = watch::channel(Line::default());
    let (confirmed, confirmable) = watch::channel(Confirmation::default());
    let (orders, ordered) = watch::channel(Order::default());
    let (reports, from_lanes) = mpsc::channel(REPORTS);
    let (signalled, signals) = watch::channel(0);
    let (strain, strained) = watch::channel(Strain::default());
    let (work, to_keep) = mpsc::channel(1);
    let (wishes, wished) = watch::channel(Wishes::default());
    let (tells, kept) = mpsc::channel(KEPT);
    let hasher = KeyHasher::default();
    let release_bytes = plan.memory / RELEASED_PART;
    let memory = Memory::new(plan.memory - release_bytes);

    let mut tasks = JoinSet::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tasks.spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signalled.send_modify(|count| *count = 2.min(*count + 1));
        }
    });

    let in_flight = usize::try_from(plan.in_flight).unwrap_or(usize::MAX / 4);
    let capacity = in_flight.saturating_add(LANE_SLACK);
    let mut lanes = JoinSet::new();
    let mut sinks = Vec::new();
    let mut index = 0;
    for planned in plan.sinks {
        let mut senders = Vec::new();
        let keeps = planned.lanes.iter().map(|sink| sink.keeps()).min();
        for (number, sink) in planned.lanes.into_iter().enumerate() {
            let (tasks_in, inbox) =
                mpsc::channel(capacity.min(tokio::sync::Semaphore::MAX_PERMITS));
            let lane = Lane {
                index,
                name: planned.name.clone(),
                sink,
                marking: Marking::new(
                    &plan.intake.slot,
                    plan.intake.columns.table(),
                    &planned.name,
                    number,
                ),
                rules: plan.rules.clone(),
                hasher: hasher.clone(),
                with_ids: plan.delete_by.is_some(),
                outage_backoff: OUTAGE,
                spill_after: planned.spill_after,
                in_hands: in_flight,
                inbox,
                reports: reports.clone(),
                strain: strained.clone(),
            };
            lanes.spawn(lane.run());
            senders.push(tasks_in);
            index += 1;
        }
        sinks.push(SinkLanes {
            name: planned.name,
            keeps: keeps.unwrap_or_default(),
            lanes: senders,
        });
    }
    drop(reports);

    if let Some(partitions) = plan.partitions {
        tasks.spawn(partitions.run(stands.clone(), confirmable.clone()));
    }
    let channels = intake::Channels {
        batches,
        line,
        confirmed: confirmable,
        orders: ordered,
        memory: memory.clone(),
    };
    let keeper = Keeper {
        target: plan.intake.target.clone(),
        slot: plan.intake.slot.clone(),
        table: plan.intake.columns.table().clone(),
        delete_by: plan.delete_by,
        sinks: sinks.iter().map(|sink| sink.name.clone()).collect(),
        hasher: hasher.clone(),
        release_bytes,
        slot_lag: plan.slot_lag,
        line: stands.clone(),
        work: to_keep,
        wishes: wished,
        news: tells,
        confirmed,
    };
    tasks.spawn(keeper.run());
    let intake = spawn_intake(plan.intake, channels)?;
    let relay = Relay::new(
        plan.routes,
        sinks,
        hasher,
        plan.gate.map(gate),
        plan.in_flight,
        relay::Channels {
            batches: from_intake,
            line: stands,
            orders,
            reports: from_lanes,
            strain,
            work,
            wishes,
            kept,
            memory,
            signals,
        },
    );
    let end = relay.run().await;
    // The lanes have nobody to report to now; they end, and what their sinks have started does.
    let ended = timeout(LANES_END, async {
        while lanes.join_next().await.is_some() {}
    });
    let _ = ended.await;
    if tokio::task::spawn_blocking(move || intake.join())
        .await
        .is_err()
    {
        error!("the intake's thread has ended unexpectedly");
    }
    Ok(end)
}

fn gate(watch: Watch) -> Gate {
    Box::new(move |walsender, wanted, news| Box::pin(watch.clone().run(walsender, wanted, news)))
}

/// The reader has a thread and a runtime of its own: under load it sleeps between reads.
fn spawn_intake(
    intake: Intake,
    channels: intake::Channels,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("intake".to_owned())
        .spawn(move || runtime.block_on(intake.run(channels)))
}
