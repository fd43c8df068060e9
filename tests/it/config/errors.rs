//! What is wrong with a configuration is shown where it is, with the remedy and without the secrets.

use aftercommit::sink::FEATURES;

use super::{BASE, parse};

/// The whole message for each mistake.
#[test]
fn mistakes_are_shown_where_they_are() {
    for (lines, expected) in [
        (
            "[limits]\nmemroy = \"1MiB\"",
            r#"
error: unknown key `memroy` in [limits]
 --> app.toml:2:1
  |
2 | memroy = "***"
  | ^^^^^^ did you mean `memory`?
  = help: its keys are in_flight, memory and slot_lag"#,
        ),
        (
            "[gate]\nslot = \"a\"",
            r#"
error: unknown key `slot` in [gate]
 --> app.toml:2:1
  |
2 | slot = "***"
  | ^^^^ this key belongs in [postgres]
  = help: its keys are visibility, replicas and timeout"#,
        ),
        (
            "[routes]",
            r#"
error: unknown section `routes`
 --> app.toml:1:2
  |
1 | [routes]
  |  ^^^^^^ did you mean `route`?
  = help: the sections are postgres, outbox, gate, sink, route, limits, log and admin"#,
        ),
        (
            "[gate]\nvisibility = \"yes\"",
            r#"
error: `gate.visibility` must be true or false, not a string
 --> app.toml:2:14
  |
2 | visibility = "yes"
  |              ^^^^^"#,
        ),
        (
            "[gate]\ntimeout = 5",
            r#"
error: `gate.timeout` must be a duration such as "5s", not a number
 --> app.toml:2:11
  |
2 | timeout = 5
  |           ^"#,
        ),
        (
            "[gate]\ntimeout = \"5 sec\"",
            r#"
error: `gate.timeout`: "5 sec" is not a duration
 --> app.toml:2:11
  |
2 | timeout = "5 sec"
  |           ^^^^^^^
  = help: write it like 250ms, 5s, 10m, 2h or 1d"#,
        ),
        (
            "[limits]\nmemory = \"64 mb\"",
            r#"
error: `limits.memory`: "64 mb" is not a size
 --> app.toml:2:10
  |
2 | memory = "64 mb"
  |          ^^^^^^^
  = help: write it like 512KiB, 64MiB or 1GiB"#,
        ),
        (
            "[gate]\nreplicas = [1]",
            r#"
error: each of `gate.replicas` must be a string, not a number
 --> app.toml:2:13
  |
2 | replicas = [1]
  |             ^"#,
        ),
        (
            "[[gate.timeout]]",
            r#"
error: `gate.timeout` must be a duration such as "5s", not an array
 --> app.toml:1:1
  |
1 | [[gate.timeout]]
  | ^^^^^^^^^^^^^^^^"#,
        ),
        (
            "[[sink.stdout.more]]",
            r#"
error: each sink is one table, in single brackets
 --> app.toml:1:8
  |
1 | [[sink.stdout.more]]
  |        ^^^^^^
  = help: write [sink.stdout.NAME]"#,
        ),
        (
            "[admin]\nlisten = \"localhost\"",
            r#"
error: `admin.listen` must be an address such as "127.0.0.1:9464"
 --> app.toml:2:10
  |
2 | listen = "localhost"
  |          ^^^^^^^^^^^"#,
        ),
        (
            "[limits]\nin_flight = 0",
            r#"
error: `limits.in_flight` must be a whole number, 1 or more
 --> app.toml:2:13
  |
2 | in_flight = 0
  |             ^"#,
        ),
        (
            "[outbox]\ntable = \"${SCHEMA}.outbox\"",
            r#"
error: the variable SCHEMA is not set
 --> app.toml:2:10
  |
2 | table = "${SCHEMA}.outbox"
  |          ^^^^^^^^^
  = help: set SCHEMA in the environment, or give a default: ${SCHEMA:-...}"#,
        ),
        (
            "[outbox]\npreset = \"debezum\"",
            r#"
error: `outbox.preset` has no such choice
 --> app.toml:2:10
  |
2 | preset = "debezum"
  |          ^^^^^^^^^ did you mean "debezium"?
  = help: it can be "debezium""#,
        ),
        (
            "[outbox.columns]\nkwarg = \"payload\"",
            r#"
error: a task has no field `kwarg`
 --> app.toml:2:1
  |
2 | kwarg = "payload"
  | ^^^^^ did you mean `kwargs`?
  = help: left of the = stands the field, right of it your column; the fields are id, task, args, kwargs, payload, body, key, queue, headers, priority, run_at, expires_at and options"#,
        ),
        (
            "[outbox]\ntable = \"\"",
            r#"
error: `outbox.table`: "" names no table
 --> app.toml:2:9
  |
2 | table = ""
  |         ^^
  = help: a table is written as name, or as schema.name"#,
        ),
        (
            "[outbox]\ntable = \"${PASSWORD} x\"",
            r#"
error: `outbox.table`: this value names no table
 --> app.toml:2:9
  |
2 | table = "${PASSWORD} x"
  |         ^^^^^^^^^^^^^^^
  = help: a name with other characters than letters, digits and _ needs double quotes"#,
        ),
        (
            "[outbox.columns]\nid = \"\"",
            r#"
error: `outbox.columns.id`: id needs a column
 --> app.toml:2:6
  |
2 | id = ""
  |      ^^
  = help: no task is without it"#,
        ),
        (
            "[gate]\nreplicas = [\"postgres://u:hunter2@h/d?sslmod=require\"]",
            r#"
error: `gate.replicas`: the URL has an unknown key
 --> app.toml:2:13
  |
2 | replicas = ["***"]
  |             ^^^^^
  = help: did you mean sslmode?"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"rediss://:hunter2@h/zero\"",
            r#"
error: `sink.celery.more.broker_url` must end in a database number, such as /0
 --> app.toml:2:14
  |
2 | broker_url = "***"
  |              ^^^^^"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"redis://h\"\npriority_steps = [3, 0]",
            r#"
error: `sink.celery.more.priority_steps` must ascend from 0, up to 9 at most
 --> app.toml:3:18
  |
3 | priority_steps = [3, 0]
  |                  ^^^^^^
  = help: [0, 3, 6, 9]"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"redis://h\"\nnative_delay = \"1h\"",
            r#"
error: `sink.celery.more.native_delay` is for RabbitMQ
 --> app.toml:3:16
  |
3 | native_delay = "1h"
  |                ^^^^
  = help: with Redis, tasks wait in the hold table until their time has come"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"amqp://h\"\nnative_delay = \"3107d\"",
            r#"
error: `sink.celery.more.native_delay` must not be longer than 3106d
 --> app.toml:3:16
  |
3 | native_delay = "3107d"
  |                ^^^^^^^
  = help: that is all that Celery's delay queues have room for"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"redis://h\"\ntimeout = \"0s\"",
            r#"
error: `sink.celery.more.timeout` must be longer than nothing
 --> app.toml:3:11
  |
3 | timeout = "0s"
  |           ^^^^"#,
        ),
        (
            "[sink.sidekiq.more]\nurl = \"redis+cluster://:hunter2@h\"",
            r#"
error: `sink.sidekiq.more.url` names a Redis Cluster, where Sidekiq cannot work
 --> app.toml:2:7
  |
2 | url = "***"
  |       ^^^^^
  = help: name one Redis, or its sentinels"#,
        ),
        (
            "[sink.dramatiq.more]\nurl = \"redis://h\"\nahead = \"8d\"",
            r#"
error: `sink.dramatiq.more.ahead` must be shorter than 7 days
 --> app.toml:3:9
  |
3 | ahead = "8d"
  |         ^^^^"#,
        ),
        (
            "[[route]]\ntask = \"a\"\nsink = \"worker\"",
            r#"
error: there is no sink named "worker"
 --> app.toml:3:8
  |
3 | sink = "worker"
  |        ^^^^^^^^ did you mean "workers"?
  = help: the sinks are "workers""#,
        ),
        (
            "[[route]]\ntask = \"audit*\"\nsink = \"workers\"",
            r#"
error: `route.task`: "audit*" is not a pattern
 --> app.toml:2:8
  |
2 | task = "audit*"
  |        ^^^^^^^^
  = help: write a task's whole name, or a prefix such as "audit.*", or "*" for every task"#,
        ),
        (
            "[[route]]\ntask = \"a\"",
            r#"
error: [[route]] has no `sink`
 --> app.toml:1:1
  |
1 | [[route]]
  | ^^^^^^^^^"#,
        ),
        (
            "[[route]]\ntask = \"a\"\nsink = \"workers\"\nretry = { backoff = \"1s-10m\" }",
            r#"
error: `route.retry.backoff`: "1s-10m" is not a backoff
 --> app.toml:4:21
  |
4 | retry = { backoff = "1s-10m" }
  |                     ^^^^^^^^
  = help: write it like "1s..10m": the shortest pause, two dots, the longest"#,
        ),
        (
            "[sink.pubsub.audit]\nurl = \"https://u:hunter2@h/\"",
            r#"
error: sink type pubsub is not part of this build; it has: TYPES
 --> app.toml:1:7
  |
1 | [sink.pubsub.audit]
  |       ^^^^^^"#,
        ),
        (
            "[sink.celrey.more]",
            r#"
error: unknown sink type celrey; this build has: TYPES
 --> app.toml:1:7
  |
1 | [sink.celrey.more]
  |       ^^^^^^ did you mean `celery`?"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"sentinel://u:hunter2@h;redis://:hunter2@h\"\nmaster_name = \"m\"",
            r#"
error: `sink.celery.more.broker_url` names several brokers, of which not all are sentinel://
 --> app.toml:2:14
  |
2 | broker_url = "***"
  |              ^^^^^"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"amqp://u:hunter2@h;redis://:hunter2@h\"",
            r#"
error: `sink.celery.more.broker_url` names several brokers, and number 2 is no URL of an AMQP broker
 --> app.toml:2:14
  |
2 | broker_url = "***"
  |              ^^^^^
  = help: amqp://user:password@host:5672/vhost"#,
        ),
        (
            "[sink.celery.more]\nbroker_url = \"redis://:hunter2@a;redis://:hunter2@b\"",
            r#"
error: `sink.celery.more.broker_url` names several brokers
 --> app.toml:2:14
  |
2 | broker_url = "***"
  |              ^^^^^
  = help: two Redis are two sets of data, so name one, or its sentinels"#,
        ),
        (
            "[sink.stdout.workers]",
            r#"
error: the name "workers" is used by two sinks
 --> app.toml:1:1
  |
1 | [sink.stdout.workers]
  | ^^^^^^^^^^^^^^^^^^^^^
  = help: routes refer to sinks by name alone; there is also [sink.celery.workers]"#,
        ),
        (
            "[gate]\nreplicas = \"postgres://u:hunter2@h/db\"",
            r#"
error: `gate.replicas` must be an array, not a string
 --> app.toml:2:12
  |
2 | replicas = "***"
  |            ^^^^^"#,
        ),
        (
            "gate = { replicas = [\"postgres://u:hunter2@h/db\"], timeout = \"${PASSWORD}\" }",
            r#"
error: `gate.timeout`: this value is not a duration
 --> app.toml:1:62
  |
1 | gate = { replicas = ["***"], timeout = "${PASSWORD}" }
  |                                        ^^^^^^^^^^^^^
  = help: write it like 250ms, 5s, 10m, 2h or 1d"#,
        ),
    ] {
        // What is missing comes below, so that the lines above keep their numbers.
        let error = parse(&format!("{lines}\n{BASE}")).expect_err(lines);
        let expected = expected.replace("TYPES", &types());
        assert_eq!(format!("\n{error}"), expected, "{lines}");
    }
}

