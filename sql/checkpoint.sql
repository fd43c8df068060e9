-- The position up to which everything is settled, one row for each slot, written in the transaction that deletes settled
-- rows. It counts only for the same system and timeline: elsewhere the same LSN is another place.
--
-- `healing` is set before a lost slot is made again, and taken away when all is settled that the outbox held at that moment:
-- a slot that is found beside it does not send all that is owed.
--
-- One row that is updated for ever: its page has room for many versions, and no index holds what changes.
create table if not exists aftercommit.checkpoint (
  slot       text        not null,
  system_id  text        not null,
  timeline   integer     not null,
  lsn        pg_lsn      not null,
  updated_at timestamptz not null default clock_timestamp(),
  healing    timestamptz,
  primary key (slot)
) with (
  fillfactor = 10,
  autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_scale_factor = 0
);
-- To a table that was made before there was such a column.
alter table aftercommit.checkpoint add column if not exists healing timestamptz;

comment on table aftercommit.checkpoint is 'up to where everything is settled, for each slot';
