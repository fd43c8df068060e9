//! Floor 3: the objects on the server that aftercommit lives on, and the SQL that makes them.
//!
//! `sql/` holds the contract with the application; [`plan()`] adds the publication and the slot, whose names are the
//! operator's. The same steps are printed by `init --print` and applied by `init`: each is safe to repeat.

mod apply;
mod contract;
mod name;
pub mod partitions;
mod plan;
mod wait;

pub use apply::{ApplyError, Event, apply, in_words};
pub use name::check_slot_name;
pub use plan::{Kind, Step, Wanted, plan, script};
pub use wait::{Blocker, watched};

pub(crate) use name::{ident, literal};
pub(crate) use plan::{create_publication, create_slot};
