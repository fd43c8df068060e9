//! The hold table and the checkpoint on a real server.

mod many;
mod queues;
mod rows;
mod settled;

use std::time::Duration;

use aftercommit::hold::{self, Batch, Buried, Park, Place, Postponed, Queue, Released, State};
use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Timestamp};
use tokio_postgres::{Client, Row, Transaction};

use crate::init::{apply, wanted};
use crate::support::postgres::{Options, Postgres};

pub(crate) const SLOT: &str = "aftercommit";
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
const ALL: Batch = Batch {
    tasks: 1_000_000,
    bytes: 1 << 30,
};

/// A server with everything that `init` makes, and two connections of the daemon's role.
pub(crate) struct Store {
    pub(crate) postgres: Postgres,
    pub(crate) db: Client,
    pub(crate) look: Client,
}

impl Store {
    pub(crate) async fn start() -> Store {
        Store::on(15).await
    }

    pub(crate) async fn on(version: u32) -> Store {
        let options = Options {
            version,
            ..Options::default()
        };
        Store::with(options).await
    }

    async fn with(options: Options<'_>) -> Store {
        let postgres = Postgres::start(options);
        postgres.psql("create role daemon login replication");
        let (admin, observer) = (postgres.client().await, postgres.client().await);
        let (out, class) = apply(&admin, &observer, &wanted(SLOT, Some("daemon"))).await;
        assert_eq!(class, None, "{out}");
        Store {
            db: postgres.client_as("daemon").await,
            look: postgres.client_as("daemon").await,
            postgres,
        }
    }

    pub(crate) async fn park(&mut self, parks: &[Park]) {
        let db = self.db.transaction().await.expect("a transaction");
        hold::park(&db, SLOT, parks).await.expect("parked");
        db.commit().await.expect("a commit");
    }

    pub(crate) async fn remove(&mut self, ids: &[i64]) -> Vec<(String, String)> {
        let db = self.db.transaction().await.expect("a transaction");
        let queues = queues_of(&db, ids).await;
        hold::remove(&db, SLOT, ids).await.expect("removed");
        let freed = settle(&db, queues).await;
        db.commit().await.expect("a commit");
        freed
    }

    pub(crate) async fn postpone(&mut self, rows: &[Postponed]) {
        let db = self.db.transaction().await.expect("a transaction");
        hold::postpone(&db, SLOT, rows).await.expect("postponed");
        db.commit().await.expect("a commit");
    }

    pub(crate) async fn bury(&mut self, rows: &[(i64, bool)]) -> Vec<(String, String)> {
        let rows: Vec<_> = rows
            .iter()
            .map(|(id, blocks)| Buried {
                hold_id: *id,
                attempts: 9,
                error: "gone".to_owned(),
                blocks: *blocks,
            })
            .collect();
        let db = self.db.transaction().await.expect("a transaction");
        let ids: Vec<i64> = rows.iter().map(|row| row.hold_id).collect();
        let queues = queues_of(&db, &ids).await;
        hold::bury(&db, SLOT, &rows).await.expect("buried");
        let freed = settle(&db, queues).await;
        db.commit().await.expect("a commit");
        freed
    }

    pub(crate) async fn due(&self) -> Vec<Released> {
        self.due_but(&[], &[]).await
    }

    pub(crate) async fn due_but(&self, away: &[&str], in_flight: &[i64]) -> Vec<Released> {
        self.look(SLOT, away, in_flight, ALL).await
    }

    /// What is due, sink by sink, so much of each.
    pub(crate) async fn look(
        &self,
        slot: &str,
        away: &[&str],
        but: &[i64],
        batch: Batch,
    ) -> Vec<Released> {
        let mut released = Vec::new();
        let outlook = hold::outlook(&self.look, slot).await.expect("an answer");
        for sink in outlook.iter().filter(|of| of.is_due).map(|of| &of.sink) {
            if !away.contains(&&**sink) {
                let due = hold::due(&self.look, slot, sink, Place::START, but, batch).await;
                released.extend(due.expect("an answer").released);
            }
        }
        released
    }

