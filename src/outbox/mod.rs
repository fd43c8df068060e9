//! Floor 2, pure: from decoded frames to tasks.

pub mod assembler;
pub mod columns;
pub mod config;
pub mod table;
pub mod task;

pub use assembler::{AssembleError, Assembler, Event};
pub use columns::{Columns, ColumnsError, Layout, LayoutError};
pub use config::{Config, Retention};
pub use table::{ParseTableNameError, TableName};
pub use task::{Field, FieldSet, Position, Spans, Task};
