//! Floor 3: where a committed task waits until it is visible.

pub mod clearance;
pub mod config;
pub mod watcher;