    /// Time until the next task will be due.
    pub(crate) async fn next_due(&self, slot: &str) -> Option<Duration> {
        let outlook = hold::outlook(&self.look, slot).await.expect("an answer");
        outlook.iter().filter_map(|of| of.next).min()
    }

    /// Names of the tasks that are due, in order.
    pub(crate) async fn due_names(&self) -> Vec<String> {
        names(&self.due().await)
    }

    pub(crate) async fn keys(&self) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        let each = |sink: &str, key: &str| keys.push((sink.to_owned(), key.to_owned()));
        hold::held_keys(&self.look, SLOT, each).await.expect("keys");
        keys.sort();
        keys
    }

    fn ids_of(&self, condition: &str) -> Vec<i64> {
        let sql = format!("select hold_id from aftercommit.hold where {condition}");
        let ids = self.postgres.psql(&sql);
        ids.lines()
            .map(|id| id.parse().expect("a number"))
            .collect()
    }

    fn ids(&self, names: &[&str]) -> Vec<i64> {
        let id = |name: &&str| {
            let sql = format!("select hold_id from aftercommit.hold where task = '{name}'");
            self.postgres.psql(&sql).parse().expect("one row")
        };
        names.iter().map(id).collect()
    }

    pub(crate) fn id(&self, name: &str) -> i64 {
        self.ids(&[name])[0]
    }

    /// Everything that is due, until nothing is, and each removed at once.
    pub(crate) async fn drain(&mut self) -> Vec<String> {
        let mut drained = Vec::new();
        loop {
            let due = self.due().await;
            if due.is_empty() {
                return drained;
            }
            drained.extend(names(&due));
            let ids: Vec<i64> = due.iter().map(|r| r.hold_id).collect();
            self.remove(&ids).await;
        }
    }
}

fn names(released: &[Released]) -> Vec<String> {
    released.iter().map(|r| r.task.name().to_owned()).collect()
}

fn pair(sink: &str, key: &str) -> (String, String) {
    (sink.to_owned(), key.to_owned())
}

/// The queues that these rows are in, or would be if they blocked.
pub(crate) async fn queues_of(db: &Transaction<'_>, ids: &[i64]) -> Vec<Queue> {
    let queues = "select distinct sink, key from aftercommit.hold where hold_id = any ($1) and key is not null";
    let rows = db.query(queues, &[&ids]).await.expect("queues");
    let queue = |row: &Row| Queue {
        sink: row.get::<_, &str>(0).into(),
        key: row.get(1),
    };
    rows.iter().map(queue).collect()
}

/// Looks after queues; those that are empty.
pub(crate) async fn settle(db: &Transaction<'_>, queues: Vec<Queue>) -> Vec<(String, String)> {
    let settled = hold::settle_queues(db.client(), SLOT, queues).await;
    let empty = settled.expect("an answer").empty;
    let mut freed: Vec<_> = empty
        .into_iter()
        .map(|queue| (queue.sink.to_string(), queue.key))
        .collect();
    freed.sort();
    freed
}

/// A retrying task whose pause is over, for sink `a`; its place in the order of commits is `number`.
pub(crate) fn park(number: u64, name: &str, key: Option<&str>) -> Park {
    let id = format!("id-{number}");
    let fields = [(Field::Id, id.as_str()), (Field::Task, name)];
    let fields = fields.into_iter().chain(key.map(|key| (Field::Key, key)));
    let position = Position {
        commit_lsn: Lsn(1_000 + number),
        ordinal: 0,
    };
    Park {
        task: Task::from_fields(fields, position, Timestamp(7)),
        sink: "a".into(),
        route: "*".into(),
        state: State::Retrying,
        due_in: Some(Duration::ZERO),
        due_at: None,
        blocks: true,
        attempts: 0,
        error: None,
    }
}

pub(crate) fn postponed(hold_id: i64, due_in: Duration) -> Postponed {
    Postponed {
        hold_id,
        due_in,
        attempts: 3,
        error: "refused".to_owned(),
    }
}
