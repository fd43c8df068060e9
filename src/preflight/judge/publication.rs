//! The publication: there, with our table in it, whole.

use super::table::list;
use crate::control::{create_publication, create_slot, ident, literal};
use crate::preflight::facts::{Facts, Membership, Publication, Table};
use crate::preflight::{Class, Expectation, Finding};

pub(super) fn judge(facts: &Facts, expected: &Expectation) -> Vec<Finding> {
    let Some(publication) = &facts.publication else {
        return vec![missing(facts, expected)];
    };
    let name = ident(&expected.publication);
    let fatal = |what: String| Finding::fatal(Class::Configuration, what);
    let mut findings = Vec::new();
    if !publication.insert {
        findings.push(
            fatal(format!(
                "publication {name} does not publish inserts: every row would be skipped without an error"
            ))
            .sql(format!("alter publication {name} set (publish = 'insert')")),
        );
    }
    if let Some(table) = &facts.table {
        findings.extend(table_in(publication, table, expected));
    }
    if publication.insert && (publication.update || publication.delete || publication.truncate) {
        findings.push(more_than_inserts(publication, &name));
    }
    findings
}

fn missing(facts: &Facts, expected: &Expectation) -> Finding {
    let name = ident(&expected.publication);
    let slot = literal(&expected.slot);
    Finding::fatal(
        Class::PublicationLost,
        format!("publication {name} does not exist"),
    )
    .remedy(format!(
        "if it has never been made: aftercommit init. If it was dropped: make it again, as below. Rows that were \
         inserted while there was none are skipped by Postgres 18. Older servers stop at them with the error 42704; \
         then the slot has to be made again, too (select pg_drop_replication_slot({slot}); {}), and rows that it \
         has not sent yet have to be inserted again",
        create_slot(&expected.slot, facts.server_version)
    ))
    .sql(create_publication(&expected.publication, &expected.table))
}

/// How the table stands in it. A publication goes by OID: a table that was renamed and made again is not in it.
fn table_in(publication: &Publication, table: &Table, expected: &Expectation) -> Vec<Finding> {
    let name = ident(&expected.publication);
    let quoted = expected.table.to_sql();
    let fatal = |what: String| Finding::fatal(Class::Configuration, what);
    let mut findings = Vec::new();
    if let Some(ancestor) = &publication.ancestor {
        findings.push(
            fatal(format!(
                "publication {name} sends the rows of {} under the name of {ancestor}, of which it is a partition",
                expected.table
            ))
            .remedy(format!("set [outbox] table = \"{ancestor}\"")),
        );
        return findings;
    }
    let published =
        publication.all_tables || publication.whole_schema || publication.member.is_some();
    if !published {
        let others = match &publication.tables {
            Some(tables) => format!("; it has {tables}"),
            None => String::new(),
        };
        findings.push(
            fatal(format!(
                "publication {name} lacks table {}{others}: every row would be skipped without an error",
                expected.table
            ))
            .remedy(
                "a table that was renamed and made again is a new one for the publication. Rows that were inserted \
                 before it is added will not be sent: insert them again",
            )
            .sql(format!("alter publication {name} add table {quoted}")),
        );
        return findings;
    }
    if table.kind == 'p' && !publication.via_root {
        findings.push(
            fatal(format!(
                "table {} is partitioned, and publication {name} sends its rows under the names of the partitions",
                expected.table
            ))
            .sql(format!(
                "alter publication {name} set (publish_via_partition_root = true)"
            )),
        );
    }
    // Where all tables, or the whole schema, are published, no filter and no column list applies.
    if let Some(member) = &publication.member
        && !publication.all_tables
        && !publication.whole_schema
    {
        findings.extend(parts_of(member, table, expected));
    }
    findings.extend(computed(publication, table, expected));
    findings
}

/// A row filter or a column list.
fn parts_of(member: &Membership, table: &Table, expected: &Expectation) -> Vec<Finding> {
    let name = ident(&expected.publication);
    let quoted = expected.table.to_sql();
    let mend = |finding: Finding| {
        finding
            .remedy("in one transaction, so that no row falls between the two")
            .sql("begin")
            .sql(format!("alter publication {name} drop table {quoted}"))
            .sql(format!("alter publication {name} add table {quoted}"))
            .sql("commit")
    };
    let mut findings = Vec::new();
    if member.filtered {
        findings.push(mend(Finding::fatal(
            Class::Configuration,
            format!(
                "publication {name} has a row filter on {}: rows that do not match it are skipped without an error",
                expected.table
            ),
        )));
    }
    if let Some(listed) = &member.columns {
        let dropped: Vec<&String> = table
            .columns
            .iter()
            .filter(|column| !listed.contains(&column.number) && is_mapped(expected, &column.name))
            .map(|column| &column.name)
            .collect();
        if !dropped.is_empty() {
            findings.push(mend(Finding::fatal(
                Class::Configuration,
                format!(
                    "publication {name} has a column list on {} that lacks {}",
                    expected.table,
                    list(&dropped)
                ),
            )));
        }
    }
    findings
}

/// Generated columns: sent by Postgres 18 only, and only when asked for.
fn computed(publication: &Publication, table: &Table, expected: &Expectation) -> Vec<Finding> {
    let listed = publication
        .member
        .as_ref()
        .and_then(|m| m.columns.as_deref());
    table
        .columns
        .iter()
        .filter(|column| column.generated && is_mapped(expected, &column.name))
        .filter(|column| match listed {
            Some(listed) => !listed.contains(&column.number),
            None => !publication.generated,
        })
        .map(|column| {
            Finding::fatal(
                Class::Configuration,
                format!(
                    "column {} of {} is generated: Postgres does not send it",
                    ident(&column.name),
                    expected.table
                ),
            )
            .remedy(
                "map another column in [outbox.columns], or let a trigger fill this one; Postgres 18 can send it: \
                 set (publish_generated_columns = stored)",
            )
        })
        .collect()
}

fn is_mapped(expected: &Expectation, column: &str) -> bool {
    expected
        .required
        .iter()
        .chain(&expected.optional)
        .any(|mapped| mapped == column)
}

fn more_than_inserts(publication: &Publication, name: &str) -> Finding {
    let also: Vec<&str> = [
        (publication.update, "updates"),
        (publication.delete, "deletes"),
        (publication.truncate, "truncates"),
    ]
    .iter()
    .filter_map(|(is, word)| is.then_some(*word))
    .collect();
    Finding::warning(format!(
        "publication {name} publishes {}, too: they are sent and thrown away, and on a table without a primary key \
         the application's own UPDATE and DELETE fail",
        also.join(", ")
    ))
    .sql(format!("alter publication {name} set (publish = 'insert')"))
}
