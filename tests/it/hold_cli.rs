//! `aftercommit hold` on a real server, as an operator meets it.

use std::time::Duration;

use aftercommit::hold::{Park, State};
use aftercommit::outbox::{Field, Task};
use aftercommit::pg::Timestamp;
use serde_json::Value;

use crate::hold_store::{MINUTE, Store, park};
use crate::support::daemon::aftercommit;
use crate::support::postgres::{Options, Postgres};
use crate::support::tasks::to_stdout;

/// What the command came to: its exit code, and what it printed on both outputs.
fn hold(postgres: &Postgres, args: &[&str]) -> (Option<i32>, String, String) {
    let config = to_stdout(&postgres.url("daemon"), "aftercommit", "");
    let output = aftercommit(&[&["hold"], args].concat(), &config);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// As [`hold`], where it has to succeed; what it printed.
fn told(store: &Store, args: &[&str]) -> String {
    let (code, out, err) = hold(&store.postgres, args);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}: {out}");
    out
}

/// Names of the tasks that a filter leaves, in order.
fn listed(store: &Store, args: &[&str]) -> Vec<String> {
    let out = told(store, &[&["list", "--json"], args].concat());
    let names = out.lines().map(|line| {
        let row: Value = serde_json::from_str(line).expect(line);
        row["task"].as_str().expect("a name").to_owned()
    });
    names.collect()
}

fn dead(number: u64, name: &str, key: Option<&str>) -> Park {
    Park {
        state: State::Dead,
        due_in: None,
        attempts: 12,
        error: Some("no such exchange".to_owned()),
        ..park(number, name, key)
    }
}

/// One scheduled, a queue of two retrying behind a tried one, two dead ones, and one of another slot.
async fn filled() -> Store {
    let mut store = Store::start().await;
    let scheduled = Park {
        state: State::Scheduled,
        due_in: Some(120 * MINUTE),
        blocks: false,
        ..park(1, "mail.digest", None)
    };
    let tried = Park {
        attempts: 3,
        due_in: Some(10 * MINUTE),
        error: Some("connection\u{1b}[31m refused".to_owned()),
        ..park(2, "shop.pay", Some("order-1"))
    };
    let elsewhere = Park {
        sink: "b".into(),
        ..dead(5, "audit.write", None)
    };
    store
        .park(&[
            scheduled,
            tried,
            park(3, "shop.ship", Some("order-1")),
            dead(4, "shop.pay", Some("order-2")),
            elsewhere,
        ])
        .await;
    let sql = "update aftercommit.hold set held_at = held_at - interval '2 hours' where task = 'audit.write'";
    store.postgres.psql(sql);
    store
}

