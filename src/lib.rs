//! aftercommit: dispatches tasks from a Postgres outbox table after COMMIT.

pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod delivery;
pub mod envelope;
pub mod gate;
pub mod hold;
pub mod intake;
pub mod logging;
pub mod outbox;
pub mod pg;
pub mod preflight;
pub mod relay;
pub mod replication;
pub mod route;
pub mod sink;
pub mod supervisor;
pub mod units;
pub mod watermark;
