//! A healthy server, and each way of not being one.

use super::*;
use crate::preflight::facts::{
    Column, Holding, Membership, PartitionKey, Partitioning, Publication, Role, Slot, Table,
};

fn expected() -> Expectation {
    Expectation {
        slot: "aftercommit".to_owned(),
        publication: "aftercommit".to_owned(),
        table: crate::outbox::TableName::ours(),
        required: vec!["id".to_owned(), "task".to_owned()],
        optional: vec!["key".to_owned()],
        moments: vec!["key".to_owned()],
        application_name: "aftercommit".to_owned(),
        deletes: true,
        partitions: false,
        heals: false,
        role: None,
    }
}

fn column(number: i16, name: &str) -> Column {
    Column {
        name: name.to_owned(),
        number,
        kind: "text".to_owned(),
        generated: false,
    }
}

fn healthy() -> Facts {
    Facts {
        server_version: 170_000,
        in_recovery: false,
        wal_level: "logical".to_owned(),
        database: "app".to_owned(),
        encoding: "UTF8".to_owned(),
        max_slot_wal_keep_size: "-1".to_owned(),
        synchronous_standby_names: String::new(),
        synchronized_standby_slots: Some(String::new()),
        physical_slots: Vec::new(),
        slot: Some(Slot {
            plugin: Some("pgoutput".to_owned()),
            slot_type: "logical".to_owned(),
            database: Some("app".to_owned()),
            temporary: false,
            two_phase: Some(false),
            active_pid: None,
            wal_status: Some("reserved".to_owned()),
            invalidation_reason: None,
            conflicting: Some(false),
            confirmed_flush_lsn: Some("0/1000".to_owned()),
            failover: Some(true),
        }),
        publication: Some(Publication {
            oid: 2,
            all_tables: false,
            insert: true,
            update: false,
            delete: false,
            truncate: false,
            via_root: true,
            generated: false,
            whole_schema: false,
            member: Some(Membership {
                filtered: false,
                columns: None,
            }),
            ancestor: None,
            tables: Some("aftercommit.outbox".to_owned()),
        }),
        table: Some(Table {
            oid: 1,
            kind: 'r',
            persistence: 'p',
            silent_partition: None,
            partition_key: None,
            columns: vec![column(1, "id"), column(2, "task"), column(3, "key")],
        }),
        near_table: None,
        role: None,
        holding: Holding {
            role: "it\"s".to_owned(),
            ..Holding::default()
        },
        partitioning: Partitioning::default(),
    }
}

fn publication(facts: &mut Facts) -> &mut Publication {
    facts.publication.as_mut().expect("a publication")
}

fn slot(facts: &mut Facts) -> &mut Slot {
    facts.slot.as_mut().expect("a slot")
}

fn table(facts: &mut Facts) -> &mut Table {
    facts.table.as_mut().expect("a table")
}

fn member(facts: &mut Facts) -> &mut Membership {
    publication(facts).member.as_mut().expect("a member")
}

#[test]
fn finds_nothing_on_a_healthy_server() {
    assert_eq!(judge(&healthy(), &expected()), []);
}

