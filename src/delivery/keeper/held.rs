//! What the hold table has when a generation of sessions begins.

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::line::ended;
use super::round::fence;
use super::{Gone, News, Running};
use crate::hold::{self, Checkpoint};
use crate::intake::Session;
use crate::outbox::Position;
use crate::replication::{Error, Policy};

/// By sink the hashes of the held keys, and the rows that are held already.
type Held = (Vec<Vec<u64>>, HashSet<Position>);

impl Running {
    /// Reads what is held, and tells the relay: before that, nothing of the generation may pass.
    pub(super) async fn tell_held(&mut self, session: Session) -> Result<(), Gone> {
        let line = self.keeper.line.clone();
        let read = tokio::select! {
            read = self.read_held(session) => read,
            () = ended(line, session) => {
                self.client = None;
                return Ok(());
            }
        };
        match read {
            Ok((keys, positions)) => {
                self.told = session.generation;
                self.under_way.looked_after_all();
                self.trouble.reset();
                self.tell(News::Held {
                    session,
                    keys,
                    positions,
                })
                .await
            }
            Err(error) if error.policy() == Policy::StandBy => self.not_ours().await,
            Err(error) => self.failed(error, "the hold table cannot be read").await,
        }
    }

    async fn read_held(&mut self, session: Session) -> Result<Held, Error> {
        let (slot, sinks, hasher) = (
            self.keeper.slot.clone(),
            self.keeper.sinks.clone(),
            self.keeper.hasher.clone(),
        );
        let failed = |error| Error::sql("read what is held", error);
        let client = self.client().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        let db = transaction.client();
        fence(db, &slot, session).await?;
        hold::mend(db, &slot).await?;
        let mut keys = vec![Vec::new(); sinks.len()];
        hold::held_keys(db, &slot, |sink, key| {
            let known = sinks.iter().position(|name| **name == *sink);
            if let Some(of_sink) = known.and_then(|index| keys.get_mut(index)) {
                of_sink.push(hasher.hash(key.as_bytes()));
            }
        })
        .await?;
        let confirmed = db
            .query_typed_one(
                "select coalesce(confirmed_flush_lsn, '0/0')::text from pg_replication_slots where slot_name = $1",
                &[(&slot, Type::TEXT)],
            )
            .await
            .and_then(|row| row.try_get::<_, String>(0))
            .map_err(failed)?;
        // What lies below is not sent again.
        let from = session.start.max(confirmed.parse().unwrap_or_default());
        let checkpoint = Checkpoint {
            system_id: session.identity.system_id,
            timeline: session.identity.timeline,
            lsn: from,
        };
        hold::correct_checkpoint(&transaction, &slot, &checkpoint).await?;
        let mut positions = HashSet::new();
        hold::held_positions(db, &slot, from, |position| {
            positions.insert(position);
        })
        .await?;
        transaction.commit().await.map_err(failed)?;
        Ok((keys, positions))
    }
}
