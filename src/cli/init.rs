//! `aftercommit init`

use super::Failure;
use super::exit::Code;
use crate::config::Config;

/// Creates what the daemon needs in the database, or prints the SQL.
pub(super) fn execute(config: &Config, print: bool) -> Result<(), Failure> {
    let slot = &config.postgres.slot;
    Err(Failure::new(
        Code::Runtime,
        format!("init is not wired yet (slot {slot}, print {print})"),
    ))
}
