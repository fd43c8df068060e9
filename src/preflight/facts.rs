//! What the catalogs say about slot, publication and table.
//!
//! Read as one JSON document, in one snapshot. Columns that not every version has are reached through `to_jsonb(row)`,
//! and are null where there is none.

use serde::Deserialize;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::Expectation;

/// What the server says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Facts {
    /// `server_version_num`: 150018 is 15.18.
    pub server_version: u32,
    /// A standby, for now.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// The database of the connection.
    pub database: String,
    /// Its encoding.
    pub encoding: String,
    /// `max_slot_wal_keep_size`, as the server writes it; `-1` is no limit.
    pub max_slot_wal_keep_size: String,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// `synchronized_standby_slots`; Postgres 17 and newer.
    pub synchronized_standby_slots: Option<String>,
    /// Physical slots: those that standbys stream from.
    pub physical_slots: Vec<String>,
    /// The slot.
    pub slot: Option<Slot>,
    /// The publication.
    pub publication: Option<Publication>,
    /// The outbox table.
    pub table: Option<Table>,
    /// A table whose name differs in schema, or in upper and lower case only, where there is no outbox table.
    pub near_table: Option<String>,
    /// The role, where one is expected.
    pub role: Option<Role>,
    /// The hold table, the checkpoint, and what the daemon may do with them.
    pub holding: Holding,
    /// What makes and drops partitions.
    pub partitioning: Partitioning,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Slot {
    /// The output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// `logical` or `physical`.
    pub slot_type: String,
    /// The database that a logical slot decodes.
    pub database: Option<String>,
    /// Gone with its session.
    pub temporary: bool,
    /// Whether prepared transactions are sent before they are committed.
    pub two_phase: Option<bool>,
    /// The walsender that reads it now.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated; Postgres 17 and newer.
    pub invalidation_reason: Option<String>,
    /// Invalidated by a conflict with recovery; Postgres 16 and newer.
    pub conflicting: Option<bool>,
    /// Where reading goes on.
    pub confirmed_flush_lsn: Option<String>,
    /// Standbys may keep a copy of it; Postgres 17 and newer.
    pub failover: Option<bool>,
}

/// A row of `pg_publication`, and how our table stands in it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Publication {
    /// Another one means: dropped and made again.
    pub oid: u32,
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// Publishes inserts.
    pub insert: bool,
    /// Publishes updates.
    pub update: bool,
    /// Publishes deletes.
    pub delete: bool,
    /// Publishes TRUNCATE.
    pub truncate: bool,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// Publishes stored generated columns (Postgres 18).
    pub generated: bool,
    /// Holds every table of our table's schema (Postgres 15).
    pub whole_schema: bool,
    /// Our table's entry, where it is published by itself.
    pub member: Option<Membership>,
    /// A partitioned table above ours, under whose name our table's rows are sent.
    pub ancestor: Option<String>,
    /// The first few of the tables that are named in it.
    pub tables: Option<String>,
}

/// A row of `pg_publication_rel`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Membership {
    /// Has a row filter.
    pub filtered: bool,
    /// The numbers of the published columns, where there is a column list.
    pub columns: Option<Vec<i16>>,
}

/// A row of `pg_class`, and its columns.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Table {
    /// Another one means: renamed or dropped, and made again. A publication follows the old one.
    pub oid: u32,
    /// `r` is a table, `p` a partitioned one.
    pub kind: char,
    /// `p` is permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// A partition whose rows are not in the WAL: unlogged, or foreign.
    pub silent_partition: Option<String>,
    /// How a partitioned one is partitioned.
    pub partition_key: Option<PartitionKey>,
    /// The columns, in order.
    pub columns: Vec<Column>,
}

/// A row of `pg_partitioned_table`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct PartitionKey {
    /// `r` is by range, `l` by list, `h` by hash.
    pub strategy: char,
    /// How many columns and expressions there are.
    pub columns: u16,
    /// Type of the first column; none where it is an expression.
    pub kind: Option<String>,
}