/// What real servers are not easily brought to; the rest is tested on them.
#[test]
fn each_fault_has_one_finding_of_its_class() {
    type Break = fn(&mut Facts);
    let fatal = Severity::Fatal;
    let config = fatal(Class::Configuration);
    let cases: [(&str, Severity, Break); 28] = [
        ("is Postgres 13", config, |f| f.server_version = 130_012),
        ("in recovery", fatal(Class::Temporary), |f| {
            f.in_recovery = true;
            f.slot = None;
        }),
        // The server cannot have a slot then: nothing was lost.
        ("wal_level", config, |f| {
            f.wal_level = "replica".to_owned();
            f.slot = None;
            f.publication = None;
        }),
        ("synchronous standby", config, |f| {
            f.synchronous_standby_names = "ANY 1 (*)".to_owned();
        }),
        ("SQL_ASCII", Severity::Warning, |f| {
            f.encoding = "SQL_ASCII".to_owned();
        }),
        (
            "slot \"aftercommit\" does not",
            fatal(Class::SlotLost),
            |f| {
                f.slot = None;
            },
        ),
        ("a physical one", config, |f| {
            slot(f).slot_type = "physical".to_owned();
        }),
        ("\"wal2json\"", config, |f| {
            slot(f).plugin = Some("wal2json".to_owned());
        }),
        ("temporary", config, |f| slot(f).temporary = true),
        ("(rows_removed)", fatal(Class::SlotLost), |f| {
            slot(f).invalidation_reason = Some("rows_removed".to_owned());
        }),
        ("(wal_status is lost)", fatal(Class::SlotLost), |f| {
            slot(f).wal_status = Some("lost".to_owned());
        }),
        ("(conflict", fatal(Class::SlotLost), |f| {
            slot(f).conflicting = Some(true);
        }),
        ("is not kept by standbys", Severity::Warning, |f| {
            slot(f).failover = Some(false);
        }),
        (
            "set synchronized_standby_slots = 'one, two'",
            Severity::Warning,
            |f| f.physical_slots = vec!["one".to_owned(), "two".to_owned()],
        ),
        ("next checkpoint", Severity::Warning, |f| {
            slot(f).wal_status = Some("unreserved".to_owned());
        }),
        (
            "publication \"aftercommit\" does",
            fatal(Class::PublicationLost),
            |f| {
                f.publication = None;
            },
        ),
        ("does not publish inserts", config, |f| {
            publication(f).insert = false;
        }),
        ("publishes deletes", Severity::Warning, |f| {
            publication(f).delete = true;
        }),
        ("under the name of shop.all", config, |f| {
            publication(f).ancestor = Some("shop.all".to_owned());
        }),
        ("is partitioned", config, |f| {
            table(f).kind = 'p';
            publication(f).via_root = false;
        }),
        ("partition a.b", config, |f| {
            table(f).silent_partition = Some("a.b".to_owned());
        }),
        ("lacks \"key\"", config, |f| {
            member(f).columns = Some(vec![1, 2]);
        }),
        ("is generated", config, |f| {
            table(f).columns[2].generated = true;
        }),
        ("is a view", config, |f| table(f).kind = 'v'),
        (
            "lacks table aftercommit.hold, table aftercommit.checkpoint: tasks cannot be held\n  make what",
            config,
            |f| {
                f.holding.missing = ["table aftercommit.hold", "table aftercommit.checkpoint"]
                    .map(str::to_owned)
                    .to_vec();
            },
        ),
        (
            "\n    grant insert on table aftercommit.hold to \"it\"\"s\";\n    grant x",
            config,
            |f| {
                f.holding.lacking = ["insert on table aftercommit.hold", "x"]
                    .map(str::to_owned)
                    .to_vec();
            },
        ),
        ("may not delete settled rows: it lacks y", config, |f| {
            f.holding.lacking_on_outbox = vec!["y".to_owned()];
        }),
        ("there is public.Outbox", config, |f| {
            f.table = None;
            f.near_table = Some("public.Outbox".to_owned());
        }),
    ];
    for (words, severity, break_it) in cases {
        let mut facts = healthy();
        break_it(&mut facts);
        let findings = judge(&facts, &expected());
        assert_eq!(findings.len(), 1, "{words}: {findings:?}");
        assert_eq!(findings[0].severity, severity, "{words}");
        assert!(
            findings[0].to_string().contains(words),
            "{words}: {}",
            findings[0]
        );
    }
}

#[test]
fn a_column_that_we_do_not_map_may_be_missing_or_generated() {
    let mut facts = healthy();
    table(&mut facts).columns.push(Column {
        generated: true,
        ..column(4, "search")
    });
    member(&mut facts).columns = Some(vec![1, 2, 3]);
    assert_eq!(judge(&facts, &expected()), []);
}

#[test]
fn who_keeps_settled_rows_needs_no_right_to_delete_them() {
    let mut facts = healthy();
    facts.holding.lacking_on_outbox = vec!["y".to_owned()];
    let keeps = Expectation {
        deletes: false,
        ..expected()
    };
    assert_eq!(judge(&facts, &keeps), []);
}

