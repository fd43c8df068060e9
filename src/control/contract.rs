//! `sql/`, as steps: the schema, the tables, the functions, the roles and their grants. Pure.

use std::borrow::Cow;
use std::time::Duration;

use super::name::literal;
use super::partitions::extend_call;
use super::plan::{Kind, Step};
use crate::outbox::TableName;

const ENQUEUE: &str = include_str!("../../sql/enqueue.sql");
const PARTITION_FUNCTIONS: &str = include_str!("../../sql/partitions.sql");
const HOLD_FUNCTIONS: &str = include_str!("../../sql/hold_functions.sql");

/// What is in the schema `aftercommit` beside this outbox table, and that table, if it is ours. With a width, it has
/// partitions that the daemon makes and drops.
pub(super) fn contract(table: &TableName, partition: Option<Duration>) -> Vec<Step> {
    let is_ours = *table == TableName::ours();
    let mut steps = vec![object(
        "schema aftercommit",
        "select exists (select from pg_catalog.pg_namespace where nspname = 'aftercommit')"
            .to_owned(),
        include_str!("../../sql/schema.sql"),
    )];
    if is_ours {
        steps.push(object(
            "table aftercommit.outbox",
            "select pg_catalog.to_regclass('aftercommit.outbox') is not null".to_owned(),
            &outbox(partition.is_some()),
        ));
        steps.push(object(
            "function aftercommit.enqueue",
            functions_are_there(ENQUEUE),
            ENQUEUE,
        ));
    }
    steps.push(object(
        "table aftercommit.hold",
        "select count(pg_catalog.to_regclass('aftercommit.' || name)) = 5 \
         from unnest(array['hold', 'hold_position', 'hold_due', 'hold_queue', 'hold_id_hash']) name"
            .to_owned(),
        include_str!("../../sql/hold.sql"),
    ));
    steps.push(object(
        "functions of aftercommit.hold",
        format!(
            "{} and exists (select from pg_catalog.pg_trigger \
             where tgrelid = pg_catalog.to_regclass('aftercommit.hold') and tgname = 'hold_after_delete')",
            functions_are_there(HOLD_FUNCTIONS)
        ),
        HOLD_FUNCTIONS,
    ));
    steps.push(object(
        "table aftercommit.checkpoint",
        "select exists (select from pg_catalog.pg_attribute \
         where attrelid = pg_catalog.to_regclass('aftercommit.checkpoint') and attname = 'healing')"
            .to_owned(),
        include_str!("../../sql/checkpoint.sql"),
    ));
    steps.push(Step {
        kind: Kind::Role,
        by_hand: "create role aftercommit_app nologin;\ncreate role aftercommit_daemon nologin;".to_owned(),
        ..object(
            "roles aftercommit_app and aftercommit_daemon",
            "select count(*) = 2 from pg_catalog.pg_roles where rolname in ('aftercommit_app', 'aftercommit_daemon')"
                .to_owned(),
            include_str!("../../sql/roles.sql"),
        )
    });
    if let Some(width) = partition {
        steps.extend(partitions(table, width));
    }
    let grants = grants(table, is_ours, partition.is_some());
    steps.push(Step {
        kind: Kind::Role,
        by_hand: without_comments(&grants),
        ..object(
            "grants to aftercommit_app and aftercommit_daemon",
            grants_are_there(table, is_ours, partition.is_some()),
            &grants,
        )
    });
    steps
}

fn object(what: &str, probe: String, sql: &str) -> Step {
    Step {
        what: what.to_owned(),
        probe,
        sql: sql.to_owned(),
        by_hand: String::new(),
        kind: Kind::Object,
    }
}

fn outbox(is_partitioned: bool) -> Cow<'static, str> {
    const TABLE: &str = include_str!("../../sql/outbox.sql");
    match is_partitioned {
        false => TABLE.into(),
        // A primary key holds the key of the partitions.
        true => TABLE
            .replacen("primary key (id)", "primary key (id, created_at)", 1)
            .replacen("\n);\n", "\n) partition by range (created_at);\n", 1)
            .into(),
    }
}

/// What makes and drops partitions, and the first ones.
fn partitions(table: &TableName, width: Duration) -> [Step; 2] {
    let quoted = literal(&table.to_sql());
    let extend = extend_call(&quoted, width);
    [
        object(
            "functions for partitions",
            functions_are_there(PARTITION_FUNCTIONS),
            PARTITION_FUNCTIONS,
        ),
        object(
            &format!("partitions of {table}"),
            format!(
                "select exists (select from aftercommit.outbox_partitions({quoted}) where lower <= now() and upper > now())"
            ),
            &format!("select name as partition, problem from {extend};"),
        ),
    ]
}

/// Compares their bodies: a change of the file reaches a database that has an older one.
fn functions_are_there(sql: &str) -> String {
    let bodies: Vec<String> = sql
        .split("$function$")
        .skip(1)
        .step_by(2)
        .map(literal)
        .collect();
    format!(
        "select (select count(*) from pg_catalog.pg_proc p \
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = 'aftercommit' and p.prosrc in ({})) = {}",
        bodies.join(", "),
        bodies.len()
    )
}