/// A row of `pg_attribute`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its number, as a column list has it.
    pub number: i16,
    /// Its type, or what its type is a domain over: `timestamp with time zone`.
    pub kind: String,
    /// Whether the server computes it.
    pub generated: bool,
}

/// A row of `pg_roles`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Whether it exists.
    pub exists: bool,
    /// May log in.
    pub login: bool,
    /// Has REPLICATION, is a superuser, or a member of `rds_replication`.
    pub replication: bool,
    /// May connect to this database.
    pub connect: bool,
    /// The cluster is one of those where REPLICATION is given by a group, `rds_replication`.
    pub managed: bool,
}

/// What is missing for holding tasks and deleting settled rows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Holding {
    /// The role whose rights these are: the expected one, or our own.
    pub role: String,
    /// What `init` makes and is not there, in words.
    pub missing: Vec<String>,
    /// Rights that the role lacks on what is there: `insert on table aftercommit.hold`.
    pub lacking: Vec<String>,
    /// Rights that it lacks on the outbox table.
    pub lacking_on_outbox: Vec<String>,
}

/// What is missing for making and dropping partitions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Partitioning {
    /// The functions that `init` makes for it are not there.
    pub missing: bool,
    /// Our role may not call them.
    pub closed: bool,
    /// Their owner, with whose rights they run, where that one may not do as the owner of the outbox table does.
    pub foreign_owner: Option<String>,
    /// The owner of the outbox table.
    pub table_owner: Option<String>,
}

/// The oldest server that works; of an older one the version is all that is looked at.
pub(super) const OLDEST: u32 = 140_000;

/// Reads the catalogs, in two round trips.
///
/// # Errors
/// Those of the connection, and of a server that refuses the query.
pub async fn facts(client: &Client, expected: &Expectation) -> Result<Facts, Error> {
    let version: i32 = client
        .query_typed_one("select current_setting('server_version_num')::int4", &[])
        .await?
        .try_get(0)?;
    let server_version = u32::try_from(version).unwrap_or_default();
    if server_version < OLDEST {
        return Ok(Facts {
            server_version,
            ..Facts::default()
        });
    }
    let none = None::<&str>;
    let role: &(dyn ToSql + Sync) = match &expected.role {
        Some(role) => role,
        None => &none,
    };
    let row = client
        .query_typed_one(
            &query(server_version),
            &[
                (&expected.table.schema(), Type::TEXT),
                (&expected.table.name(), Type::TEXT),
                (&expected.publication, Type::TEXT),
                (&expected.slot, Type::TEXT),
                (role, Type::TEXT),
            ],
        )
        .await?;
    let Document(facts) = row.try_get(0)?;
    Ok(facts)
}

/// The document, read as it comes: a shape that we don't understand is an error of the row.
struct Document(Facts);

