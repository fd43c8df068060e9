//! `retention = "partition"`: an outbox that is partitioned by range of a date, and functions that make and drop its
//! partitions.

use crate::control::ident;
use crate::preflight::facts::{Facts, PartitionKey, Table};
use crate::preflight::{Class, Expectation, Finding};

/// Types that bound partitions in time.
const DATES: [&str; 3] = [
    "timestamp with time zone",
    "timestamp without time zone",
    "date",
];

/// Judges how the table is partitioned.
pub(super) fn judge_key(table: &Table, expected: &Expectation) -> Option<Finding> {
    if !expected.partitions {
        return None;
    }
    let how = match &table.partition_key {
        None => "not partitioned".to_owned(),
        Some(PartitionKey { strategy, .. }) if *strategy != 'r' => {
            "not partitioned by range".to_owned()
        }
        Some(PartitionKey { columns: 2.., .. }) => "partitioned by more than one column".to_owned(),
        Some(PartitionKey { kind: None, .. }) => "partitioned by an expression".to_owned(),
        Some(PartitionKey {
            kind: Some(kind), ..
        }) if !DATES.contains(&kind.as_str()) => format!("partitioned by a column of type {kind}"),
        Some(_) => return None,
    };
    Some(
        Finding::fatal(
            Class::Configuration,
            format!(
                "table {} is {how}: [outbox] retention = \"partition\" needs one that is partitioned by range of one \
                 column of type timestamptz, timestamp or date",
                expected.table
            ),
        )
        .remedy(
            "set another retention; or make it again: a table cannot be partitioned in place. Rename it, run \
             aftercommit init (which makes a partitioned aftercommit.outbox; one of your own you make before), and \
             insert what was not dispatched yet again",
        ),
    )
}

/// Judges the functions.
pub(super) fn judge(facts: &Facts, expected: &Expectation) -> Option<Finding> {
    let partitioning = &facts.partitioning;
    if !expected.partitions {
        return None;
    }
    let fatal = |what| Finding::fatal(Class::Configuration, what);
    if partitioning.missing {
        return Some(
            fatal(format!(
                "database {:?} lacks the functions that make and drop partitions",
                facts.database
            ))
            .remedy("make what is missing: aftercommit init"),
        );
    }
    if let (Some(owner), Some(table_owner)) =
        (&partitioning.foreign_owner, &partitioning.table_owner)
    {
        let mut finding = fatal(format!(
            "role {} owns the functions that make and drop partitions, but not table {}",
            ident(owner),
            expected.table
        ))
        .remedy("give them to the owner of the table:");
        for function in ["outbox_extend", "outbox_drop", "outbox_strays"] {
            finding = finding.sql(format!(
                "alter function aftercommit.{function} owner to {}",
                ident(table_owner)
            ));
        }
        return Some(finding);
    }
    let role = ident(&facts.holding.role);
    partitioning.closed.then(|| {
        fatal(format!(
            "role {role} may not make and drop partitions: it lacks execute on the functions aftercommit.outbox_*"
        ))
        .remedy("run init again as an administrator (--url), or as the owner:")
        .sql(format!(
            "grant execute on all functions in schema aftercommit to {role}"
        ))
    })
}