fn grants(table: &TableName, is_ours: bool, is_partitioned: bool) -> String {
    let mut sql = String::new();
    if is_ours {
        sql.push_str(include_str!("../../sql/grants.sql"));
        sql.push('\n');
    }
    sql.push_str(include_str!("../../sql/hold_grants.sql"));
    if is_partitioned {
        sql.push_str(include_str!("../../sql/partition_grants.sql"));
    }
    sql.push_str(
        "\n-- The daemon deletes settled rows, and reads those that a lost slot leaves behind.\n",
    );
    if !is_ours {
        sql.push_str(&format!(
            "grant usage on schema {} to aftercommit_daemon;\n",
            super::ident(table.schema())
        ));
    }
    sql.push_str(&format!(
        "grant select, delete on table {} to aftercommit_daemon;\n",
        table.to_sql()
    ));
    sql
}

fn grants_are_there(table: &TableName, is_ours: bool, is_partitioned: bool) -> String {
    let all = |table: &str, rights: &[&str]| {
        let one = |right: &&str| {
            format!("has_table_privilege(r.oid, pg_catalog.to_regclass({table}), '{right}')")
        };
        rights.iter().map(one).collect::<Vec<_>>().join(" and ")
    };
    let functions = |pattern: &str| {
        format!(
            "(select bool_and(has_function_privilege(r.oid, p.oid, 'execute')) from pg_catalog.pg_proc p \
             where p.pronamespace = n.oid and p.proname ~ '{pattern}')"
        )
    };
    let mut app = functions("^cancel$");
    if is_ours {
        app = format!(
            "{app} and {} and {}",
            functions("^enqueue$"),
            all("'aftercommit.outbox'", &["insert"])
        );
    }
    format!(
        "select count(*) = 2 and coalesce(bool_and(\
           has_schema_privilege(r.oid, n.oid, 'usage') and case r.rolname \
             when 'aftercommit_app' then {app} \
             else has_database_privilege(r.oid, current_database(), 'connect') \
               and has_schema_privilege(r.oid, pg_catalog.to_regnamespace({schema}), 'usage') \
               and {hold} and {checkpoint} and {functions} and {outbox} \
           end), false) \
         from pg_catalog.pg_roles r, pg_catalog.pg_namespace n \
         where r.rolname in ('aftercommit_app', 'aftercommit_daemon') and n.nspname = 'aftercommit'",
        schema = literal(&super::ident(table.schema())),
        hold = all(
            "'aftercommit.hold'",
            &["select", "insert", "update", "delete"]
        ),
        checkpoint = all("'aftercommit.checkpoint'", &["select", "insert", "update"]),
        functions = functions(match is_partitioned {
            true => "^(hold_|outbox_|cancel$)",
            false => "^(hold_|cancel$)",
        }),
        outbox = all(&literal(&table.to_sql()), &["select", "delete"]),
    )
}

fn without_comments(sql: &str) -> String {
    let lines: Vec<&str> = sql
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("--"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bodies_of_the_functions_are_in_their_probes() {
        let steps = contract(&TableName::ours(), None);
        let probe = |what: &str| {
            let step = steps.iter().find(|step| step.what.contains(what));
            &step.expect("a step").probe
        };
        assert!(
            probe("enqueue").contains("return task_id;") && probe("enqueue").ends_with(") = 1")
        );
        assert!(probe("functions").contains("''too late''"));
        assert!(probe("functions").contains(") = 12 and exists"));
    }

    #[test]
    fn what_an_administrator_types_holds_every_grant() {
        for table in ["aftercommit.outbox", "shop.\"Events\""] {
            let table = table.parse().expect("a table");
            for partition in [None, Some(Duration::from_secs(86_400))] {
                let steps = contract(&table, partition);
                let grants = steps.last().expect("grants");
                for line in grants.sql.lines().filter(|l| l.starts_with("grant")) {
                    assert!(grants.by_hand.contains(line), "{line}");
                }
                assert!(!grants.by_hand.contains("--"));
                assert_eq!(
                    grants.sql.contains("outbox_drop"),
                    partition.is_some(),
                    "no more rights than are needed"
                );
            }
        }
    }

    #[test]
    fn a_partitioned_outbox_differs_in_two_places() {
        let (plain, partitioned) = (outbox(false), outbox(true));
        let differ: Vec<(&str, &str)> = plain
            .lines()
            .zip(partitioned.lines())
            .filter(|(a, b)| a != b)
            .collect();
        let expected = [
            ("  primary key (id),", "  primary key (id, created_at),"),
            (");", ") partition by range (created_at);"),
        ];
        assert_eq!(differ, expected);
        assert_eq!(plain.lines().count(), partitioned.lines().count());
    }
}
