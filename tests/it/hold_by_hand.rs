//! The hold table after somebody has laid hands on it: rows that make no sense, and a server that refuses to write.

use aftercommit::hold::{self, Park, State};
use aftercommit::outbox::{Field, Task};
use aftercommit::pg::Lsn;

use crate::hold_store::{MINUTE, Store, park, postponed};
use crate::support::daemon::Daemon;
use crate::support::tasks::to_stdout;
use crate::support::wait::{PATIENCE, eventually};

const SLOT: &str = "aftercommit";

/// Everything that the daemon does with the table works, whatever stands in it.
async fn all_works(store: &mut Store) {
    hold::mend(&store.look, SLOT).await.expect("mended");
    store.next_due(SLOT).await;
    store.keys().await;
    hold::held_positions(&store.look, SLOT, Lsn(0), |_| ())
        .await
        .expect("positions");
    for held in store.due().await {
        let _ = format!("{held:?}");
    }
}

#[tokio::test]
async fn a_row_that_makes_no_sense_harms_nobody() {
    let mut store = Store::start().await;
    let all = &["one", "three", "two"][..];
    for (nonsense, expected) in [
        // It leaves the queue for one of its own, and goes on there.
        ("key = 'other'", all),
        ("key = E'\\n' || repeat('x', 100000)", all),
        ("key = null, blocks = false, due_at = now()", all),
        // It waits for nothing, alone.
        ("key = '', due_at = null", all),
        ("sink = 'nobody'", all),
        ("sink = ''", all),
        (
            "route = '', id = '', args = '', kwargs = '{', payload = 'no json', options = '[[', headers = '\"'",
            all,
        ),
        (
            "run_at = 'yesterday', expires_at = '-infinity', priority = 'very', body = '\\xzz'",
            all,
        ),
        (
            "attempts = 2147483647, ordinal = 9223372036854775807, commit_lsn = 'FFFFFFFF/FFFFFFFF'",
            all,
        ),
        (
            "committed_at = 'infinity', held_at = '-infinity', updated_at = 'infinity', released_at = '-infinity'",
            all,
        ),
        (
            "committed_at = '4713-01-01 BC', last_error = repeat('x', 1000000)",
            all,
        ),
        ("due_at = '-infinity'", all),
        ("due_at = now(), state = 'scheduled', blocks = false", all),
        (
            "state = 'dead', blocks = false, due_at = null",
            &["one", "three"],
        ),
        ("state = 'dead', due_at = null", &["one"]),
        // Never, and the last one stands behind it.
        ("due_at = 'infinity'", &["one"]),
        ("due_at = '294276-12-31 23:59:59'", &["one"]),
        // Another daemon's.
        ("slot = 'another'", &["one", "three"]),
        ("slot = ''", &["one", "three"]),
    ] {
        let failed = Park {
            attempts: 1,
            ..park(1, "one", Some("k"))
        };
        store
            .park(&[
                failed,
                park(2, "two", Some("k")),
                park(3, "three", Some("k")),
            ])
            .await;
        let ids = ["one", "two", "three"].map(|name| store.id(name));
        store.postgres.psql(&format!(
            "update aftercommit.hold set {nonsense} where task = 'two'"
        ));
        all_works(&mut store).await;
        let mut seen = store.drain().await;
        hold::mend(&store.look, SLOT).await.expect("mended");
        seen.extend(store.drain().await);
        let place = |name: &str| seen.iter().position(|seen| seen == name);
        assert!(place("three").is_none_or(|third| place("one") < Some(third)));
        seen.sort();
        assert_eq!(seen, expected, "{nonsense}");
        // Whether they are there or not, and whatever they are now.
        for id in ids {
            store.postpone(&[postponed(id, MINUTE)]).await;
            store.bury(&[(id, true)]).await;
            store.postpone(&[postponed(id, MINUTE)]).await;
            store.bury(&[(id, false)]).await;
        }
        store.remove(&ids).await;
        assert_eq!(
            store.postgres.psql("select count(*) from aftercommit.hold"),
            "0"
        );
    }
}

