//! Floor 2, pure: from decoded frames to tasks.

pub mod config;
pub mod task;

pub use config::Config;
pub use task::{Field, Position, Spans, Task};
