//! `aftercommit demo`

use super::Failure;
use super::exit::Code;

/// Shows the problem and the cure on a private Postgres.
pub(super) fn execute() -> Result<(), Failure> {
    Err(Failure::new(Code::Runtime, "demo is not wired yet"))
}
