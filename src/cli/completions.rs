//! `aftercommit completions`

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Args;
use super::{Failure, output};

/// Prints the script that completes our commands in `shell`.
pub(super) fn execute(shell: Shell) -> Result<(), Failure> {
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    // Into memory first: the generator panics when its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
