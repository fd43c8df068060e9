//! Random histories of the hold table on a real server: what a daemon, operators and people with psql do to it, in any
//! order. A model of the daemon says what is in flight.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use aftercommit::hold::{self, Batch, Buried, Park, Place, Postponed, Queue, State};
use aftercommit::outbox::Field;
use fastrand::Rng;
use tokio_postgres::Client;

use crate::hold_store::{Store, park, queues_of, settle};
use crate::support::postgres::Postgres;

const SLOT: &str = "aftercommit";
const SINK: &str = "a";
const STEPS: u32 = 150;

/// Whatever has a due time stands before what has none, and not after a dead one; times follow the order of the queue; and
/// no queue waits for nothing, but those that are to be looked after.
const BROKEN: &str = "\
    with queue as (
      select hold_id, key, state, due_at, row_number() over q as place, lag(due_at) over q as due_before
      from aftercommit.hold where blocks window q as (partition by slot, sink, key order by hold_id)
    )
    select hold_id::text || ' ' || state, place = 1, key from queue
    where place > 1 and due_at is not null and (due_before is null or due_before > due_at)
       or place = 1 and due_at is null and state <> 'dead'";

/// What was released and has no outcome yet, by row; with its key.
type InFlight = BTreeMap<i64, Option<String>>;

struct History {
    rng: Rng,
    store: Store,
    in_flight: InFlight,
    /// How far the looks have come.
    place: Place,
    /// Queues that are to be looked after.
    touched: HashSet<Queue>,
    next: u64,
}

impl History {
    async fn step(&mut self) -> String {
        let what = match self.rng.u8(..16) {
            0..4 => self.park().await,
            4..7 => self.release().await,
            7 => self.look_after().await,
            8..13 => self.outcome().await,
            13 => self.operator("hold_retry").await,
            14 => self.operator("hold_discard").await,
            _ => {
                let id = self.any_row().await;
                self.sql(&format!(
                    "delete from aftercommit.hold where hold_id = {id}"
                ))
                .await;
                format!("delete {id}")
            }
        };
        let broken = self.store.look.query(BROKEN, &[]).await.expect("an answer");
        for row in broken {
            let (row, waits, key): (&str, bool, String) = (row.get(0), row.get(1), row.get(2));
            let queue = Queue {
                sink: SINK.into(),
                key,
            };
            assert!(waits && self.touched.contains(&queue), "{what}: {row}");
        }
        what
    }

    async fn park(&mut self) -> String {
        let parks: Vec<Park> = (0..self.rng.usize(1..6))
            .map(|_| {
                // Now and then a row comes again.
                let number = match self.rng.u8(..8) {
                    0 => self.rng.u64(..=self.next),
                    _ => {
                        self.next += 1;
                        self.next
                    }
                };
                let key = self.rng.choice([Some("k"), Some("l"), None]).flatten();
                let state = match self.rng.u8(..6) {
                    0 => State::Dead,
                    1 => State::Scheduled,
                    _ => State::Retrying,
                };
                Park {
                    state,
                    blocks: state == State::Retrying || state == State::Dead && self.rng.bool(),
                    attempts: u32::from(self.rng.bool()),
                    due_in: (state != State::Dead).then(|| self.pause()),
                    ..park(number, &number.to_string(), key)
                }
            })
            .collect();
        self.store.park(&parks).await;
        format!("park {}", parks.len())
    }

