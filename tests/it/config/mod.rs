//! The configuration: variables, secrets, and what is told of one that can be used.

mod errors;
mod generated;

use aftercommit::config::{Config, Severity};

fn env(name: &str) -> Option<String> {
    match name {
        "DATABASE_URL" => Some("postgres://app:hunter2@db/app".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("app.toml", text, &env).map_err(|error| error.to_string())
}

/// What is needed for a configuration that can be used.
const BASE: &str = r#"
[postgres]
url = "${DATABASE_URL}"
[sink.celery.workers]
broker_url = "redis://localhost:6379/0"
[[route]]
task = "*"
sink = "workers"
"#;

#[test]
fn a_variable_never_changes_the_structure() {
    let env = |_: &str| Some("x\"\n[gate]\ntimeout = 'no".to_owned());
    let text = format!(
        "{}\n[outbox.columns]\nkey = \"${{X}}\"",
        BASE.replace("${DATABASE_URL}", "postgres://u@h/d")
    );
    let config = Config::parse("app.toml", &text, &env).expect("it is one string");
    assert_eq!(
        config.outbox.columns.get("key").map(String::as_str),
        Some("x\"\n[gate]\ntimeout = 'no")
    );
}

#[test]
fn secrets_are_in_no_debug_output() {
    let text = BASE.replace("redis://localhost", "redis://:hunter2@localhost");
    let config = parse(&text).expect("it can be used");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_is_odd_is_told_with_its_line() {
    let text = format!(
        "{BASE}retry = {{ attempts = 3, backoff = \"1s..2s\", hold_after = \"1s\" }}
[[route]]
task = \"audit.*\"
sink = \"workers\"
[outbox]
retention = \"delete\"
[limits]
slot_lag = \"2GiB\"
[admin]
listen = \"127.0.0.1:1\"
[sink.stdout.spare]
[gate]
visibility = false
"
    );
    let told: Vec<_> = parse(&text)
        .expect("it can be used")
        .findings
        .into_iter()
        .map(|f| (f.severity, f.line, f.text))
        .collect();
    let expected = [
        (Severity::Warning, 10, "no task reaches the route for \"audit.*\": the route for \"*\" (line 6) comes first and takes them all"),
        (Severity::Note, 17, "[admin] takes effect with the status page; until then nothing listens"),
        (Severity::Warning, 19, "no route names the sink \"spare\""),
        (Severity::Warning, 21, "the gate is off: a worker can get a task before it can see the row"),
    ]
    .map(|(severity, line, text)| (severity, Some(line), text.to_owned()));
    assert_eq!(told, expected);
    let quiet = parse(BASE).expect("it can be used");
    assert_eq!(quiet.findings, []);
}

#[test]
fn a_broker_in_a_file_of_its_own_is_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.toml");
    let text = BASE
        .replace("\"${DATABASE_URL}\"", "\"postgres://u@h/d\"")
        .replace(
            "broker_url = \"redis://localhost:6379/0\"",
            "broker_url_file = \"broker\"",
        );
    std::fs::write(&path, text).expect("written");
    let load = |url: &str| {
        std::fs::write(folder.path().join("broker"), url).expect("written");
        Config::load(&path).map_err(|error| error.to_string())
    };
    let config = load("redis://:hunter2@localhost:6379/0\n").expect("it can be used");
    assert_eq!(config.sinks.open().expect("a sink").len(), 1);
    let error = load("redis://:hunter2@localhost/one\n").expect_err("no database");
    assert!(
        error.contains("`sink.celery.workers.broker_url_file` must end in a database number"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}