/// The types of sinks that this build has.
fn types() -> String {
    let is_there = |kind: &&str| {
        let is_built = [
            ("kafka", cfg!(feature = "kafka")),
            ("sqs", cfg!(feature = "sqs")),
        ];
        !is_built.contains(&(*kind, false))
    };
    let kinds = FEATURES.iter().copied().filter(is_there);
    kinds.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_sink_that_is_not_compiled_in_is_named_with_its_feature() {
    for (kind, is_there) in [
        ("kafka", cfg!(feature = "kafka")),
        ("sqs", cfg!(feature = "sqs")),
    ] {
        let error = parse(&format!("[sink.{kind}.more]\n{BASE}")).expect_err("keys are missing");
        let error = error.to_string();
        let told = error.contains(&format!(
            "sink type {kind} is not compiled into this binary"
        )) && error.contains(&format!("help: build it with --features {kind}"));
        assert_eq!(told, !is_there, "{error}");
    }
}

/// Properties of Kafka are free in their names, and hidden in their values.
#[cfg(feature = "kafka")]
#[test]
fn properties_are_free_and_hidden() {
    let sink = "[sink.kafka.more]\nbrokers = \"h\"\ntopic = \"t\"\n";
    let good = "properties = { \"linger.ms\" = \"5\", \"client.rack\" = \"${PASSWORD}\" }";
    parse(&format!("{sink}{good}\n{BASE}")).expect("they are free");
    for bad in [
        "properties = { \"acks\" = \"hunter2\" }",
        "properties = { \"sasl.mechanism\" = [\"hunter2\"] }",
    ] {
        let error = parse(&format!("{sink}{bad}\n{BASE}")).expect_err(bad);
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("***"), "{error}");
    }
}