#[tokio::test]
async fn a_list_shows_what_is_held() {
    let store = filled().await;
    let expected = "\
HOLD_ID STATE     TASK        KEY     SINK TRIES AGE    DUE ERROR
      1 scheduled mail.digest -       a        0  0s     1h
      2 retrying  shop.pay    order-1 a        3  0s     9m connection·[31m refused
      3 retrying  shop.ship   order-1 a        0  0s behind
      4 dead      shop.pay    order-2 a       12  0s      - no such exchange
      5 dead      audit.write -       b       12  2h      - no such exchange
5 held tasks: 2 dead, 2 retrying, 1 scheduled
";
    // The only column that a slow machine may see otherwise.
    let seconds = |text: String| {
        let words = (0..60).map(|n| format!("{n:>3}s "));
        words.fold(text, |text, word| text.replace(&word, "  0s "))
    };
    assert_eq!(seconds(told(&store, &["list"])), expected);
    let out = told(
        &store,
        &["list", "--limit", "1", "--state", "dead,retrying"],
    );
    assert!(
        out.ends_with("\n1 of 4 held tasks: 2 dead, 2 retrying\n"),
        "{out}"
    );
    assert_eq!(out.lines().count(), 3, "{out}");
    assert_eq!(told(&store, &["list", "--sink", "none"]), "no held tasks\n");

    let all = [
        "mail.digest",
        "shop.pay",
        "shop.ship",
        "shop.pay",
        "audit.write",
    ];
    for (filter, expected) in [
        (&[][..], &all[..]),
        (&["--task", "*"], &all),
        (&["--limit", "2"], &all[..2]),
        (&["--state", "scheduled"], &all[..1]),
        (&["--state", "scheduled", "--state", "retrying"], &all[..3]),
        (&["--task", "shop.*"], &all[1..4]),
        (&["--task", "shop.pay"], &["shop.pay", "shop.pay"]),
        (&["--task", "shop"], &[]),
        (&["--sink", "b"], &all[4..]),
        (&["--key", "order-1"], &all[1..3]),
        (&["--older-than", "1h"], &all[4..]),
        (
            &["--id", "id-4", "--id", "id-1"],
            &["mail.digest", "shop.pay"],
        ),
        (&["--state", "dead", "--task", "shop.*", "--sink", "b"], &[]),
    ] {
        assert_eq!(listed(&store, filter), expected, "{filter:?}");
    }

    let out = told(&store, &["list", "--json", "--id", "id-3"]);
    let row: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(row["hold_id"], 3);
    assert_eq!(row["is_behind"], true);
    assert_eq!(row["due_at"], Value::Null);
    assert_eq!(row["commit_lsn"], "0/3EB");
    assert!(
        row["held_at"]
            .as_str()
            .is_some_and(|at| at.ends_with("+00:00")),
        "{row}"
    );
    assert_eq!(row.get("kwargs"), None);

    store
        .postgres
        .psql("update aftercommit.hold set slot = 'older' where task = 'mail.digest'");
    let out = told(&store, &["list"]);
    assert!(
        out.contains("4 held tasks: ") && out.contains("\nslot older has held tasks, too: "),
        "{out}"
    );
}

#[tokio::test]
async fn one_task_is_shown_whole_and_its_payload_when_asked_for() {
    let mut store = filled().await;
    let mut full = park(9, "t", None);
    let values = [
        (Field::Id, "9"),
        (Field::Task, "t"),
        (Field::Kwargs, "{\"card\":  \"hunter2\"}"),
        (Field::Headers, "{\"token\": \"hunter2\"}"),
        (Field::Queue, "fast"),
        (Field::Priority, "7"),
    ];
    full.task = Task::from_fields(values, full.task.position, Timestamp(0));
    store.park(&[full]).await;
    let id = store.id("t").to_string();
    let out = told(&store, &["show", &id]);
    for line in [
        "task          t\n",
        "route         *\n",
        "queue         fast\n",
        "priority      7\n",
        "committed_at  2000-01-01T00:00:00+00:00, LSN 0/3F1, row 0 of its transaction\n",
        "carries       kwargs of 20 bytes, headers of 20 bytes; --payload shows it\n",
        ", now\n",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(!out.contains("hunter2"), "{out}");
    let out = told(&store, &["show", &id, "--payload"]);
    assert!(
        out.contains("kwargs        {\"card\":  \"hunter2\"}\n"),
        "{out}"
    );

    let row: Value = serde_json::from_str(&told(&store, &["show", &id, "--json"])).expect("JSON");
    assert_eq!(
        (&row["kwargs_bytes"], &row["args_bytes"]),
        (&20.into(), &Value::Null)
    );
    assert_eq!(row.get("kwargs"), None);
    let out = told(&store, &["show", &id, "--json", "--payload"]);
    let row: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(row["kwargs"], "{\"card\":  \"hunter2\"}");

    let out = told(&store, &["show", "3"]);
    assert!(
        out.contains("due_at        when those before it in its key have gone, from 2 on\n"),
        "{out}"
    );
    let (code, out, err) = hold(&store.postgres, &["show", "404"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        err,
        "error: there is no held task 404 in slot aftercommit\n"
    );
}

#[tokio::test]
async fn dead_tasks_are_sent_again_or_dropped() {
    let store = filled().await;
    let state = |name: &str| {
        let sql = format!(
            "select string_agg(state || ' ' || attempts, ', ' order by hold_id) from aftercommit.hold where task = '{name}'"
        );
        store.postgres.psql(&sql)
    };
    // By a filter, dead ones only.
    assert_eq!(
        told(&store, &["retry", "--task", "shop.*"]),
        "1 task is sent again\n"
    );
    assert_eq!(state("shop.pay"), "retrying 3, retrying 0");
    assert_eq!(store.due_names().await, ["shop.pay"]);
    assert_eq!(
        told(&store, &["retry", "--task", "shop.*"]),
        "0 tasks are sent again\n"
    );
    assert_eq!(
        told(&store, &["discard", "--key", "order-1"]),
        "0 tasks are dropped\n"
    );
    // Or those that are named: now, with the attempts that they have left.
    assert_eq!(told(&store, &["retry", "2"]), "1 task is sent again\n");
    assert_eq!(state("shop.pay"), "retrying 3, retrying 0");
    assert_eq!(store.due_names().await, ["shop.pay", "shop.pay"]);
    assert_eq!(
        told(&store, &["retry", "--state", "retrying", "--all", "--json"]),
        "{\"retried\":3}\n"
    );

    assert_eq!(
        told(&store, &["discard", "--all", "--json"]),
        "{\"discarded\":1}\n"
    );
    assert_eq!(state("audit.write"), "");
    assert_eq!(
        told(&store, &["discard", "--id", "id-1"]),
        "1 task is dropped\n"
    );
    // What stood behind a dropped one goes on.
    assert_eq!(
        told(&store, &["discard", "2", "4"]),
        "2 tasks are dropped\n"
    );
    assert_eq!(store.due_names().await, ["shop.ship"]);
    assert_eq!(
        told(
            &store,
            &["discard", "--all", "--state", "dead,retrying,scheduled"]
        ),
        "1 task is dropped\n"
    );
    assert_eq!(told(&store, &["list"]), "no held tasks\n");

    for (args, words) in [
        (
            &["retry", "2"][..],
            "none of the tasks that were named could be retried",
        ),
        (
            &["discard", "--id", "id-1"],
            "none of the tasks that were named could be discarded",
        ),
    ] {
        let (code, _, err) = hold(&store.postgres, args);
        assert_eq!(code, Some(1), "{args:?}");
        assert!(err.contains(words), "{err}");
    }
}

#[tokio::test]
async fn more_than_one_step_takes() {
    let mut store = Store::start().await;
    let parks: Vec<Park> = (0..12_000)
        .map(|number| {
            dead(
                number,
                "t",
                Some(if number % 2 == 0 { "even" } else { "odd" }),
            )
        })
        .collect();
    store.park(&parks).await;
    assert_eq!(listed(&store, &[]).len(), 12_000);
    assert_eq!(
        told(&store, &["retry", "--all"]),
        "12000 tasks are sent again\n"
    );
    assert_eq!(store.due_names().await.len(), 2, "the first of each key");
    let out = told(&store, &["discard", "--state", "retrying", "--key", "odd"]);
    assert_eq!(out, "6000 tasks are dropped\n");
    assert_eq!(listed(&store, &[]).len(), 6_000);
}

#[tokio::test]
async fn what_is_about_every_task_has_to_say_so() {
    // Nothing is asked of a server.
    let config = to_stdout("postgres://daemon@127.0.0.1:1/app", "aftercommit", "");
    for (args, words) in [
        (&["discard"][..], "--all"),
        (&["retry", "--state", "dead"], "--all"),
        (&["discard", "--all", "7"], "cannot be used with"),
        (
            &["retry", "--all", "--state", "scheduled"],
            "when its time has come",
        ),
        (&["list", "--state", "alive"], "scheduled, retrying, dead"),
        (&["list", "--older-than", "1 hour"], "older-than"),
        (&["list", "--task", "a*"], "is not a pattern"),
        (&["list", "--limit", "0"], "--limit"),
        (&["show", "x"], "HOLD_ID"),
        (&[], "subcommand"),
    ] {
        let output = aftercommit(&[&["hold"], args].concat(), &config);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
    let output = aftercommit(&["hold", "list"], &config);
    assert_eq!(output.status.code(), Some(75));
}

#[tokio::test]
async fn who_may_not_look_is_told_so() {
    let postgres = Postgres::start(Options::default());
    postgres.psql("create role daemon login");
    let (code, _, err) = hold(&postgres, &["list"]);
    assert_eq!(code, Some(78), "{err}");
    assert_eq!(
        err,
        "error: this database has no hold table: aftercommit init makes it\n"
    );

    let store = Store::start().await;
    store.postgres.psql("revoke aftercommit_daemon from daemon");
    for args in [
        &["list"][..],
        &["show", "1"],
        &["retry", "1"],
        &["discard", "--all"],
    ] {
        let (code, out, err) = hold(&store.postgres, args);
        assert_eq!((code, out.as_str()), (Some(78), ""), "{err}");
        assert!(
            err.contains("permission denied for schema aftercommit")
                && err.contains("init --print"),
            "{err}"
        );
    }
}

/// A row that was changed by hand is shown, whatever is in it.
#[tokio::test]
async fn nonsense_is_refused_by_the_table_or_shown() {
    let mut store = filled().await;
    let client = store.postgres.client().await;
    for sql in [
        "update aftercommit.hold set state = 'lost'",
        "update aftercommit.hold set due_at = null where state = 'scheduled'",
        "update aftercommit.hold set due_at = now() where state = 'dead'",
        "update aftercommit.hold set blocks = true",
        "update aftercommit.hold set attempts = -1",
        "update aftercommit.hold set ordinal = -1",
        "update aftercommit.hold set sink = null",
    ] {
        assert!(client.batch_execute(sql).await.is_err(), "{sql}");
    }
    store
        .park(&[park(8, "late", None), park(9, "early", None)])
        .await;
    store.postgres.psql(
        "update aftercommit.hold set due_at = 'infinity', held_at = '-infinity', key = E'\\n', blocks = false \
           where task = 'late'; \
         update aftercommit.hold set due_at = '-infinity', sink = '', id = '', attempts = 2147483647 where task = 'early'",
    );
    let out = told(&store, &["list"]);
    assert!(out.contains(" ·       a "), "{out}");
    assert_eq!(listed(&store, &["--task", "late"]), ["late"]);
    told(&store, &["show", &store.id("late").to_string()]);
    assert_eq!(store.due_names().await, ["early"]);
    tokio::time::timeout(Duration::from_secs(60), store.due_names())
        .await
        .expect("an answer");
}
