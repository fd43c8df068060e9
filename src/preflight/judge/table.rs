//! The outbox table: there, in the WAL, and with the columns that are mapped.

use super::partitions;
use crate::control::ident;
use crate::preflight::facts::{Facts, Table};
use crate::preflight::{Class, Expectation, Finding};

/// Judges the table alone.
pub fn judge(facts: &Facts, expected: &Expectation) -> Vec<Finding> {
    let name = &expected.table;
    let fatal = |what: String| Finding::fatal(Class::Configuration, what);
    let Some(table) = &facts.table else {
        let missing = fatal(format!(
            "table {name} does not exist in database {:?}",
            facts.database
        ));
        return vec![match &facts.near_table {
            Some(near) => missing.remedy(format!(
                "there is {near}: name it in [outbox] table, in upper and lower case as it is written there"
            )),
            None => missing.remedy("make it: aftercommit init"),
        }];
    };
    match table.kind {
        'r' | 'p' => {}
        other => {
            let kind = match other {
                'v' => "a view",
                'm' => "a materialized view",
                'f' => "a foreign table",
                _ => "no table",
            };
            return vec![
                fatal(format!(
                    "{name} is {kind}: only tables, plain or partitioned, are replicated"
                ))
                .remedy("name the table itself in [outbox] table"),
            ];
        }
    }
    let mut findings = Vec::new();
    match table.persistence {
        'p' => {}
        'u' => findings.push(
            fatal(format!(
                "table {name} is unlogged: its rows are not in the WAL, and would be skipped without an error"
            ))
            .remedy("rows that are in it already will not be sent: insert them again")
            .sql(format!("alter table {} set logged", name.to_sql())),
        ),
        _ => findings.push(
            fatal(format!("table {name} is temporary"))
                .remedy("name a permanent table in [outbox] table"),
        ),
    }
    if let Some(partition) = &table.silent_partition {
        findings.push(
            fatal(format!(
                "partition {partition} of {name} is unlogged or foreign: its rows would be skipped without an error"
            ))
            .remedy(format!(
                "alter table {partition} set logged, or detach the foreign one"
            )),
        );
    }
    let missing: Vec<&String> = expected
        .required
        .iter()
        .filter(|wanted| !table.columns.iter().any(|column| column.name == **wanted))
        .collect();
    if !missing.is_empty() {
        let has: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
        findings.push(
            fatal(format!(
                "table {name} has no column {}; it has {}",
                list(&missing),
                has.join(", ")
            ))
            .remedy(
                "map the fields to the table's columns in [outbox.columns], or add what is missing",
            ),
        );
    }
    findings.extend(partitions::judge_key(table, expected));
    findings.extend(moments(table, expected));
    findings
}

/// Types of columns that cannot say when something is: without a time zone it may be any of a day's hours.
fn moments(table: &Table, expected: &Expectation) -> Vec<Finding> {
    let name = &expected.table;
    let is_vague = |kind: &str| {
        matches!(
            kind,
            "date" | "interval" | "integer" | "bigint" | "numeric" | "double precision"
        ) || kind.starts_with("time") && kind != "timestamp with time zone"
    };
    table
        .columns
        .iter()
        .filter(|column| expected.moments.contains(&column.name) && is_vague(&column.kind))
        .map(|column| {
            let quoted = ident(&column.name);
            let finding = Finding::fatal(
                Class::Configuration,
                format!(
                    "column {quoted} of {name} is of type {}: a task that has a value there could not be dispatched",
                    column.kind
                ),
            );
            match column.kind.as_str() {
                "timestamp without time zone" => finding
                    .remedy(format!(
                        "make it a timestamptz, as below (it rewrites the table; put the time zone that its values are \
                         in for UTC), or map another column in [outbox.columns]; {quoted} = \"\" there if it is no field"
                    ))
                    .sql(format!(
                        "alter table {} alter column {quoted} type timestamptz using {quoted} at time zone 'UTC'",
                        name.to_sql()
                    )),
                _ => finding.remedy(
                    "map a column of type timestamptz in [outbox.columns], or \"\" if the table has none for it",
                ),
            }
        })
        .collect()
}

/// Names, quoted as identifiers.
pub(super) fn list(names: &[&String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| ident(name)).collect();
    quoted.join(", ")
}
