//! Which column of the outbox table holds which field of a task.
//!
//! Two steps: the configuration says names, once; each Relation message says where the names stand, as often as the
//! table changes.

use std::fmt;

use super::config::{Config, Preset};
use super::table::{ParseTableNameError, TableName};
use super::task::{Field, FieldSet};
use crate::near;

/// The outbox table, and the name of the column for each field.
#[derive(Clone, Debug)]
pub struct Columns {
    table: TableName,
    /// By index of the field; `None` where the table is not asked for it.
    mapped: [Option<Mapped>; Field::ALL.len()],
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Mapped {
    column: String,
    source: Source,
}

/// Who says that a column holds a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Nobody: the column has the field's own name.
    OwnName,
    Preset(Preset),
    Configured,
}

/// `[outbox]` makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ColumnsError {
    /// `table`.
    #[error("[outbox] table: {0}")]
    Table(#[from] ParseTableNameError),
    /// A key of `[outbox.columns]` that is no field of a task.
    #[error("[outbox.columns] maps {name:?}, but a task has no such field{}", did_you_mean(.near))]
    UnknownField {
        /// The key.
        name: String,
        /// The field that was probably meant.
        near: Option<&'static str>,
    },
    /// A field that every task has was given no column.
    #[error("[outbox.columns] gives {0} no column, but no task is without it")]
    Required(&'static str),
}

fn did_you_mean<T: AsRef<str>>(near: &Option<T>) -> String {
    near.as_ref()
        .map(|near| format!("; did you mean {:?}?", near.as_ref()))
        .unwrap_or_default()
}

/// OIDs of the types json and jsonb (`pg_type.dat` of Postgres). A domain over them has an OID of its own.
const JSON_TYPES: [u32; 2] = [114, 3802];

/// Every task has these: they are never NULL.
pub(super) const REQUIRED: [Field; 2] = [Field::Id, Field::Task];

impl Preset {
    /// The whole map: a field that is not in it has no column, unless `[outbox.columns]` gives it one.
    fn columns(self) -> &'static [(Field, &'static str)] {
        match self {
            // Debezium documentation, "Outbox Event Router": `aggregatetype` names the topic, `aggregateid` is the
            // message's key.
            Preset::Debezium => &[
                (Field::Id, "id"),
                (Field::Task, "type"),
                (Field::Key, "aggregateid"),
                (Field::Queue, "aggregatetype"),
                (Field::Payload, "payload"),
            ],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Preset::Debezium => "debezium",
        }
    }
}

impl Columns {
    /// Reads `[outbox]`: the fields' own names, or those of the preset, and over them `[outbox.columns]`. An empty
    /// column name there says that the table has no column for the field.
    ///
    /// # Errors
    /// A table name that is none, an unknown field, or no column for a required one.
    pub fn new(config: &Config) -> Result<Columns, ColumnsError> {
        let mut columns = Columns {
            table: config.table.parse()?,
            mapped: Default::default(),
        };
        match config.preset {
            None => Field::ALL
                .into_iter()
                .for_each(|field| columns.map(field, field.name(), Source::OwnName)),
            Some(preset) => preset
                .columns()
                .iter()
                .for_each(|(field, column)| columns.map(*field, column, Source::Preset(preset))),
        }
        for (name, column) in &config.columns {
            let field = Field::ALL
                .into_iter()
                .find(|field| field.name() == name)
                .ok_or_else(|| ColumnsError::UnknownField {
                    name: name.clone(),
                    near: near::of(name, Field::ALL.map(Field::name)),
                })?;
            columns.map(field, column, Source::Configured);
        }
        columns.give_way();
        match REQUIRED
            .into_iter()
            .find(|field| columns.column(*field).is_none())
        {
            Some(field) => Err(ColumnsError::Required(field.name())),
            None => Ok(columns),
        }
    }

    /// A column that `[outbox.columns]` gives to a field is not also taken for the field of its own name: with
    /// `kwargs = "payload"` a task has kwargs and no payload. Its identity and its name are never given away.
    fn give_way(&mut self) {
        let configured = self
            .mapped
            .iter()
            .flatten()
            .filter(|mapped| mapped.source == Source::Configured);
        let taken: Vec<String> = configured.map(|mapped| mapped.column.clone()).collect();
        for field in Field::ALL {
            let mapped = &mut self.mapped[field as usize];
            let gives_way = |mapped: &mut Mapped| {
                mapped.source == Source::OwnName && taken.contains(&mapped.column)
            };
            if !REQUIRED.contains(&field) {
                mapped.take_if(gives_way);
            }
        }
    }

