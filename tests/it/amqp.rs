//! The amqp sink on real RabbitMQ servers: what comes back, what is refused, and a broker that takes nothing.

use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::amqp::Config;
use aftercommit::sink::{Outcome, Settings as _, Sight, Sink};
use serde_json::{Value, json};

use crate::support::handover::hand_over;
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::rabbitmq::{RabbitMq, Vhost, id, is_installed};
use crate::support::wait::PATIENCE;

fn task(id: &str, fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, id), (Field::Task, "order.paid")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, Position::default(), Timestamp(0))
}

fn open(settings: Value) -> Box<dyn Sink> {
    let config: Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

/// A sink of a topic exchange, which has a queue for what begins with `order.`.
fn shop(vhost: &Vhost<'_>) -> Box<dyn Sink> {
    vhost.exchange("shop", "topic");
    vhost.queue("orders", json!({}));
    vhost.bind("shop", "orders", "order.#");
    open(json!({"url": vhost.url(), "exchange": "shop", "timeout": "5s"}))
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    hand_over(sink, tasks).await.expect("no outage")
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".to_owned(),
        Outcome::Retry(cause) => format!("retry: {cause}"),
        Outcome::RetryIn(after, cause) => format!("retry in {after:?}: {cause}"),
        Outcome::Reject(cause) => format!("reject: {cause}"),
        Outcome::Unsent => "unsent".to_owned(),
    }
}

#[tokio::test]
async fn of_many_under_way_exactly_those_that_come_back_are_rejected() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    let mut sink = shop(&vhost);
    let numbers: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
    for round in 0..3 {
        let is_lost = |n: usize| (n * 7 + round).is_multiple_of(10);
        let tasks: Vec<Task> = (numbers.iter().enumerate())
            .map(|(n, id)| {
                let queue = if is_lost(n) { "nobody" } else { "order.paid" };
                task(id, &[(Field::Queue, queue)])
            })
            .collect();
        let outcomes = deliver(&mut sink, &tasks).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            let words = words(outcome);
            match is_lost(n) {
                true => assert!(
                    words.starts_with(
                        "reject: the exchange \"shop\" has no queue for the routing key \"nobody\""
                    ),
                    "{n}: {words}"
                ),
                false => assert_eq!(words, "delivered", "{n}"),
            }
        }
        let arrived: Vec<String> = vhost.take("orders").iter().map(id).collect();
        let expected = numbers.iter().enumerate().filter(|(n, _)| !is_lost(*n));
        let expected: Vec<String> = expected.map(|(_, id)| id.clone()).collect();
        assert_eq!(arrived, expected);
    }
}

#[tokio::test]
async fn what_closes_the_channel_harms_no_neighbour() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::shared();
    let vhost = server.vhost();
    shop(&vhost);
    let settings = json!({"url": vhost.url(), "exchange": "sho{key}", "timeout": "5s"});
    let mut sink = open(settings);
    let tasks = [
        task("1", &[(Field::Key, "p")]),
        task("2", &[(Field::Key, "w")]),
        task("3", &[(Field::Key, "p")]),
        task("4", &[(Field::Key, "w")]),
    ];
    for _ in 0..2 {
        let outcomes: Vec<String> = deliver(&mut sink, &tasks).await.iter().map(words).collect();
        assert_eq!(outcomes[0], "delivered");
        assert_eq!(
            outcomes[1],
            "retry: there is no exchange \"show\": declare it"
        );
        assert_eq!(outcomes[2], "delivered");
        assert!(
            outcomes[3].starts_with("retry: an earlier task"),
            "{}",
            outcomes[3]
        );
        let arrived: Vec<String> = vhost.take("orders").iter().map(id).collect();
        assert_eq!(arrived, ["1", "3"]);
    }
    // An operator declares it.
    vhost.exchange("show", "fanout");
    vhost.bind("show", "orders", "");
    let deadline = Instant::now() + PATIENCE;
    while deliver(&mut sink, &tasks[1..2]).await != [Outcome::Delivered] {
        assert!(Instant::now() < deadline, "the new exchange is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One that was there goes, while many are under way.
    vhost.take("orders");
    vhost.delete_exchange("show");
    let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let both = |(n, id): (usize, &String)| {
        let key = if n == 50 { "w" } else { "p" };
        task(id, &[(Field::Key, key)])
    };
    let many: Vec<Task> = many.iter().enumerate().map(both).collect();
    let outcomes = deliver(&mut sink, &many).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        let expected = if n == 50 {
            "retry: there is no"
        } else {
            "delivered"
        };
        assert!(words(outcome).starts_with(expected), "{n}: {outcome:?}");
    }
    let mut arrived: Vec<String> = vhost.take("orders").iter().map(id).collect();
    arrived.dedup();
    let expected = many.iter().map(Task::id).filter(|id| *id != "50");
    assert!(arrived.iter().eq(expected), "{arrived:?}");
}

