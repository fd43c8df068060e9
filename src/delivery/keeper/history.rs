//! Rows of the hold table are known by their numbers, and numbers mean something in one history of the server only.
//!
//! A standby that takes over may not have the last rows of the hold table, nor the last numbers of its sequence: it gives
//! those out again, to other tasks. What we have taken from the hold before, and have in our hands, is told from those by
//! its id: what became of a task is written down only where the row is still the task's own.

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::Running;
use super::Work;
use crate::intake::Session;
use crate::replication::Error;

impl Running {
    /// Leaves rows alone that were read in another history and are another task's now, or nobody's.
    pub(super) async fn vouch(&mut self, session: Session, work: &mut Work) -> Result<(), Error> {
        let foreign = self.under_way.foreign(&work.rows, session.identity);
        let (numbers, ids): (Vec<i64>, Vec<String>) = foreign.unzip();
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
