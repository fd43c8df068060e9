//! Floor 10: the command line.

pub mod init;

/// Parses the arguments, runs the command, and returns the process's exit code.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