    fn map(&mut self, field: Field, column: &str, source: Source) {
        let mapped = (!column.is_empty()).then(|| Mapped {
            column: column.to_owned(),
            source,
        });
        self.mapped[field as usize] = mapped;
    }

    /// The outbox table.
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// The column that holds a field, where the table has it; `None` if the table is not asked for the field.
    pub fn column(&self, field: Field) -> Option<&str> {
        let mapped = self.mapped[field as usize].as_ref()?;
        Some(&mapped.column)
    }

    /// Whether the table must have the column of a field: it is a task's identity or name, or was mapped in so many words.
    pub fn is_required(&self, field: Field) -> bool {
        let mapped = self.mapped[field as usize].as_ref();
        mapped.is_some_and(|mapped| mapped.source != Source::OwnName) || REQUIRED.contains(&field)
    }

    /// Finds the fields among the columns of the table: name and OID of the type, in the table's order.
    ///
    /// A column that is only looked for because it has a field's own name may be missing, unless no task is without
    /// that field.
    ///
    /// # Errors
    /// A column is missing.
    pub fn layout(&self, table_columns: &[(&str, u32)]) -> Result<Layout, LayoutError> {
        let mut steps = Vec::new();
        let mut json = FieldSet::default();
        for (field, mapped) in Field::ALL.into_iter().zip(&self.mapped) {
            let Some(mapped) = mapped else { continue };
            let mut columns = table_columns.iter().enumerate();
            match columns.find(|(_, (name, _))| *name == mapped.column) {
                Some((index, (_, type_id))) => {
                    steps.push((index, field));
                    if JSON_TYPES.contains(type_id) {
                        json.insert(field);
                    }
                }
                None if !self.is_required(field) => {}
                None => {
                    return Err(LayoutError {
                        table: self.table.clone(),
                        field,
                        mapped: mapped.clone(),
                        near: near::of(&mapped.column, self.unmapped(table_columns))
                            .map(str::to_owned),
                    });
                }
            }
        }
        steps.sort_by_key(|(index, _)| *index);
        Ok(Layout {
            column_count: table_columns.len(),
            steps: steps.into(),
            json,
        })
    }

    /// Columns of the table that hold no field.
    fn unmapped<'a>(&self, table_columns: &[(&'a str, u32)]) -> impl Iterator<Item = &'a str> {
        let mapped = |name: &str| {
            Field::ALL
                .into_iter()
                .any(|field| self.column(field) == Some(name))
        };
        table_columns
            .iter()
            .map(|(name, _)| *name)
            .filter(move |name| !mapped(name))
    }
}

/// The outbox table lacks a column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutError {
    table: TableName,
    field: Field,
    mapped: Mapped,
    near: Option<String>,
}

impl LayoutError {
    /// The column that is missing.
    pub fn column(&self) -> &str {
        &self.mapped.column
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayoutError { table, mapped, .. } = self;
        let column = &mapped.column;
        write!(f, "outbox table {table} has no column {column}, which ")?;
        let field = self.field.name();
        match mapped.source {
            Source::OwnName => write!(
                f,
                "every task needs; add it, or map another to {field} in [outbox.columns]"
            ),
            Source::Preset(preset) => write!(
                f,
                "the preset {:?} maps to {field}; add it, or map another in [outbox.columns]",
                preset.name()
            ),
            Source::Configured => {
                write!(f, "[outbox.columns] maps to {field}; add it or map another")
            }
        }?;
        f.write_str(&did_you_mean(&self.near))
    }
}

impl std::error::Error for LayoutError {}

/// Where the fields stand in a row of the outbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    column_count: usize,
    /// Index of a column and the field that it holds, in the order of the columns; a column may hold several fields.
    steps: Box<[(usize, Field)]>,
    json: FieldSet,
}

impl Layout {
    /// Number of columns in a row.
    pub fn column_count(&self) -> usize {
        self.column_count
    }

    /// The fields whose column is of type json or jsonb.
    pub fn json(&self) -> FieldSet {
        self.json
    }

    /// Index of a column and the field that it holds, in the order of the columns.
    pub fn steps(&self) -> &[(usize, Field)] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
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
}
