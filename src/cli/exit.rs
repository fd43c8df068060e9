//! The exit codes, as documented.

use std::process::ExitCode;

use crate::preflight::Class;
use crate::replication::Stop;

/// How a process of ours ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// Done, or stopped as asked.
    Clean = 0,
    /// Something failed.
    Runtime = 1,
    /// The command line is not understood.
    Usage = 2,
    /// The slot or the publication is lost: look first, do not restart blindly.
    Lost = 3,
    /// It may well work later (`EX_TEMPFAIL` of sysexits).
    Temporary = 75,
    /// The configuration is wrong (`EX_CONFIG` of sysexits).
    Config = 78,
}

impl From<Stop> for Code {
    fn from(stop: Stop) -> Code {
        match stop {
            Stop::SlotLost | Stop::PublicationLost => Code::Lost,
            Stop::Configuration => Code::Config,
            Stop::Runtime => Code::Runtime,
        }
    }
}

impl From<Class> for Code {
    fn from(class: Class) -> Code {
        match class {
            Class::Temporary => Code::Temporary,
            Class::Configuration => Code::Config,
            Class::SlotLost | Class::PublicationLost => Code::Lost,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}
