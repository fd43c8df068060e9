//! Rows of the hold table are known by their numbers, and numbers mean something in one history of the server only.
//!
//! A standby that takes over may not have the last rows of the hold table, nor the last numbers of its sequence: it gives
//! those out again, to other tasks. What we have taken from the hold before, and have in our hands, is told from those by
//! its id: what became of a task is written down only where the row is still the task's own.

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::Running;
use super::Work;
use crate::intake::{Identity, Session};
use crate::outbox::Task;
use crate::replication::Error;

/// A released task that is under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// Its size.
    pub(super) bytes: usize,
    id: String,
    /// The history in which its row was read.
    identity: Identity,
}

impl UnderWay {
    pub(super) fn new(task: &Task, identity: Identity) -> UnderWay {
        UnderWay {
            bytes: task.size(),
            id: task.id().to_owned(),
            identity,
        }
    }
}

impl Running {
    /// Leaves rows alone that were read in another history and are another task's now, or nobody's.
    pub(super) async fn vouch(&mut self, session: Session, work: &mut Work) -> Result<(), Error> {
        let foreign = |hold_id: &i64| {
            let known = self.under_way.get(hold_id)?;
            (known.identity != session.identity).then(|| (*hold_id, known.id.clone()))
        };
        let (numbers, ids): (Vec<i64>, Vec<String>) = work
            .rows
            .hold_ids()
            .filter_map(|hold_id| foreign(&hold_id))
            .unzip();
        if numbers.is_empty() {
            return Ok(());
        }
        let rows = self
            .client()
            .await?
            .query_typed(
                "select h.hold_id from unnest($1::int8[], $2::text[]) g (hold_id, id) \
                 join aftercommit.hold h on h.hold_id = g.hold_id and h.id = g.id",
                &[(&numbers, Type::INT8_ARRAY), (&ids, Type::TEXT_ARRAY)],
            )
            .await;
        let same = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
        let same: HashSet<i64> =
            same.map_err(|error| Error::sql("look whether held tasks are the same", error))?;
        let others = numbers
            .into_iter()
            .filter(|hold_id| !same.contains(hold_id));
        work.rows.give_back(&others.collect());
        Ok(())
    }
}
