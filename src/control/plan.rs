//! What `init` makes, in order. Pure: the same steps are printed and applied.

use std::time::Duration;

use super::contract::contract;
use super::name::{dollar_quoted, ident, literal};
use crate::outbox::TableName;

/// What the configuration asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The outbox table.
    pub table: TableName,
    /// The logical replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The role in the daemon's connection URL.
    pub login: Option<String>,
    /// The outbox has partitions that the daemon makes and drops; the first is so wide.
    pub partition: Option<Duration>,
}

/// One step of [`plan()`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The object, in words: "table aftercommit.outbox".
    pub what: String,
    /// A query of one boolean: is it there already?
    pub probe: String,
    /// SQL that makes it, and changes nothing where it is there.
    pub sql: String,
    /// What an administrator types to make it, where `init` may not; else empty.
    pub by_hand: String,
    /// How it is applied.
    pub kind: Kind,
}

/// How a step is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing works without it.
    Object,
    /// Roles and grants. Where `init` may not make them, an administrator does, and the other steps go on.
    Role,
    /// The slot: waits for every open transaction, and cannot be made in one that has written.
    Slot,
}

/// The steps from an empty database to one that the daemon can run on: all of `sql/`, but for a table of the
/// application's the outbox. The publication comes before the slot: a slot cannot decode changes from a time at which
/// its publication did not exist.
pub fn plan(wanted: &Wanted) -> Vec<Step> {
    let mut steps = contract(&wanted.table, wanted.partition);
    steps.extend(wanted.login.as_deref().map(membership));
    steps.push(publication(wanted));
    steps.push(slot(wanted));
    steps
}

/// All steps as one script for psql, with comments; for Postgres 14 and newer.
pub fn script(wanted: &Wanted) -> String {
    let mut script = String::from(
        "-- What aftercommit needs in this database. Each step changes nothing where its object is there already.\n\
         -- Run it as a superuser, or as the owner of the database with CREATEROLE and REPLICATION; not within one\n\
         -- transaction (no psql -1): psql -v ON_ERROR_STOP=1 -f this.sql\n\
         set client_min_messages = warning;\n\
         set statement_timeout = 0;\n\
         set lock_timeout = 0;\n",
    );
    for step in plan(wanted) {
        script.push_str(&format!("\n-- {}\n{}\n", step.what, step.sql.trim_end()));
    }
    script
}

fn membership(login: &str) -> Step {
    let name = literal(login);
    let body = format!(
        "\nbegin\n  \
           if not exists (select from pg_catalog.pg_roles where rolname = {name}) then\n    \
             raise warning 'the role of the daemon does not exist yet' using hint = {hint};\n  \
           elsif not pg_has_role({name}, 'aftercommit_daemon', 'member') then\n    \
             grant aftercommit_daemon to {role};\n  \
           end if;\n\
         end\n",
        role = ident(login),
        hint = literal(&format!(
            "create role {} login replication; then run this again",
            ident(login)
        )),
    );
    Step {
        what: format!("role {} in aftercommit_daemon", ident(login)),
        probe: format!(
            "select exists (select from pg_catalog.pg_roles r, pg_catalog.pg_roles g where r.rolname = {name} \
             and g.rolname = 'aftercommit_daemon' and pg_has_role(r.oid, g.oid, 'member'))"
        ),
        sql: format!("do {};", dollar_quoted(&body)),
        by_hand: format!("grant aftercommit_daemon to {};", ident(login)),
        kind: Kind::Role,
    }
}

fn publication(wanted: &Wanted) -> Step {
    let Wanted {
        table, publication, ..
    } = wanted;
    let exists = format!(
        "exists (select from pg_catalog.pg_publication where pubname = {})",
        literal(publication)
    );
    // By name and by OID: a table may be published by itself, with its schema, or with all tables; and the view
    // names a partitioned table's leaves where the publication does not go by the root.
    let holds = format!(
        "(exists (select from pg_catalog.pg_publication_tables \
         where pubname = {publication} and schemaname = {schema} and tablename = {name}) \
         or exists (select from pg_catalog.pg_publication p \
         join pg_catalog.pg_publication_rel r on r.prpubid = p.oid \
         where p.pubname = {publication} and r.prrelid = pg_catalog.to_regclass({quoted})))",
        publication = literal(publication),
        schema = literal(table.schema()),
        name = literal(table.name()),
        quoted = literal(&table.to_sql()),
    );
    let body = format!(
        "\nbegin\n  \
           if not {exists} then\n    \
             {create};\n  \
           elsif not {holds} then\n    \
             alter publication {publication} add table {table};\n  \
           end if;\n\
         end\n",
        create = create_publication(publication, table),
        publication = ident(publication),
        table = table.to_sql(),
    );
    Step {
        what: format!("publication {} for {table}", ident(publication)),
        probe: format!("select {exists} and {holds}"),
        sql: format!("do {};", dollar_quoted(&body)),
        by_hand: String::new(),
        kind: Kind::Object,
    }
}