#[tokio::test]
async fn what_was_confirmed_before_an_outage_is_not_sent_again() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::shared();
    let vhost = server.vhost();
    shop(&vhost);
    let proxy = Proxy::start(server.port());
    let url = vhost.url_through(proxy.port());
    let mut sink = open(json!({"url": url, "exchange": "shop", "timeout": "5s"}));
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    // Of one key: one at a time is under way.
    let tasks: Vec<Task> = names
        .iter()
        .map(|id| task(id, &[(Field::Key, "k")]))
        .collect();
    // Some hundreds of confirms, of 21 bytes each.
    proxy.set(Way::Down, Fault::CutAfter(10_000));
    let cut = hand_over(&mut sink, &tasks).await;
    let (_, left) = cut.expect_err("an outage");
    proxy.pass();
    let outcomes = deliver(&mut sink, &left).await;
    assert_eq!(outcomes, vec![Outcome::Delivered; left.len()]);
    let arrived: Vec<String> = vhost.take("orders").iter().map(id).collect();
    assert!(arrived.len() <= names.len() + 1, "{}", arrived.len());
    let mut once = arrived;
    once.dedup();
    assert_eq!(once, names);
}

#[tokio::test]
async fn a_broker_without_memory_is_an_outage_and_nothing_is_sent_in_vain() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::start();
    let vhost = server.default_vhost();
    let mut sink = shop(&vhost);
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let tasks: Vec<Task> = names.iter().map(|id| task(id, &[])).collect();
    assert_eq!(deliver(&mut sink, &tasks[..1]).await, [Outcome::Delivered]);
    server.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    let began = Instant::now();
    let mut refusals = 0;
    while refusals < 20 {
        // A few may pass until the broker has noticed.
        if let Err(outage) = sink.deliver(&tasks).await {
            assert!(
                outage
                    .to_string()
                    .contains("takes no messages: low on memory"),
                "{outage}"
            );
            refusals += 1;
        }
        assert!(began.elapsed() < PATIENCE, "it is not told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seen = sink.probe().await;
    assert!(matches!(seen[..], [Sight::Fault(..)]), "{seen:?}");
    server.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let deadline = Instant::now() + PATIENCE;
    while sink.deliver(&tasks).await.is_err() {
        assert!(
            Instant::now() < deadline,
            "it is not seen that there is room again"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let arrived: Vec<String> = vhost.take("orders").iter().map(id).collect();
    // The first, what was under way when the broker was blocked, and the last; not each attempt.
    assert!(
        arrived.len() <= 1 + 3 * tasks.len(),
        "{} arrived",
        arrived.len()
    );
    assert!(arrived.len() > tasks.len());
}

#[tokio::test]
async fn a_look_tells_of_queues_and_exchanges() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.exchange("shop", "topic");
    vhost.queue("durable", json!({"x-max-priority": 10}));
    vhost.queue("quorum", json!({"x-queue-type": "quorum"}));
    vhost.queue_as("fleeting", json!({"durable": false}));
    for (exchange, routing_key, risk) in [
        ("shop", "{task}", None),
        ("shop.{task}", "{task}", None),
        ("nobody", "{task}", Some("no exchange \"nobody\"")),
        ("", "durable", None),
        ("", "quorum", None),
        ("", "fleeting", Some("\"fleeting\" is not durable")),
        ("", "nobody", Some("no queue \"nobody\"")),
    ] {
        let settings =
            json!({"url": vhost.url(), "exchange": exchange, "routing_key": routing_key});
        let mut sink = open(settings);
        // Twice: the connection is still good for something.
        for _ in 0..2 {
            let seen = sink.probe().await;
            assert!(
                matches!(seen.first(), Some(Sight::Good(words)) if words.contains("RabbitMQ 3")),
                "{seen:?}"
            );
            match (risk, seen.get(1)) {
                (None, None) => {}
                (Some(risk), Some(Sight::Risk(words, _))) => {
                    assert!(words.contains(risk), "{words}")
                }
                _ => panic!("{exchange} {routing_key}: {seen:?}"),
            }
        }
    }
    // Who may not configure a queue is not told whether it is durable; nothing is claimed then, and nothing is made.
    let server = RabbitMq::shared();
    server.user("looker", "looks", &vhost);
    let rights = json!({"configure": "^$", "write": ".*", "read": ".*"});
    let path = format!("permissions/{}/looker", vhost.name);
    server.ask("PUT", &path, Some(&rights));
    let url = vhost.url().replace("guest:guest", "looker:looks");
    for (queue, count) in [("durable", 1), ("fleeting", 1), ("nobody", 2)] {
        let settings = json!({"url": url, "exchange": "", "routing_key": queue});
        let seen = open(settings).probe().await;
        assert_eq!(seen.len(), count, "{seen:?}");
    }
    let queues = server.ask("GET", &format!("queues/{}", vhost.name), None);
    assert_eq!(queues.as_array().map(Vec::len), Some(3), "{queues}");
}
