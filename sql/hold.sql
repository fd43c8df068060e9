-- What is not settled by a broker: tasks that wait for their time (scheduled), for another attempt (retrying), or for
-- somebody to look at them (dead). Each row is a full copy of its task, its fields as text, exactly as they came.
--
-- The rows with `blocks` are queues, one for each slot, sink and key, in the order of hold_id. In a queue the rows that
-- have a due_at stand before those that have none: these wait behind a task that fails, and get a due_at when it is gone.
-- A dead one that blocks has none either, and keeps all behind it waiting. So whatever has a due_at may be sent when that
-- has come, in the order of (due_at, hold_id), and a look for it touches nothing else.
--
-- A key may be of any length, and an index entry may not: the index holds its hash.
create table if not exists aftercommit.hold (
  hold_id      bigint      not null generated always as identity,
  slot         text        not null,
  sink         text        not null,
  route        text        not null,
  state        text        not null,
  blocks       boolean     not null,
  id           text        not null,
  task         text        not null,
  key          text,
  due_at       timestamptz,
  released_at  timestamptz,
  attempts     integer     not null default 0,
  last_error   text,
  held_at      timestamptz not null default clock_timestamp(),
  updated_at   timestamptz not null default clock_timestamp(),
  commit_lsn   pg_lsn      not null,
  ordinal      bigint      not null,
  committed_at timestamptz not null,
  args         text,
  kwargs       text,
  payload      text,
  body         text,
  queue        text,
  headers      text,
  priority     text,
  run_at       text,
  expires_at   text,
  options      text,
  primary key (hold_id),
  constraint state_is_known          check (state in ('scheduled', 'retrying', 'dead')),
  constraint only_a_key_blocks       check (key is not null or not blocks),
  constraint dead_is_never_due       check (due_at is null or state <> 'dead'),
  constraint due_unless_it_waits     check (due_at is not null or blocks or state = 'dead'),
  constraint attempts_are_counted    check (attempts >= 0),
  constraint ordinal_counts_from_0   check (ordinal >= 0)
) with (
  fillfactor = 90,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_analyze_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.05
);

-- A row that is sent again after a crash is held once. The id is in it because positions begin again in a database that
-- was restored from a dump.
create unique index if not exists hold_position
  on aftercommit.hold (slot, commit_lsn, ordinal, hashtextextended(id, 0));
create index if not exists hold_due
  on aftercommit.hold (slot, sink, due_at, hold_id) where due_at is not null;
-- The order of a queue is that of hold_id + 0, which no other index has: where the planner takes a table for empty that has
-- just filled, it would else look for a queue's first row by any of them, among all rows.
create index if not exists hold_queue
  on aftercommit.hold (slot, sink, hashtextextended(key, 0), (hold_id + 0)) where blocks;
-- For cancel(). No hash index: that counts pages as its own before the disk has given them, and once the disk is full every
-- checkpoint of the server fails on them, and any statement that has to write one out.
create index if not exists hold_id_hash
  on aftercommit.hold (hashtextextended(id, 0));

comment on table aftercommit.hold is
  'tasks that wait for their time, for another attempt, or for somebody to look at them; see: aftercommit hold list';
comment on column aftercommit.hold.state is 'scheduled, retrying or dead';
comment on column aftercommit.hold.blocks is 'later tasks of its key wait for it';
comment on column aftercommit.hold.due_at is
  'when it is sent; null: it is dead, or waits behind another one of its key';
comment on column aftercommit.hold.released_at is 'when a scheduled task was handed to its sink: too late to cancel it';
comment on column aftercommit.hold.attempts is 'how often it was tried';
comment on column aftercommit.hold.last_error is 'why it was not delivered';
comment on column aftercommit.hold.commit_lsn is 'where its transaction committed';
comment on column aftercommit.hold.ordinal is 'the number of outbox rows before it in its transaction';