/// An expired task that is sent again must not be dead again at once.
#[tokio::test]
async fn a_dead_task_is_sent_again_without_its_expiry() {
    let mut store = Store::start().await;
    let expiring = |number, name, state| {
        let fields = [
            (Field::Id, name),
            (Field::Task, name),
            (Field::ExpiresAt, "2020-01-01 00:00:00+00"),
        ];
        let plain = park(number, name, None);
        Park {
            task: Task::from_fields(fields, plain.task.position, plain.task.committed_at),
            state,
            due_in: (state != State::Dead).then_some(MINUTE),
            sink: if state == State::Dead { "" } else { "a" }.into(),
            ..plain
        }
    };
    store
        .park(&[
            expiring(1, "dead", State::Dead),
            expiring(2, "tried", State::Retrying),
        ])
        .await;
    store
        .postgres
        .psql("select aftercommit.hold_retry(hold_id) from aftercommit.hold");
    let mut due = store.due().await;
    due.sort_by_key(|held| held.hold_id);
    let seen: Vec<_> = due
        .iter()
        .map(|held| (held.task.name(), held.task.text(Field::ExpiresAt)))
        .collect();
    assert_eq!(
        seen,
        [("dead", None), ("tried", Some("2020-01-01 00:00:00+00"))]
    );
}

/// The one writer goes on trying, says what is wrong and how it is mended, and then nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_cannot_be_written_is_written_later() {
    let raise = |code: &str| {
        format!(
            "create function public.refuse() returns trigger language plpgsql as
               $$ begin raise exception 'refused' using errcode = '{code}'; end $$;
             create trigger refuse before insert on aftercommit.hold for each row execute function public.refuse()"
        )
    };
    let let_go =
        "drop trigger refuse on aftercommit.hold; drop function public.refuse()".to_owned();
    let cases = [
        (raise("53100"), "disk is full", let_go.clone()),
        (
            raise("22003"),
            "A value is none for its column",
            let_go.clone(),
        ),
        (raise("23503"), "that somebody has added", let_go),
        (
            "alter table aftercommit.hold add constraint by_hand check (task <> 'later') not valid"
                .to_owned(),
            "The check by_hand refuses it",
            "alter table aftercommit.hold drop constraint by_hand".to_owned(),
        ),
        (
            "revoke insert on aftercommit.hold from aftercommit_daemon".to_owned(),
            "aftercommit init, by the owner",
            "grant insert on aftercommit.hold to aftercommit_daemon".to_owned(),
        ),
        (
            "alter table aftercommit.checkpoint rename to lost".to_owned(),
            "aftercommit init makes it",
            "alter table aftercommit.lost rename to checkpoint".to_owned(),
        ),
    ];
    let store = Store::start().await;
    let config = to_stdout(
        &store.postgres.url("daemon"),
        SLOT,
        "[outbox]\nretention = \"delete\"",
    );
    let mut daemon = Daemon::start(&config);
    for (number, (break_it, words, mend_it)) in cases.iter().enumerate() {
        store.postgres.psql(break_it);
        store.postgres.psql(
            "insert into aftercommit.outbox (task, run_at) values ('later', now() + interval '1 day')",
        );
        daemon
            .wait_for_log(words, |record| record.to_string().contains(words))
            .await;
        store.postgres.psql(mend_it);
        let held = (number + 1).to_string();
        eventually(PATIENCE, "the task is held", || async {
            (store.postgres.psql("select count(*) from aftercommit.hold") == held).then_some(())
        })
        .await;
    }
    assert!(daemon.terminate().await.success());
    assert_eq!(
        store
            .postgres
            .psql("select count(*) from aftercommit.outbox"),
        "0"
    );
}
