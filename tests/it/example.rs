//! `config.example.toml`: every key is in it, explained, and with its default.

use std::collections::BTreeMap;

use aftercommit::config::{self, Config};
use toml::{Table, Value};

/// Keys that have no default; the example shows a likely value.
const NO_DEFAULT: [&str; 60] = [
    "postgres.url",
    "postgres.url_file",
    "postgres.password_file",
    "outbox.preset",
    "sink.celery.NAME.broker_url",
    "sink.celery.NAME.broker_url_file",
    "sink.celery.NAME.master_name",
    "sink.celery.NAME.sentinel_username",
    "sink.celery.NAME.sentinel_password",
    "sink.celery.NAME.sentinel_password_file",
    "sink.amqp.NAME.url",
    "sink.amqp.NAME.url_file",
    "sink.amqp.NAME.exchange",
    "sink.redis.NAME.url",
    "sink.redis.NAME.url_file",
    "sink.redis.NAME.stream",
    "sink.redis.NAME.list",
    "sink.redis.NAME.maxlen",
    "sink.sidekiq.NAME.url",
    "sink.sidekiq.NAME.url_file",
    "sink.dramatiq.NAME.url",
    "sink.dramatiq.NAME.url_file",
    "sink.bullmq.NAME.url",
    "sink.bullmq.NAME.url_file",
    "sink.exec.NAME.command",
    "sink.exec.NAME.directory",
    "sink.webhook.NAME.url",
    "sink.webhook.NAME.url_file",
    "sink.webhook.NAME.secret",
    "sink.webhook.NAME.secret_file",
    "sink.webhook.NAME.ca_file",
    "sink.webhook.NAME.certificate_file",
    "sink.webhook.NAME.key_file",
    "sink.nats.NAME.url",
    "sink.nats.NAME.url_file",
    "sink.nats.NAME.stream",
    "sink.nats.NAME.subject",
    "sink.nats.NAME.user",
    "sink.nats.NAME.password",
    "sink.nats.NAME.password_file",
    "sink.nats.NAME.token",
    "sink.nats.NAME.token_file",
    "sink.nats.NAME.nkey_seed_file",
    "sink.nats.NAME.credentials_file",
    "sink.nats.NAME.tls_ca_file",
    "sink.nats.NAME.tls_certificate_file",
    "sink.nats.NAME.tls_key_file",
    "sink.kafka.NAME.brokers",
    "sink.kafka.NAME.topic",
    "sink.kafka.NAME.password",
    "sink.kafka.NAME.password_file",
    "sink.sqs.NAME.queue",
    "sink.sqs.NAME.region",
    "sink.sqs.NAME.endpoint_url",
    "sink.sqs.NAME.access_key_id",
    "sink.sqs.NAME.secret_access_key",
    "sink.sqs.NAME.secret_access_key_file",
    "sink.kafka.NAME.properties",
    "route.task",
    "route.sink",
];

/// Sinks that stand behind a #, for not every build has them.
const OPTIONAL: [(&str, bool); 2] = [
    ("#[sink.kafka.", cfg!(feature = "kafka")),
    ("#[sink.sqs.", cfg!(feature = "sqs")),
];

fn as_shipped() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    std::fs::read_to_string(path).expect("the example is there")
}

/// With the sinks that this build has, as they look when the # is taken away; and without those that it has not.
fn example() -> String {
    let blocks = as_shipped();
    let blocks = blocks.split("\n\n").filter_map(|block| {
        let optional = OPTIONAL.iter().find(|(head, _)| block.contains(head));
        let Some((_, is_there)) = optional else {
            return Some(block.to_owned());
        };
        let line = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        };
        let lines: Vec<String> = block.lines().map(line).collect();
        is_there.then(|| lines.join("\n"))
    });
    blocks.collect::<Vec<_>>().join("\n\n")
}

