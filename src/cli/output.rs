//! Writing to standard output and standard error without a panic when they are gone.

use std::io::{self, ErrorKind, IsTerminal, Write};

use super::Failure;
use super::exit::Code;

/// Writes to standard output. A reader that has left, as `head` does, wants no more: that is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let message = format!("standard output cannot be written: {error}");
            Err(Failure::new(Code::Runtime, message))
        }
        _ => Ok(()),
    }
}

/// Writes to standard error, if it can be written.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether standard error shows colours.
pub(super) fn colours() -> bool {
    let off = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !off && !dumb
}
