//! Celery over RabbitMQ, on real servers: where messages go, and what each way of failing is answered with.

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::celery::Config;
use aftercommit::sink::{Outcome, Settings as _, Sink};
use serde_json::{Value, json};

use crate::support::handover::hand_over;
use crate::support::rabbitmq::{RabbitMq, id, is_installed};

fn task(id: &str, fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, id), (Field::Task, "app.tasks.work")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, Position::default(), Timestamp(0))
}

fn config(settings: Value) -> Config {
    serde_json::from_value(settings).expect("settings")
}

fn open(url: &str) -> Box<dyn Sink> {
    config(json!({"broker_url": url, "timeout": "5s"}))
        .open()
        .expect("a sink")
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    hand_over(sink, tasks).await.expect("no outage")
}

#[tokio::test]
async fn a_message_arrives_as_celery_writes_it() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.queue("celery", json!({}));
    let mut sink = open(&vhost.url());
    let headers = r#"{"s": "Łódź", "n": 7, "big": 1099511627776, "neg": -5, "f": 1.5, "no": null, "yes": true}"#;
    let tasks = [task(
        "one",
        &[
            (Field::Args, "[2, 3]"),
            (Field::Headers, headers),
            (Field::Priority, "5"),
        ],
    )];
    assert_eq!(deliver(&mut sink, &tasks).await, [Outcome::Delivered]);
    let messages = vhost.take("celery");
    assert_eq!(messages.len(), 1);
    assert_eq!(id(&messages[0]), "one");
    let properties = &messages[0]["properties"];
    assert_eq!(properties["priority"], 5);
    assert_eq!(properties["correlation_id"], "one");
    let headers = &properties["headers"];
    let big: u64 = 1 << 40;
    for (name, expected) in [
        ("s", json!("Łódź")),
        ("n", json!(7)),
        ("big", json!(big)),
        ("neg", json!(-5)),
        ("f", json!(1.5)),
        ("no", json!("undefined")),
        ("yes", json!(true)),
        ("retries", json!(0)),
        ("timelimit", json!(["undefined", "undefined"])),
        ("stamps", json!({})),
    ] {
        assert_eq!(headers[name], expected, "{name}");
    }
}
