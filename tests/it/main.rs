//! Integration tests: real servers, started by `support`.

mod contract;
mod init;
mod preflight;
mod private_postgres;
