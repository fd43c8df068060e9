//! Integration tests: real servers, started by `support`.

mod init;
mod preflight;
mod private_postgres;
