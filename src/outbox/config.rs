//! `[outbox]`: the table, its columns, and what happens to settled rows.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `[outbox]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The outbox table, as SQL writes it: `schema.name`, in double quotes where it has to be. Without a schema: `public`.
    pub table: String,
    /// What happens to a settled row.
    pub retention: Retention,
    /// A map of columns that we ship. It is the whole map: a field that is not in it has no column, unless `columns`
    /// gives it one.
    pub preset: Option<Preset>,
    /// Field of the task to column of the table, for what differs from the preset, or from the field's own name.
    /// Exactly as the table has it; `""` says that the table has no column for the field.
    pub columns: BTreeMap<String, String>,
}

/// What happens to a settled row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// It is deleted.
    Delete,
    /// It stays; the application prunes.
    Keep,
}

/// A map of columns that we ship.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The table of Debezium's outbox event router: id, aggregatetype, aggregateid, type, payload.
    Debezium,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            table: "aftercommit.outbox".to_owned(),
            retention: Retention::Delete,
            preset: None,
            columns: BTreeMap::new(),
        }
    }
}