    /// Short enough to be over soon.
    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(..20))
    }

    /// A row that is released has none before it in its queue that is not, as the queue stood before: a scheduled task that
    /// joins it at this moment comes too late to stop those behind its place.
    async fn release(&mut self) -> String {
        // Now and then a look starts over; then it leaves out what is in flight.
        let after = match self.rng.u8(..3) {
            0 => Place::START,
            _ => self.place,
        };
        let in_flight: Vec<i64> = match after == Place::START {
            true => self.in_flight.keys().copied().collect(),
            false => Vec::new(),
        };
        let batch = Batch {
            tasks: self.rng.i64(1..8),
            bytes: 1 << 20,
        };
        let queued = "select hold_id, key from aftercommit.hold where blocks";
        let queued = self.store.look.query(queued, &[]).await.expect("rows");
        let due = hold::due(
            &self.store.look,
            SLOT,
            &SINK.into(),
            after,
            &in_flight,
            batch,
        )
        .await;
        let due = due.expect("an answer");
        self.place = self.place.max(due.last.unwrap_or(Place::START));
        // A row may become due anew while it is in flight.
        let mut due = due.released;
        due.retain(|task| !self.in_flight.contains_key(&task.hold_id));
        for released in &due {
            let key = released.task.text(Field::Key);
            let unordered = "select not blocks and state <> 'scheduled' from aftercommit.hold where hold_id = $1";
            let row = self
                .store
                .look
                .query_one(unordered, &[&released.hold_id])
                .await;
            let is_unordered: bool = row.expect("a row").get(0);
            for row in queued.iter().filter(|_| !is_unordered) {
                let (before, of): (i64, &str) = (row.get(0), row.get(1));
                assert!(
                    Some(of) != key
                        || before >= released.hold_id
                        || self.in_flight.contains_key(&before),
                    "{} overtakes {before}",
                    released.hold_id
                );
            }
            let fresh = self
                .in_flight
                .insert(released.hold_id, key.map(str::to_owned));
            assert!(fresh.is_none(), "it was in flight");
        }
        format!("release {}", due.len())
    }

    async fn look_after(&mut self) -> String {
        let db = self.store.db.transaction().await.expect("a transaction");
        let freed = settle(&db, self.touched.drain().collect()).await;
        db.commit().await.expect("a commit");
        let held = self.store.keys().await;
        assert!(freed.iter().all(|queue| !held.contains(queue)), "{freed:?}");
        format!("look after the queues; {} are empty", freed.len())
    }

    /// A lane has an outcome for the first task of a key: it is delivered, or those behind it are not tried.
    async fn outcome(&mut self) -> String {
        let Some(chosen) = self.rng.choice(self.in_flight.values()).cloned() else {
            return "nothing in flight".to_owned();
        };
        let of_key = self.in_flight.iter().filter(|(_, key)| **key == chosen);
        let ids: Vec<i64> = of_key.map(|(id, _)| *id).collect();
        let (first, rest) = ids.split_first().expect("the chosen one");
        let db = self.store.db.transaction().await.expect("a transaction");
        self.touched.extend(queues_of(&db, &[*first]).await);
        let (mut has_outcome, mut goes_on) = (Vec::new(), false);
        let what = match self.rng.u8(..5) {
            // The sink is away.
            4 => "give back",
            0 | 1 => {
                hold::remove(&db, SLOT, &[*first]).await.expect("removed");
                has_outcome.push(*first);
                goes_on = true;
                "deliver"
            }
            2 => {
                let mut rows = vec![*first];
                if self.rng.bool() {
                    rows.extend(rest);
                }
                let postponed = |hold_id: &i64| Postponed {
                    hold_id: *hold_id,
                    due_in: Duration::from_millis(self.rng.u64(..20)),
                    attempts: 1,
                    error: String::new(),
                };
                let rows: Vec<Postponed> = rows.iter().map(postponed).collect();
                hold::postpone(&db, SLOT, &rows).await.expect("postponed");
                has_outcome.extend(rows.iter().map(|row| row.hold_id));
                "postpone"
            }
            _ => {
                let blocks = self.rng.bool();
                let rows = [Buried {
                    hold_id: *first,
                    attempts: 9,
                    error: String::new(),
                    blocks,
                }];
                hold::bury(&db, SLOT, &rows).await.expect("buried");
                has_outcome.push(*first);
                goes_on = !blocks;
                "bury"
            }
        };
        db.commit().await.expect("a commit");
        for id in ids.iter().filter(|id| !goes_on || has_outcome.contains(id)) {
            self.in_flight.remove(id);
            if !has_outcome.contains(id) {
                // It is given back as it is.
                self.place = Place::START;
            }
        }
        format!("{what} {first}")
    }

    async fn operator(&mut self, function: &str) -> String {
        let ids = [self.any_row().await, self.any_row().await];
        let sql = format!("select aftercommit.{function}(array{ids:?}::bigint[])");
        self.sql(&sql).await;
        sql
    }

    async fn any_row(&mut self) -> i64 {
        let ids: Vec<i64> = rows(&self.store.look).await;
        self.rng.choice(ids).unwrap_or_default()
    }

    async fn sql(&self, sql: &str) {
        self.store.look.batch_execute(sql).await.expect(sql);
    }

    /// With every sink up, and every dead task sent again, everything comes out.
    async fn end(&mut self) {
        for _ in 0..1_000 {
            let ids: Vec<i64> = self.in_flight.keys().copied().collect();
            let db = self.store.db.transaction().await.expect("a transaction");
            self.touched.extend(queues_of(&db, &ids).await);
            hold::remove(&db, SLOT, &ids).await.expect("removed");
            db.commit().await.expect("a commit");
            self.look_after().await;
            self.in_flight.clear();
            self.sql(
                "select aftercommit.hold_retry(hold_id) from aftercommit.hold where state = 'dead'",
            )
            .await;
            self.release().await;
            if rows(&self.store.look).await.is_empty() {
                assert_eq!(self.store.keys().await, []);
                return;
            }
        }
        panic!("{:?} never came out", rows(&self.store.look).await);
    }
}

async fn rows(db: &Client) -> Vec<i64> {
    let rows = db.query("select hold_id from aftercommit.hold", &[]).await;
    let rows = rows.expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn no_history_breaks_a_queue() {
    try_histories(15, 8).await;
}

#[tokio::test]
async fn nor_on_any_other_version() {
    for version in [14, 16, 17, 18] {
        if Postgres::available_or_skip(version) {
            try_histories(version, 2).await;
        }
    }
}

async fn try_histories(version: u32, count: usize) {
    let seeds = match std::env::var("AFTERCOMMIT_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..count).map(|_| fastrand::u64(..)).collect(),
    };
    let mut store = Some(Store::on(version).await);
    for seed in seeds {
        println!("Postgres {version}, AFTERCOMMIT_TEST_SEED={seed}");
        let mut history = History {
            rng: Rng::with_seed(seed),
            store: store.take().expect("a server"),
            in_flight: InFlight::new(),
            place: Place::START,
            touched: HashSet::new(),
            next: 0,
        };
        for _ in 0..STEPS {
            println!("{}", history.step().await);
        }
        history.end().await;
        store = Some(history.store);
    }
}