/// The example with every key that it shows as a default switched on: `#key = value`, but not `# words`.
fn switched_on(example: &str) -> String {
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn parse(text: &str) -> Config {
    let env = |name: &str| (name == "DATABASE_URL").then(|| "postgres://u@h/d".to_owned());
    let mut config =
        Config::parse("config.example.toml", text, &env).unwrap_or_else(|error| panic!("{error}"));
    config.findings.clear();
    config
}

/// Every value in `table`, by the path that [`config::keys`] would give it.
fn values(table: &Table) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    collect("", table, &mut values);
    values
}

fn collect(path: &str, table: &Table, values: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let is_name = path.starts_with("sink.") && path.matches('.').count() == 1;
        let key = if is_name { "NAME" } else { key };
        let path = if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        };
        match value {
            Value::Table(table) if !path.ends_with(".properties") => collect(&path, table, values),
            Value::Array(array) if array.iter().any(Value::is_table) => {
                for table in array.iter().filter_map(Value::as_table) {
                    collect(&path, table, values);
                }
            }
            _ => {
                values.insert(path, value.clone());
            }
        }
    }
}

#[test]
fn it_is_a_configuration_that_can_be_used() {
    let env = |name: &str| (name == "DATABASE_URL").then(|| "postgres://u@h/d".to_owned());
    let config = Config::parse("config.example.toml", &as_shipped(), &env);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.findings, []);
}

#[test]
fn every_key_is_in_it() {
    let shown: Table = switched_on(&example()).parse().expect("it is TOML");
    let shown: Vec<String> = values(&shown).into_keys().collect();
    let mut known = Vec::new();
    for (section, keys) in config::keys() {
        // Sections are known by their keys; `null` is for benches.
        if section.is_empty() || section == "sink" || section == "sink.null.NAME" {
            continue;
        }
        known.extend(keys.iter().map(|key| format!("{section}.{key}")));
    }
    known.retain(|key| key != "outbox.columns" && key != "route.retry");
    known.sort();
    assert_eq!(shown, known);
}

#[test]
fn every_key_is_explained() {
    let text = example();
    let mut explained = Vec::new();
    let mut section = "";
    let mut before = "";
    for line in text.lines() {
        let shown = line.strip_prefix('#').unwrap_or(line);
        if shown.starts_with('[') {
            section = shown;
        } else if shown.starts_with(|c: char| c.is_ascii_lowercase()) {
            let key = format!("{section}{}", shown.split(" = ").next().unwrap_or_default());
            if !explained.contains(&key) {
                let above = before.starts_with("# ") || before == "#[admin]";
                assert!(above, "nothing above {key} in {section} says what it is");
                explained.push(key);
            }
        }
        before = line;
    }
    assert!(explained.len() > 30, "{explained:?}");
}

#[test]
fn the_values_shown_are_the_defaults() {
    let text = example();
    let needed: Table = text.parse().expect("it is TOML");
    let plain = format!("{:?}", parse(&text));
    let all: Table = switched_on(&text).parse().expect("it is TOML");
    for (path, value) in values(&all) {
        if let Some(field) = path.strip_prefix("outbox.columns.") {
            assert_eq!(
                value.as_str(),
                Some(field),
                "a field's own name is its default column"
            );
        } else if !NO_DEFAULT.contains(&path.as_str()) {
            let mut table = needed.clone();
            set(&mut table, &path, value);
            let text = toml::to_string(&table).expect("it is TOML");
            assert_eq!(format!("{:?}", parse(&text)), plain, "{path}");
        }
    }
}

/// Sets a value in the section at `path`, and of the routes in the first.
fn set(table: &mut Table, path: &str, value: Value) {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, rest),
        None => {
            table.insert(path.to_owned(), value);
            return;
        }
    };
    let inner = match first {
        "NAME" => table.iter_mut().next().map(|(_, value)| value),
        _ => Some(
            table
                .entry(first)
                .or_insert_with(|| Value::Table(Table::new())),
        ),
    };
    match inner {
        Some(Value::Table(inner)) => set(inner, rest, value),
        Some(Value::Array(inner)) => match inner.first_mut().and_then(Value::as_table_mut) {
            Some(inner) => set(inner, rest, value),
            None => panic!("{path}"),
        },
        other => panic!("{path}: {other:?}"),
    }
}