impl<'a> tokio_postgres::types::FromSql<'a> for Document {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> Result<Document, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Document(serde_json::from_slice(raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

fn query(version: u32) -> String {
    // 14 has no publications of whole schemas, nor their catalog.
    let (in_schema, publication_schemas) = if version >= 150_000 {
        (
            "exists (select from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = t.relnamespace)",
            "exists (select from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = ac.relnamespace)",
        )
    } else {
        ("false", "false")
    };
    format!(
        "with t as (
  select c.oid, c.relnamespace, c.relkind, c.relpersistence, c.relowner
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = $1 and c.relname = $2
), p as (
  select * from pg_catalog.pg_publication where pubname = $3
)
select json_build_object(
  'server_version', current_setting('server_version_num')::int4,
  'in_recovery', pg_is_in_recovery(),
  'wal_level', current_setting('wal_level'),
  'database', current_database(),
  'encoding', current_setting('server_encoding'),
  'max_slot_wal_keep_size', current_setting('max_slot_wal_keep_size'),
  'synchronous_standby_names', current_setting('synchronous_standby_names'),
  'synchronized_standby_slots', current_setting('synchronized_standby_slots', true),
  'physical_slots', array(
    select s.slot_name from pg_catalog.pg_replication_slots s where s.slot_type = 'physical' and not s.temporary
    order by s.slot_name
  ),
  'slot', (
    select to_jsonb(s) from pg_catalog.pg_replication_slots s where s.slot_name = $4
  ),
  'publication', (
    select json_build_object(
      'oid', p.oid::int8, 'all_tables', p.puballtables,
      'insert', p.pubinsert, 'update', p.pubupdate, 'delete', p.pubdelete, 'truncate', p.pubtruncate,
      'via_root', p.pubviaroot,
      'generated', coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false),
      'whole_schema', coalesce((select {in_schema} from t), false),
      'member', (
        select json_build_object(
          'filtered', to_jsonb(r) ->> 'prqual' is not null,
          'columns', case when to_jsonb(r) ->> 'prattrs' is not null then to_jsonb(r) -> 'prattrs' end)
        from pg_catalog.pg_publication_rel r, t where r.prpubid = p.oid and r.prrelid = t.oid
      ),
      'ancestor', (
        select format('%s.%s', an.nspname, ac.relname)
        from t, pg_partition_ancestors(t.oid) with ordinality a (relid, height)
        join pg_catalog.pg_class ac on ac.oid = a.relid
        join pg_catalog.pg_namespace an on an.oid = ac.relnamespace
        where p.pubviaroot and ac.oid <> t.oid and (
          p.puballtables or {publication_schemas}
          or exists (select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid and r.prrelid = ac.oid))
        order by a.height desc limit 1
      ),
      'tables', (
        select string_agg(name, ', ') from (
          select format('%s.%s', n.nspname, c.relname) as name
          from pg_catalog.pg_publication_rel r
          join pg_catalog.pg_class c on c.oid = r.prrelid
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where r.prpubid = p.oid order by c.oid limit 5) few
      ))
    from p
  ),
  'table', (
    select json_build_object(
      'oid', t.oid::int8, 'kind', t.relkind, 'persistence', t.relpersistence,
      'silent_partition', (
        select min(format('%s.%s', n.nspname, c.relname))
        from pg_partition_tree(t.oid) leaf
        join pg_catalog.pg_class c on c.oid = leaf.relid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where leaf.isleaf and c.oid <> t.oid and (c.relkind = 'f' or c.relpersistence <> 'p')
      ),
      'partition_key', (
        select json_build_object(
          'strategy', k.partstrat, 'columns', k.partnatts,
          'kind', (select format_type(a.atttypid, null) from pg_catalog.pg_attribute a
                   where a.attrelid = t.oid and a.attnum = k.partattrs[0]))
        from pg_catalog.pg_partitioned_table k where k.partrelid = t.oid
      ),
      'columns', coalesce((
        select json_agg(json_build_object(
                          'name', a.attname, 'number', a.attnum, 'generated', a.attgenerated <> '',
                          'kind', format_type(coalesce(nullif(y.typbasetype, 0), y.oid), null))
                        order by a.attnum)
        from pg_catalog.pg_attribute a join pg_catalog.pg_type y on y.oid = a.atttypid
        where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
      ), '[]'))
    from t
  ),
  'near_table', (
    select min(format('%s.%s', n.nspname, c.relname))
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where not exists (select from t) and lower(c.relname) = lower($2) and c.relkind in ('r', 'p')
      and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
  ),
  'role', (
    select json_build_object(
      'name', $5, 'exists', r.oid is not null, 'login', coalesce(r.rolcanlogin, false),
      'replication', coalesce(r.rolreplication or r.rolsuper, false)
        or coalesce(pg_has_role(r.oid, rds.oid, 'member'), false),
      'connect', coalesce(has_database_privilege(r.oid, d.oid, 'connect'), false),
      'managed', rds.oid is not null)
    from (select $5) asked (name)
    join pg_catalog.pg_database d on d.datname = current_database()
    left join pg_catalog.pg_roles r on r.rolname = asked.name
    left join pg_catalog.pg_roles rds on rds.rolname = 'rds_replication'
    where asked.name is not null
  ),
  'holding', (
{HOLDING}
  ),
  'partitioning', (
    select json_build_object(
      'missing', count(f.oid) < 5,
      'closed', coalesce(bool_or(not has_function_privilege(coalesce(r.oid, u.oid), f.oid, 'execute')), false),
      'foreign_owner', (
        select min(pg_get_userbyid(g.proowner)) from pg_catalog.pg_proc g, t
        where g.oid = any (array_agg(f.oid)) and g.prosecdef and not pg_has_role(g.proowner, t.relowner, 'usage')),
      'table_owner', (select pg_get_userbyid(t.relowner) from t))
    from pg_catalog.pg_roles u
    left join pg_catalog.pg_roles r on r.rolname = $5
    left join pg_catalog.pg_namespace s on s.nspname = 'aftercommit'
    left join pg_catalog.pg_proc f on f.pronamespace = s.oid and f.proname in (
      'outbox_key', 'outbox_partitions', 'outbox_extend', 'outbox_drop', 'outbox_strays')
    where u.rolname = current_user
  ))"
    )
}

/// Names are looked up in the catalogs, not cast: a role without rights on the schema may not do that.
const HOLDING: &str = "\
    with schema as (
      select n.oid from pg_catalog.pg_namespace n where n.nspname = 'aftercommit'
    ), tables as (
      select c.oid, c.relname from schema s join pg_catalog.pg_class c on c.relnamespace = s.oid
      where c.relkind = 'r' and c.relname in ('hold', 'checkpoint')
    ), functions as (
      select p.oid from schema s join pg_catalog.pg_proc p on p.pronamespace = s.oid
      where p.proname in ('hold_lock', 'hold_advance', 'hold_stop', 'hold_enqueue', 'hold_after_delete')
    ), asked as (
      select coalesce($5, current_user) as name, r.oid from (select) one
      left join pg_catalog.pg_roles r on r.rolname = coalesce($5, current_user)
    )
    select json_build_object(
      'role', a.name,
      'missing', array_remove(array[
        case when not exists (select from tables where relname = 'hold') then 'table aftercommit.hold' end,
        case when not exists (select from tables where relname = 'checkpoint') then 'table aftercommit.checkpoint'
             when not exists (select from tables c join pg_catalog.pg_attribute a on a.attrelid = c.oid
                              where c.relname = 'checkpoint' and a.attname = 'healing')
             then 'column healing of aftercommit.checkpoint' end,
        case when (select count(*) from functions) < 5 or not exists (
          select from pg_catalog.pg_trigger g join tables h on h.oid = g.tgrelid where g.tgname = 'hold_after_delete'
        ) then 'the functions of aftercommit.hold' end
      ], null),
      'lacking', array(
        select 'usage on schema aftercommit' from schema where not has_schema_privilege(a.oid, oid, 'usage')
        union all
        select wanted || ' on table aftercommit.' || relname
        from tables, unnest(array['select', 'insert', 'update', 'delete']) wanted
        where (relname = 'hold' or wanted <> 'delete') and not has_table_privilege(a.oid, tables.oid, wanted)
        union all
        select 'execute on all functions in schema aftercommit'
        where exists (select from functions where not has_function_privilege(a.oid, oid, 'execute'))
      ),
      'lacking_on_outbox', array(
        select format('usage on schema %I', $1) from t where not has_schema_privilege(a.oid, t.relnamespace, 'usage')
        union all
        select format('%s on table %I.%I', wanted, $1, $2) from t, unnest(array['select', 'delete']) wanted
        where not has_table_privilege(a.oid, t.oid, wanted)
      ))
    from asked a";
