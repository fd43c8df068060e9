//! Which held tasks a command is about.

use std::time::Duration;

use clap::ValueEnum;
use tokio_postgres::types::{ToSql, Type};

use crate::route::Pattern;
use crate::units::parse_duration;

/// Which held tasks: those that fit every one of these.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which tasks")]
pub(super) struct Filter {
    /// In this state; can be given more than once
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    pub(super) state: Vec<State>,

    /// Of this name: exact, or a prefix such as "audit.*"
    #[arg(long, value_name = "PATTERN")]
    task: Option<Pattern>,

    /// For this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// With this ordering key
    #[arg(long)]
    key: Option<String>,

    /// Held for longer than this: 90s, 1h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older_than: Option<Duration>,

    /// With this id of the task; can be given more than once
    #[arg(long)]
    id: Vec<String>,
}

/// A state, as the table names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum State {
    /// Waits for its time
    Scheduled,
    /// Waits for another attempt
    Retrying,
    /// Is not sent again by itself
    Dead,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Scheduled => "scheduled",
            State::Retrying => "retrying",
            State::Dead => "dead",
        }
    }
}

impl Filter {
    /// Whether a task is named by its id, or others are left out by something else than their state.
    pub(super) fn narrows(&self) -> bool {
        self.names_tasks()
            || self.task.is_some()
            || self.sink.is_some()
            || self.key.is_some()
            || self.older_than.is_some()
    }

    /// Whether tasks are named one by one.
    pub(super) fn names_tasks(&self) -> bool {
        !self.id.is_empty()
    }

    /// The rows of a slot that fit.
    pub(super) fn condition(&self, slot: &str) -> Condition {
        let mut condition = Condition::new(slot);
        if !self.state.is_empty() {
            let states: Vec<&str> = self.state.iter().map(|state| state.name()).collect();
            condition.and("h.state = any (?)", states, Type::TEXT_ARRAY);
        }
        match &self.task {
            None | Some(Pattern::All) => {}
            Some(Pattern::Exact(name)) => condition.and("h.task = ?", name.clone(), Type::TEXT),
            Some(Pattern::Prefix(prefix)) => {
                condition.and("h.task ^@ ? and h.task <> ?", prefix.clone(), Type::TEXT)
            }
        }
        if let Some(sink) = &self.sink {
            condition.and("h.sink = ?", sink.clone(), Type::TEXT);
        }
        if let Some(key) = &self.key {
            condition.and("h.key = ?", key.clone(), Type::TEXT);
        }
        if let Some(age) = self.older_than {
            let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            let older = "h.held_at < clock_timestamp() - ? * interval '1 microsecond'";
            condition.and(older, micros, Type::INT8);
        }
        if !self.id.is_empty() {
            condition.and("h.id = any (?)", self.id.clone(), Type::TEXT_ARRAY);
            let indexed =
                "hashtextextended(h.id, 0) in (select hashtextextended(i, 0) from unnest(?) i)";
            condition.and(indexed, self.id.clone(), Type::TEXT_ARRAY);
        }
        condition
    }
}

/// A condition on rows `h` of the hold table, and its parameters.
pub(super) struct Condition {
    sql: String,
    params: Vec<(Box<dyn ToSql + Sync>, Type)>,
}

impl Condition {
    /// All rows of a slot.
    pub(super) fn new(slot: &str) -> Condition {
        let mut condition = Condition {
            sql: "true".to_owned(),
            params: Vec::new(),
        };
        condition.and("h.slot = ?", slot.to_owned(), Type::TEXT);
        condition
    }

    /// Narrows it down; each `?` is the value.
    pub(super) fn and(&mut self, sql: &str, value: impl ToSql + Sync + 'static, ty: Type) {
        self.params.push((Box::new(value), ty));
        let place = format!("${}", self.params.len());
        self.sql.push_str(" and ");
        self.sql.push_str(&sql.replace('?', &place));
    }

    /// The SQL.
    pub(super) fn sql(&self) -> &str {
        &self.sql
    }

    /// The parameters, and behind them some numbers of the query's own, which it calls by their [`place`](Self::place).
    pub(super) fn params<'a>(&'a self, numbers: &'a [i64]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
        let own = self.params.iter();
        let own = own.map(|(value, ty)| (&**value as &(dyn ToSql + Sync), ty.clone()));
        let more = numbers.iter();
        let more = more.map(|number| (number as &(dyn ToSql + Sync), Type::INT8));
        own.chain(more).collect()
    }

    /// How the query calls its own number: the first is 0.
    pub(super) fn place(&self, index: usize) -> String {
        format!("${}", self.params.len() + 1 + index)
    }
}