/// Inserts only: an outbox row is never changed, and publishing updates would make the application's own fail on a
/// table without a primary key. By the root: a partition's rows are told under the name that is configured.
pub(crate) fn create_publication(publication: &str, table: &TableName) -> String {
    format!(
        "create publication {} for table {} with (publish = 'insert', publish_via_partition_root = true)",
        ident(publication),
        table.to_sql()
    )
}

fn slot(wanted: &Wanted) -> Step {
    let slot = literal(&wanted.slot);
    let there =
        format!("exists (select from pg_catalog.pg_replication_slots where slot_name = {slot})");
    // The statement of another version is not looked at: it would not be understood.
    let body = format!(
        "\nbegin\n  \
           if {there} then\n    \
             return;\n  \
           elsif current_setting('server_version_num')::int4 >= 170000 then\n    \
             perform {};\n  \
           else\n    \
             perform {};\n  \
           end if;\n\
         end\n",
        slot_call(&wanted.slot, true),
        slot_call(&wanted.slot, false),
    );
    Step {
        what: format!("slot {}", ident(&wanted.slot)),
        probe: format!("select {there}"),
        sql: format!("do {};", dollar_quoted(&body)),
        by_hand: String::new(),
        kind: Kind::Slot,
    }
}

/// The slot, for a server of this version (`server_version_num`).
pub(crate) fn create_slot(slot: &str, server_version: u32) -> String {
    format!("select {}", slot_call(slot, server_version >= 170_000))
}

/// Not temporary, and not two-phase: that would send prepared rows before they are committed. From 17 on with failover:
/// standbys keep a copy of it, if they are told to.
fn slot_call(slot: &str, failover: bool) -> String {
    let failover = if failover { ", true" } else { "" };
    format!(
        "pg_catalog.pg_create_logical_replication_slot({}, 'pgoutput', false, false{failover})",
        literal(slot)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(table: &str) -> Wanted {
        Wanted {
            table: table.parse().expect("a table"),
            slot: "aftercommit".to_owned(),
            publication: "After\"commit".to_owned(),
            login: Some("daemon $do$".to_owned()),
            partition: None,
        }
    }

    #[test]
    fn publication_before_slot_and_everything_for_our_table() {
        let kinds: Vec<Kind> = plan(&wanted("aftercommit.outbox"))
            .iter()
            .map(|step| step.kind)
            .collect();
        let (object, role) = (Kind::Object, Kind::Role);
        let tables = [object; 6];
        let expected = [&tables[..], &[role, role, role, object, Kind::Slot]].concat();
        assert_eq!(kinds, expected);
    }

    #[test]
    fn a_table_of_the_application_is_left_alone() {
        let script = script(&wanted("shop.\"Events\""));
        for absent in [
            "aftercommit.outbox",
            "aftercommit.enqueue",
            "create table if not exists shop",
        ] {
            assert!(!script.contains(absent), "{absent}");
        }
        assert!(
            script
                .contains(r#"grant select, delete on table "shop"."Events" to aftercommit_daemon"#)
        );
        assert!(
            script.contains(r#"create publication "After""commit" for table "shop"."Events" with"#)
        );
        assert!(script.contains("pg_create_logical_replication_slot('aftercommit'"));
    }

    #[test]
    fn a_name_cannot_end_the_quotes_around_it() {
        let script = script(&wanted("aftercommit.outbox"));
        assert!(script.contains("do $doo$\nbegin\n  if not exists (select from pg_catalog.pg_roles where rolname = 'daemon $do$')"));
    }
}
