//! `aftercommit run`: from the configuration to the parts, and from how they end to the exit code.

use std::sync::Arc;

use crate::config::Config;
use crate::gate::watcher::Watch;
use crate::intake::{Intake, Until};
use crate::outbox::Columns;
use crate::relay::Budget;
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
    let sinks = config.sinks.open()?;
    let index = |name: &str| sinks.iter().position(|(known, _)| &**known == name);
    let sink_of_route = config.routes.iter().map(|route| {
        index(&route.sink).ok_or_else(|| {
            format!(
                "[[route]] names the sink {:?}, which is not configured",
                route.sink
            )
        })
    });
    Ok(Plan {
        intake: Intake {
            target: primary,
            slot: config.postgres.slot.clone(),
            publication: config.postgres.publication.clone(),
            columns,
            until,
            replicas: gate.replicas.clone(),
            heal: config.postgres.heal,
        },
        gate: (gate.visibility || !gate.replicas.is_empty()).then_some(gate),
        router: Router::new(&config.routes),
        sink_of_route: sink_of_route.collect::<Result<_, _>>()?,
        backoffs: config
            .routes
            .iter()
            .map(|route| route.retry.backoff)
            .collect(),
        sinks: sinks
            .into_iter()
            .map(|(name, sink)| PlannedSink {
                name,
                lanes: vec![sink],
            })
            .collect(),
        budget: Budget {
            tasks: u64::from(config.limits.in_flight.get()),
            bytes: usize::try_from(config.limits.memory).unwrap_or(usize::MAX),
        },
    })
}
