//! `[outbox]`: the table, its columns, and what happens to settled rows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `[outbox]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The outbox table, as SQL writes it: `schema.name`, in double quotes where it has to be. Without a schema: `public`.
    pub table: String,
    /// What happens to a settled row.
    pub retention: Retention,
    /// The width of the first partition, with `retention = "partition"`; the next ones are as wide as the one before.
    #[serde(deserialize_with = "width")]
    pub partition: Duration,
    /// How long a partition stays when its time is over and all in it is settled.
    #[serde(deserialize_with = "crate::units::duration")]
    pub partition_keep: Duration,
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
    /// It stays until the whole of its partition is settled; then that is dropped.
    Partition,
}

/// A minute to a year: of shorter ones there would be thousands.
fn width<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    const MINUTE: Duration = Duration::from_secs(60);
    const YEAR: Duration = Duration::from_secs(366 * 86_400);
    let width = crate::units::duration(d)?;
    match (MINUTE..=YEAR).contains(&width) {
        true => Ok(width),
        false => Err(de::Error::custom("a partition is 1m to 366d wide")),
    }
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
            partition: Duration::from_secs(86_400),
            partition_keep: Duration::from_secs(3_600),
            preset: None,
            columns: BTreeMap::new(),
        }
    }
}
