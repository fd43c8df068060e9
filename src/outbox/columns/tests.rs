//! Which columns hold which fields, and what is said where one is missing.

use super::*;

fn config(preset: Option<Preset>, columns: &[(&str, &str)]) -> Config {
    Config {
        table: "shop.events".to_owned(),
        preset,
        columns: columns
            .iter()
            .map(|(field, column)| ((*field).to_owned(), (*column).to_owned()))
            .collect(),
        ..Config::default()
    }
}

fn columns(preset: Option<Preset>, map: &[(&str, &str)]) -> Columns {
    Columns::new(&config(preset, map)).unwrap()
}

/// Columns of type text.
fn texts<'a>(names: &[&'a str]) -> Vec<(&'a str, u32)> {
    names.iter().map(|name| (*name, 25)).collect()
}

const DEBEZIUM: [&str; 5] = ["id", "aggregatetype", "aggregateid", "type", "payload"];

#[test]
fn a_field_is_in_the_column_of_its_own_name() {
    let columns = columns(None, &[]);
    let layout = columns.layout(&texts(&["created_at", "task", "id", "run_at"]));
    let steps = [(1, Field::Task), (2, Field::Id), (3, Field::RunAt)];
    assert_eq!(layout.unwrap().steps(), steps);
    assert_eq!(columns.column(Field::RunAt), Some("run_at"));
    assert_eq!(columns.table().to_string(), "shop.events");
}

#[test]
fn a_preset_is_the_whole_map() {
    let columns = columns(Some(Preset::Debezium), &[]);
    let table = [&DEBEZIUM[..], &["headers", "run_at"]].concat();
    let layout = columns.layout(&texts(&table)).unwrap();
    assert_eq!(layout.column_count(), 7);
    assert_eq!(
        layout.steps(),
        [
            (0, Field::Id),
            (1, Field::Queue),
            (2, Field::Key),
            (3, Field::Task),
            (4, Field::Payload),
        ]
    );
}

#[test]
fn the_configuration_has_the_last_word() {
    let columns = columns(
        Some(Preset::Debezium),
        &[("queue", ""), ("run_at", "due"), ("key", "id")],
    );
    let layout = columns.layout(&texts(&[&DEBEZIUM[..], &["due"]].concat()));
    assert_eq!(
        layout.unwrap().steps(),
        [
            (0, Field::Id),
            (0, Field::Key),
            (3, Field::Task),
            (4, Field::Payload),
            (5, Field::RunAt),
        ]
    );
    assert_eq!(columns.column(Field::Queue), None);
}

#[test]
fn a_column_that_is_given_away_is_not_taken_twice() {
    let columns = columns(None, &[("kwargs", "payload"), ("key", "id")]);
    assert_eq!(columns.column(Field::Kwargs), Some("payload"));
    assert_eq!(columns.column(Field::Payload), None);
    assert_eq!(columns.column(Field::Key), Some("id"));
    assert_eq!(columns.column(Field::Id), Some("id"));
}

#[test]
fn a_columns_type_vouches_for_its_json() {
    // A domain over json, a jsonb, a text, a json that holds two fields.
    let table = [
        ("id", 2950),
        ("task", 25),
        ("args", 16_500),
        ("kwargs", 3802),
        ("headers", 25),
        ("data", 114),
    ];
    let columns = columns(None, &[("payload", "data"), ("options", "data")]);
    let json = columns.layout(&table).unwrap().json();
    let expected = [Field::Kwargs, Field::Payload, Field::Options];
    for field in Field::ALL {
        assert_eq!(json.contains(field), expected.contains(&field), "{field:?}");
    }
}

#[test]
fn a_missing_column_is_named_with_its_remedy() {
    let debezium = Some(Preset::Debezium);
    for (columns, table, words) in [
        (
            columns(None, &[("task", "name")]),
            &["id", "task"][..],
            "outbox table shop.events has no column name, which [outbox.columns] maps to task; add it or map another",
        ),
        (
            columns(None, &[("run_at", "dueAt")]),
            &["id", "task", "dueat"],
            "outbox table shop.events has no column dueAt, which [outbox.columns] maps to run_at; \
             add it or map another; did you mean \"dueat\"?",
        ),
        (
            columns(None, &[]),
            &["task"],
            "outbox table shop.events has no column id, which every task needs; \
             add it, or map another to id in [outbox.columns]",
        ),
        (
            columns(debezium, &[]),
            &["id", "type", "payload", "aggregatetype"],
            "outbox table shop.events has no column aggregateid, which the preset \"debezium\" maps to key; \
             add it, or map another in [outbox.columns]",
        ),
    ] {
        let error = columns.layout(&texts(table)).unwrap_err();
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn a_wrong_configuration_is_named() {
    for (config, words) in [
        (
            config(None, &[("tsak", "name")]),
            "[outbox.columns] maps \"tsak\", but a task has no such field; did you mean \"task\"?",
        ),
        (
            config(None, &[("zzz", "name")]),
            "[outbox.columns] maps \"zzz\", but a task has no such field",
        ),
        (
            config(None, &[("id", "")]),
            "[outbox.columns] gives id no column, but no task is without it",
        ),
        (
            Config {
                table: "a.b.c".to_owned(),
                ..Config::default()
            },
            "[outbox] table: a table is written as name, or as schema.name",
        ),
    ] {
        let error = Columns::new(&config).unwrap_err();
        assert_eq!(error.to_string(), words);
    }
}
