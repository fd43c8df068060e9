-- The position up to which everything is settled, one row for each slot, written in the transaction that deletes settled
-- rows. It counts only for the same system and timeline: elsewhere the same LSN is another place.
--
-- One row that is updated for ever: its page has room for many versions, and no index holds what changes.
create table if not exists aftercommit.checkpoint (
  slot       text        not null,
  system_id  text        not null,
  timeline   integer     not null,
  lsn        pg_lsn      not null,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (slot)
) with (
  fillfactor = 10,
  autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_scale_factor = 0
);

comment on table aftercommit.checkpoint is 'up to where everything is settled, for each slot';