#[test]
fn partitions_need_a_date_and_functions() {
    let key = |strategy, columns, kind: Option<&str>| {
        Some(PartitionKey {
            strategy,
            columns,
            kind: kind.map(str::to_owned),
        })
    };
    let expected = Expectation {
        partitions: true,
        ..expected()
    };
    let partitioned = || {
        let mut facts = healthy();
        table(&mut facts).kind = 'p';
        table(&mut facts).partition_key = key('r', 1, Some("date"));
        facts
    };
    assert_eq!(judge(&partitioned(), &expected), []);
    for (how, key) in [
        ("is not partitioned:", None),
        ("is not partitioned by range", key('l', 1, Some("date"))),
        ("is not partitioned by range", key('h', 2, None)),
        ("by more than one column", key('r', 2, Some("date"))),
        ("by an expression", key('r', 1, None)),
        ("by a column of type uuid", key('r', 1, Some("uuid"))),
    ] {
        let mut facts = partitioned();
        table(&mut facts).partition_key = key;
        let findings = judge(&facts, &expected);
        assert_eq!(findings.len(), 1, "{how}: {findings:?}");
        assert!(findings[0].what.contains(how), "{how}: {}", findings[0]);
    }
    type Break = fn(&mut Partitioning);
    let cases: [(&str, Break); 3] = [
        ("lacks the functions that make", |p| p.missing = true),
        ("grant execute on all functions", |p| p.closed = true),
        ("outbox_drop owner to \"them\"", |p| {
            p.foreign_owner = Some("us".to_owned());
            p.table_owner = Some("them".to_owned());
        }),
    ];
    for (words, break_it) in cases {
        let mut facts = partitioned();
        break_it(&mut facts.partitioning);
        let findings = judge(&facts, &expected);
        assert_eq!(findings.len(), 1, "{words}");
        assert!(findings[0].to_string().contains(words), "{}", findings[0]);
        assert_eq!(judge(&facts, &self::expected()), [], "not asked for");
    }
}

#[test]
fn a_moment_needs_its_time_zone() {
    for (kind, is_fatal) in [
        ("timestamp with time zone", false),
        // A task's time is read as text, and this text may hold one.
        ("text", false),
        ("character varying", false),
        ("timestamp without time zone", true),
        ("timestamp(3) without time zone", true),
        ("time with time zone", true),
        ("date", true),
        ("bigint", true),
    ] {
        let mut facts = healthy();
        table(&mut facts).columns[2].kind = kind.to_owned();
        let findings = judge(&facts, &expected());
        assert_eq!(findings.len(), usize::from(is_fatal), "{kind}");
        // No other column is asked for it.
        let mut facts = healthy();
        table(&mut facts).columns[1].kind = kind.to_owned();
        assert_eq!(judge(&facts, &expected()), [], "{kind}");
    }
}

#[test]
fn fatal_findings_come_first() {
    let mut facts = healthy();
    facts.encoding = "SQL_ASCII".to_owned();
    facts.slot = None;
    let findings = judge(&facts, &expected());
    assert_eq!(findings[0].severity, Severity::Fatal(Class::SlotLost));
    assert_eq!(findings[1].severity, Severity::Warning);
}

#[test]
fn a_role_is_judged_by_what_it_lacks_first() {
    type Break = fn(&mut Role);
    let cases: [(&str, Break); 5] = [
        ("create role \"it\"\"s\" login replication", |r| {
            r.exists = false;
        }),
        ("alter role \"it\"\"s\" replication", |r| {
            r.replication = false;
        }),
        ("grant rds_replication to \"it\"\"s\"", |r| {
            r.replication = false;
            r.managed = true;
        }),
        ("alter role \"it\"\"s\" login", |r| r.login = false),
        ("grant connect on database \"app\" to \"it\"\"s\"", |r| {
            r.connect = false;
        }),
    ];
    for (sql, break_it) in cases {
        let mut role = Role {
            name: "it\"s".to_owned(),
            exists: true,
            login: true,
            replication: true,
            connect: true,
            managed: false,
        };
        break_it(&mut role);
        let facts = Facts {
            role: Some(role),
            ..healthy()
        };
        let findings = judge(&facts, &expected());
        assert_eq!(findings.len(), 1, "{sql}");
        assert_eq!(findings[0].sql, [sql]);
    }
}

#[test]
fn drift_tells_of_what_was_replaced() {
    let old = healthy();
    assert_eq!(drift(&old, &old), []);
    let mut new = healthy();
    table(&mut new).oid = 7;
    publication(&mut new).oid = 8;
    new.server_version = 180_000;
    let findings = drift(&old, &new);
    assert_eq!(findings.len(), 3);
    assert!(findings.iter().all(|f| f.severity == Severity::Warning));
}
