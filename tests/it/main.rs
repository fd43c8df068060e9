//! Integration tests: real servers, started by `support`.

mod cli;
mod config;
mod config_errors;
mod config_generated;
mod example;
