//! Floor 4: is the server as we need it? Asked at every connect, and once a minute.
//!
//! Most of what can go wrong with a slot and a publication is silent: rows are skipped, without an error, when the
//! table is not in the publication, was renamed and made again, is unlogged, or has a row filter. So the catalogs are
//! read ([`facts`]), judged by a pure function ([`judge`]), and each [`Finding`] carries the SQL that mends it.

mod facts;
mod judge;
mod replica;
mod standby;

use std::fmt;

use tokio_postgres::{Client, Error};

use crate::outbox::{Columns, Field, TableName};
use crate::replication::APPLICATION_NAME;

pub use facts::{
    Column, Facts, Holding, Membership, PartitionKey, Partitioning, Publication, Role, Slot, Table,
    facts,
};
pub use judge::{drift, judge, judge_ground, judge_role, judge_table};
pub use replica::check_replica;
pub use standby::check_walsender;

/// What the daemon is configured for.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The logical replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox table.
    pub table: TableName,
    /// Columns that the table must have.
    pub required: Vec<String>,
    /// Columns that are used where the table has them.
    pub optional: Vec<String>,
    /// Columns that hold a point in time, where the table has them.
    pub moments: Vec<String>,
    /// The `application_name` of our walsender connection.
    pub application_name: String,
    /// Settled rows are deleted.
    pub deletes: bool,
    /// Settled partitions are dropped, and those to come are made.
    pub partitions: bool,
    /// A lost slot is made again, and what is in the outbox is dispatched.
    pub heals: bool,
    /// The role that the daemon logs in as, where its rights are to be judged: by `init`, and when the server has
    /// refused the walsender. Otherwise the connection itself is the proof.
    pub role: Option<String>,
}

impl Expectation {
    /// What the daemon needs for this table, slot and publication; settled rows stay, and its login is not judged.
    pub fn new(columns: &Columns, slot: &str, publication: &str) -> Expectation {
        let (mut required, mut optional) = (Vec::new(), Vec::new());
        for field in Field::ALL {
            let names = match columns.is_required(field) {
                true => &mut required,
                false => &mut optional,
            };
            names.extend(columns.column(field).map(str::to_owned));
        }
        Expectation {
            slot: slot.to_owned(),
            publication: publication.to_owned(),
            table: columns.table().clone(),
            required,
            optional,
            moments: [Field::RunAt, Field::ExpiresAt]
                .into_iter()
                .filter_map(|field| columns.column(field).map(str::to_owned))
                .collect(),
            application_name: APPLICATION_NAME.to_owned(),
            deletes: false,
            partitions: false,
            heals: false,
            role: None,
        }
    }
}

/// One thing that is not as it has to be, or should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether the daemon may run.
    pub severity: Severity,
    /// What is wrong, and what comes of it.
    pub what: String,
    /// How it is mended, in words; may be empty.
    pub remedy: String,
    /// How it is mended, as SQL: statements in order, none if SQL cannot.
    pub sql: Vec<String>,
}

/// Whether the daemon may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// It may not.
    Fatal(Class),
    /// It may; the operator should know.
    Warning,
}

/// What kind of trouble a fatal finding is, and so how the process ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// It may pass by itself, as a failover does: try again.
    Temporary,
    /// Set up in a way that cannot work.
    Configuration,
    /// The slot is gone: do not restart blindly. It can be healed.
    SlotLost,
    /// The publication is gone: do not restart blindly.
    PublicationLost,
}

impl Finding {
    fn fatal(class: Class, what: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Fatal(class),
            what: what.into(),
            remedy: String::new(),
            sql: Vec::new(),
        }
    }

    fn warning(what: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Warning,
            ..Finding::fatal(Class::Configuration, what)
        }
    }

    fn remedy(mut self, words: impl Into<String>) -> Finding {
        self.remedy = words.into();
        self
    }

    fn sql(mut self, statement: impl Into<String>) -> Finding {
        self.sql.push(statement.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        for statement in &self.sql {
            write!(f, "\n    {statement};")?;
        }
        Ok(())
    }
}

/// What a preflight has seen, and what it makes of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the catalogs say; kept for [`drift`].
    pub facts: Facts,
    /// What is not as it should be; the fatal ones first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst class of the fatal findings; `None` where the daemon may run.
    pub fn fatal(&self) -> Option<Class> {
        worst(&self.findings)
    }
}

/// The worst class of the fatal findings; `None` where there is none.
pub fn worst(findings: &[Finding]) -> Option<Class> {
    findings
        .iter()
        .filter_map(|finding| match finding.severity {
            Severity::Fatal(class) => Some(class),
            Severity::Warning => None,
        })
        .max()
}

/// Looks at the server, in two round trips, and judges what it sees.
///
/// # Errors
/// Those of the connection, and of a server that refuses to be looked at.
pub async fn preflight(client: &Client, expected: &Expectation) -> Result<Report, Error> {
    let facts = facts(client, expected).await?;
    let findings = judge(&facts, expected);
    Ok(Report { facts, findings })
}
