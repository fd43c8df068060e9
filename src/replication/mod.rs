//! Floor 1: the walsender connection.

pub mod config;

pub use config::Config;
