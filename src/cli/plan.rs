//! `aftercommit run`: from the configuration to the parts, and from how they end to the exit code.

use std::sync::Arc;

use crate::config::Config;
use crate::delivery::Rule;
use crate::gate::watcher::Watch;
use crate::intake::{Intake, Until};
use crate::outbox::{Columns, Field, Retention};
use crate::partitions::Partitions;
use crate::relay::Routes;
use crate::route::Router;
use crate::supervisor::{Plan, PlannedSink};

/// Composes what is to run.
///
/// # Errors
/// What is wrong with a URL or a name, in words.
pub(super) fn plan(config: &Config, until: Option<Until>) -> Result<Plan, String> {
    let primary = Arc::new(config.postgres.target()?);
    let columns = Columns::new(&config.outbox).map_err(|error| error.to_string())?;
    let replicas = config.gate.targets(config.postgres.password.as_ref());
    let gate = Watch {
        primary: primary.clone(),
        visibility: config.gate.visibility,
        replicas: replicas
            .map(|target| target.map(Arc::new))
            .collect::<Result<_, _>>()?,
        slot: config.postgres.slot.clone(),
        timeout: config.gate.timeout,
    };
    let sinks = config.open_sinks()?;
    let index = |name: &str| sinks.iter().position(|(known, _)| &**known == name);
    let ways = config.routes.iter().map(|route| {
        let sink = index(&route.sink).ok_or_else(|| {
            format!(
                "[[route]] names the sink {:?}, which is not configured",
                route.sink
            )
        })?;
        Ok::<_, String>((route.task.to_string().into(), sink))
    });
    let ways = ways.collect::<Result<_, _>>()?;
    // The shortest of the routes that lead to a sink: none of its tasks waits in memory for longer.
    let spill_after = |sink: &str| {
        let routes = config.routes.iter().filter(|route| route.sink == sink);
        routes.map(|route| route.retry.hold_after).min()
    };
    let deletes = config.outbox.retention == Retention::Delete;
    let delete_by = columns.column(Field::Id).filter(|_| deletes);
    let delete_by = delete_by.map(str::to_owned);
    let partitions = (config.outbox.retention == Retention::Partition).then(|| Partitions {
        target: primary.clone(),
        slot: config.postgres.slot.clone(),
        table: columns.table().clone(),
        width: config.outbox.partition,
        keep: config.outbox.partition_keep,
    });
    Ok(Plan {
        intake: Intake {
            target: primary,
            slot: config.postgres.slot.clone(),
            publication: config.postgres.publication.clone(),
            retention: config.outbox.retention,
            columns,
            until,
            replicas: gate.replicas.clone(),
            heal: config.postgres.heal,
        },
        partitions,
        gate: (gate.visibility || !gate.replicas.is_empty()).then_some(gate),
        routes: Routes {
            router: Router::new(&config.routes),
            ways,
        },
        rules: config.routes.iter().map(Rule::from).collect(),
        delete_by,
        sinks: sinks
            .into_iter()
            .map(|(name, sink)| PlannedSink {
                spill_after: spill_after(&name).unwrap_or_default(),
                name,
                lanes: vec![sink],
            })
            .collect(),
        slot_lag: config.limits.slot_lag,
        in_flight: u64::from(config.limits.in_flight.get()),
        memory: usize::try_from(config.limits.memory).unwrap_or(usize::MAX),
    })
}
