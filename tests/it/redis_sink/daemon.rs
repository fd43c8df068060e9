//! The daemon as a whole, with a stream: kill -9 under load, lost answers, and tasks that go by the hold table.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, assert_discreet};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;

const STREAM: &str = "events";

fn config(exam: &Exam, url: &str) -> String {
    let celery = format!("[sink.celery.workers]\nbroker_url = \"{url}\"\nqueue = \"celery\"\n");
    let redis = format!("[sink.redis.workers]\nurl = \"{url}\"\nstream = \"{STREAM}\"\n");
    let config = exam.config_through(&exam.postgres_url(), url);
    assert!(config.contains(&celery), "{config}");
    config.replace(&celery, &redis).replace(
        "\"50ms..500ms\"",
        "\"20ms..100ms\", hold_after = \"50ms\", attempts = 10000",
    )
}

/// Keys and numbers of a stream's entries, in order; each task once.
fn entries(server: &Redis, stream: &str) -> Vec<(String, u64)> {
    let mut ids = std::collections::HashSet::new();
    let entry = |(_, fields): (String, HashMap<String, String>)| {
        assert!(ids.insert(fields["id"].clone()), "{} twice", fields["id"]);
        let row: serde_json::Value = serde_json::from_str(&fields["data"]).expect("JSON");
        let key = row["key"].as_str().expect("a key").to_owned();
        (key, row["kwargs"]["n"].as_u64().expect("a number"))
    };
    server.entries(stream).into_iter().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lost_answers_and_the_hold_add_nothing_twice() {
    const ROUNDS: usize = 10;
    const ROWS: usize = 400;
    let exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let config = config(&exam, &exam.redis.url_through(proxy.port(), 0));
    let mut random = exam.random(0);
    exam.redis.run(&["SET", "taken", "by another"]);
    for round in 0..ROUNDS {
        // Every tenth key goes by the hold, and every 90th row waits for its time there.
        exam.postgres.psql(&format!(
            "do $$ begin for n in 1 .. {ROWS} loop
               insert into aftercommit.outbox (task, key, kwargs, queue, run_at)
               values ('exam.single', n % 50, json_build_object('n', n + {round} * {ROWS}),
                       case when n % 10 = 0 then 'taken' end,
                       case when n % 90 = 1 then now() + interval '3 s' end);
               commit;
             end loop; end $$"
        ));
        let mut daemon = Daemon::start(&config);
        tokio::time::sleep(Duration::from_millis(200 + random.u64(..400))).await;
        if round % 3 == 0 {
            proxy.set(Way::Down, Fault::CutAfter(random.u64(..400)));
            tokio::time::sleep(Duration::from_millis(random.u64(..300))).await;
        }
        daemon.kill9();
        assert_discreet(&daemon);
        proxy.pass();
    }
    exam.redis.run(&["DEL", "taken"]);
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
    let (direct, held) = (entries(&exam.redis, STREAM), entries(&exam.redis, "taken"));
    eprintln!("{} direct, {} by the hold", direct.len(), held.len());
    assert_eq!(direct.len() + held.len(), ROUNDS * ROWS);
    // A row with a time of its own takes its place among its key's when that has come.
    let mut last: HashMap<String, u64> = HashMap::new();
    for (key, n) in direct.into_iter().chain(held) {
        if ((n - 1) % ROWS as u64).is_multiple_of(90) {
            continue;
        }
        let before = last.insert(key.clone(), n);
        assert!(
            before.is_none_or(|before| before < n),
            "key {key}: {before:?} before {n}"
        );
    }
}
