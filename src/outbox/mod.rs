//! Floor 2, pure: from decoded frames to tasks.

pub mod task;

pub use task::{Field, Position, Spans, Task};