/// Mistakes for which the rest of the base would be in the way.
#[test]
fn mistakes_of_the_whole_are_told() {
    for (text, expected) in [
        (
            "",
            r#"
error: there is no [postgres] section
--> app.toml
 = help: add
         [postgres]
         url = "postgres://aftercommit@localhost/app""#,
        ),
        (
            "[postgres]\nurl = \"postgres://u:hunter2@h/db\n",
            r#"
error: this string is not closed
 --> app.toml:2:33
  |
2 | url = ***
  |          ^"#,
        ),
        (
            "[postgres]\nurl = \"${DATABASE_URL}\"\n[sink.stdout.out]",
            r#"
error: there is no route: no task would go anywhere
--> app.toml
 = help: add
         [[route]]
         task = "*"
         sink = "out""#,
        ),
        (
            "[postgres]\nurl = \"${DATABASE_URL}\"\n[[route]]\ntask = \"*\"\nsink = \"a\"",
            r#"
error: there is no sink: tasks have nowhere to go
--> app.toml
 = help: add
         [sink.celery.workers]
         broker_url = "redis://localhost:6379/0""#,
        ),
        (
            "[postgres]\nurl = \"$DATABASE_URL\"\nurl_file = \"b\"\n[sink.celery.w]\n[[route]]\ntask = \"*\"\nsink = \"w\"",
            r#"
error: `postgres.url`: the text is not a connection string
 --> app.toml:2:7
  |
2 | url = "***"
  |       ^^^^^
  = help: a variable is written ${NAME}

error: [postgres] has both `url` and `url_file`
 --> app.toml:3:1
  |
3 | url_file = "b"
  | ^^^^^^^^
  = help: keep one of the two

error: `sink.celery.w.broker_url` is missing
 --> app.toml:4:1
  |
4 | [sink.celery.w]
  | ^^^^^^^^^^^^^^^
  = help: give the Celery application's, or broker_url_file

app.toml: 3 errors"#,
        ),
        (
            "[postgres]\nurl = \"postgres://:hunter2@h/d\"\nslot = \"After-Commit\"\n[sink.stdout.w]\n[[route]]\ntask = \"*\"\nsink = \"w\"",
            r#"
error: `postgres.url`: the URL names no user
 --> app.toml:2:7
  |
2 | url = "***"
  |       ^^^^^
  = help: write postgres://user@host/database

error: `postgres.slot`: "After-Commit" is not a name for a slot
 --> app.toml:3:8
  |
3 | slot = "After-Commit"
  |        ^^^^^^^^^^^^^^
  = help: 1 to 63 of lower-case letters, digits and underscores

app.toml: 2 errors"#,
        ),
        (
            "[postgres]\nurl = \"postgres://u@h/d\"\nheal = true\n[outbox]\nretention = \"keep\"\n[sink.stdout.w]\n[[route]]\ntask = \"*\"\nsink = \"w\"",
            r#"
error: `postgres.heal` needs `outbox.retention` = "delete", which is another one (line 5)
 --> app.toml:3:8
  |
3 | heal = true
  |        ^^^^
  = help: rows that stay in the table are not told from those that were not sent: set retention = "delete", or heal = false"#,
        ),
        (
            "[sink.celery]\nbroker_url = \"redis://h\"\n[sink.workers]\nqueue = \"q\"\n[route]\ntask = \"*\"\n[postgres]\nurl = \"$DATABASE_URL\"",
            r#"
error: a sink of type celery has no name
 --> app.toml:1:1
  |
1 | [sink.celery]
  | ^^^^^^^^^^^^^
  = help: write [sink.celery.NAME]; routes refer to it by that name

error: the sink workers has no type
 --> app.toml:3:7
  |
3 | [sink.workers]
  |       ^^^^^^^
  = help: write [sink.TYPE.workers]; the types are TYPES

error: routes are a list, and each is written [[route]]
 --> app.toml:5:1
  |
5 | [route]
  | ^^^^^^^
  = help: write, for each route
          [[route]]
          task = "*"
          sink = "NAME"

app.toml: 3 errors"#,
        ),
    ] {
        let error = parse(text).expect_err(text);
        let expected = expected.replace("TYPES", &types());
        assert_eq!(format!("\n{error}"), expected, "{text}");
    }
}
