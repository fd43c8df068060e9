//! The daemon as a whole, in front of queues in Redis: kill -9 under load, and lost answers.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, assert_discreet};
use crate::support::proxy::{Fault, Proxy, Way};

fn config(exam: &Exam, kind: &str, url: &str) -> String {
    let celery = format!("[sink.celery.workers]\nbroker_url = \"{url}\"\nqueue = \"celery\"\n");
    let queue = format!("[sink.{kind}.workers]\nurl = \"{url}\"\n");
    let config = exam.config_through(&exam.postgres_url(), url);
    assert!(config.contains(&celery), "{config}");
    config.replace(&celery, &queue).replace(
        "\"50ms..500ms\"",
        "\"20ms..100ms\", hold_after = \"50ms\", attempts = 10000",
    )
}

/// Ten times killed in the middle of its work; nothing is missing then, or comes twice. `read` gives a queue's kwargs, the oldest first.
async fn killed(exam: &Exam, kind: &str, taken: &str, read: fn(&Exam, &str) -> Vec<Value>) {
    const ROUNDS: usize = 10;
    const ROWS: usize = 400;
    let proxy = Proxy::start(exam.redis.port());
    let config = config(exam, kind, &exam.redis.url_through(proxy.port(), 0));
    let mut random = exam.random(0);
    exam.redis.run(&["SET", taken, "by another"]);
    for round in 0..ROUNDS {
        // Every tenth key goes by the hold, and every 90th row waits for its time there.
        exam.postgres.psql(&format!(
            "do $$ begin for n in 1 .. {ROWS} loop
               insert into aftercommit.outbox (task, key, kwargs, queue, run_at)
               values ('Work', n % 50, json_build_object('n', n + {round} * {ROWS}, 'key', n % 50),
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
    exam.redis.run(&["DEL", taken]);
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
    let (direct, held) = (read(exam, "default"), read(exam, "taken"));
    eprintln!("{} direct, {} by the hold", direct.len(), held.len());
    assert_eq!(direct.len() + held.len(), ROUNDS * ROWS);
    let mut seen = HashSet::new();
    let mut last: HashMap<u64, u64> = HashMap::new();
    for job in direct.into_iter().chain(held) {
        let (n, key) = (job["n"].as_u64().unwrap(), job["key"].as_u64().unwrap());
        assert!(seen.insert(n), "{n} twice");
        // A row with a time of its own takes its place among its key's when that has come.
        if ((n - 1) % ROWS as u64).is_multiple_of(90) {
            continue;
        }
        let before = last.insert(key, n);
        assert!(
            before.is_none_or(|before| before < n),
            "key {key}: {before:?} before {n}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_give_sidekiq_nothing_twice() {
    let exam = Exam::start();
    killed(&exam, "sidekiq", "queue:taken", |exam, queue| {
        let jobs = exam.redis.messages(0, &format!("queue:{queue}"));
        jobs.into_iter().map(|job| job["args"][0].clone()).collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_give_dramatiq_nothing_twice() {
    let exam = Exam::start();
    killed(&exam, "dramatiq", "dramatiq:taken", |exam, queue| {
        let key = format!("dramatiq:{queue}");
        let ids: Vec<String> = exam.redis.ask(&["LRANGE", &key, "0", "-1"]);
        let messages: HashMap<String, String> =
            exam.redis.ask(&["HGETALL", &format!("{key}.msgs")]);
        assert_eq!(messages.len(), ids.len());
        let message = |id: &String| serde_json::from_str::<Value>(&messages[id]).expect("JSON");
        ids.iter().map(|id| message(id)["kwargs"].clone()).collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_give_bullmq_nothing_twice() {
    let exam = Exam::start();
    killed(&exam, "bullmq", "bull:taken:wait", |exam, queue| {
        let mut ids: Vec<String> =
            exam.redis
                .ask(&["LRANGE", &format!("bull:{queue}:wait"), "0", "-1"]);
        ids.reverse();
        let data = |id: &String| -> Value {
            let data: String = exam
                .redis
                .ask(&["HGET", &format!("bull:{queue}:{id}"), "data"]);
            serde_json::from_str(&data).expect("JSON")
        };
        ids.iter().map(data).collect()
    })
    .await;
}
