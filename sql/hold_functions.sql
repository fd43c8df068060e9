-- The queues of aftercommit.hold, and what an operator or an application may do to a held task with nothing but psql.
-- All but cancel() run with the caller's rights. Those that an operator calls tell the planner what the daemon tells it on
-- its own connection: each row is found by an index, however empty the table was when it was last looked at.

-- Everything that changes a queue takes this lock first, until the end of its transaction; per slot.
create or replace function aftercommit.hold_lock(slot text) returns void
language sql volatile
set search_path = ''
as $function$
  select pg_advisory_xact_lock(hashtext('aftercommit hold'), hashtext(slot))
$function$;

-- Lets queues go on whose first task waits although none before it is left: up to 1,000 tasks of each become due, all at
-- the same time, not beyond a dead one. The caller holds the lock.
create or replace function aftercommit.hold_advance(slots text[], sinks text[], keys text[]) returns void
language sql volatile
set search_path = ''
as $function$
  update aftercommit.hold h
  set due_at = (select clock_timestamp()), updated_at = clock_timestamp()
  from unnest(slots, sinks, keys) k (slot, sink, key)
  cross join lateral (
    select q.due_at, q.state
    from aftercommit.hold q
    where q.slot = k.slot and q.sink = k.sink and q.blocks and q.key = k.key
      and hashtextextended(q.key, 0) = hashtextextended(k.key, 0)
    order by q.hold_id + 0
    limit 1
  ) head
  cross join lateral (
    select first.hold_id, bool_or(first.state = 'dead') over (order by first.hold_id) as is_stopped
    from (
      select q.hold_id, q.state
      from aftercommit.hold q
      where q.slot = k.slot and q.sink = k.sink and q.blocks and q.key = k.key
        and hashtextextended(q.key, 0) = hashtextextended(k.key, 0)
      order by q.hold_id + 0
      limit 1000
    ) first
  ) next
  where head.due_at is null and head.state <> 'dead'
    and h.hold_id = next.hold_id and h.due_at is null and not next.is_stopped
$function$;

-- What stands behind these rows, in the queues that they block, waits for them, whatever it was due at. The rows that
-- have a due_at come first: those that wait already are not looked at, however many they are. The caller holds the lock.
create or replace function aftercommit.hold_stop(hold_ids bigint[]) returns void
language plpgsql volatile
set search_path = ''
as $function$
declare
  head record;
  last bigint;
begin
  for head in
    select h.slot, h.sink, h.key, min(h.hold_id) as hold_id
    from aftercommit.hold h
    where h.hold_id = any (hold_ids) and h.blocks
    group by h.slot, h.sink, h.key
  loop
    last := head.hold_id;
    loop
      with next as (
        select q.hold_id, q.due_at
        from aftercommit.hold q
        where q.slot = head.slot and q.sink = head.sink and q.blocks and q.key = head.key
          and hashtextextended(q.key, 0) = hashtextextended(head.key, 0) and q.hold_id + 0 > last
        order by q.hold_id + 0
        limit 100
      ), stopped as (
        update aftercommit.hold h set due_at = null, updated_at = clock_timestamp()
        where h.hold_id in (select hold_id from next where due_at is not null)
        returning h.hold_id
      )
      select max(hold_id) into last from stopped;
      exit when last is null;
    end loop;
  end loop;
end
$function$;

-- Whoever deletes a row, those behind it go on. The daemon sees to that by itself, and for many rows at once; for it, this
-- is not even queued.
create or replace function aftercommit.hold_after_delete() returns trigger
language plpgsql volatile
set search_path = '' set enable_seqscan = off set enable_sort = off
as $function$
begin
  perform aftercommit.hold_lock(old.slot);
  perform aftercommit.hold_advance(array[old.slot], array[old.sink], array[old.key]);
  return null;
end
$function$;

create or replace trigger hold_after_delete
  after delete on aftercommit.hold
  for each row when (old.blocks and current_setting('aftercommit.sees_to_queues', true) is distinct from 'on')
  execute function aftercommit.hold_after_delete();

-- A scheduled task whose time has come while a task of its key is held waits in that queue from now on, behind all that
-- has come before its time: it gets a new hold_id. Several do so in the order in which they were due. One that an open
-- transaction is cancelling is passed over.
create or replace function aftercommit.hold_enqueue(slot text, hold_ids bigint[]) returns void
language plpgsql volatile
set search_path = ''
as $function$
declare
  next bigint;
begin
  perform aftercommit.hold_lock(hold_enqueue.slot);
  for next in
    select h.hold_id from aftercommit.hold h where h.hold_id = any (hold_ids)
    order by h.due_at, h.hold_id for update skip locked
  loop
    update aftercommit.hold h
    set hold_id = default, blocks = true, due_at = null, updated_at = clock_timestamp()
    where h.hold_id = next and h.slot = hold_enqueue.slot and not h.blocks and h.key is not null
      and h.state = 'scheduled'
      and (
        select true from aftercommit.hold q
        where q.slot = h.slot and q.sink = h.sink and q.blocks and q.key = h.key
          and hashtextextended(q.key, 0) = hashtextextended(h.key, 0)
        order by q.hold_id + 0 limit 1
      ) is not null;
  end loop;
end
$function$;

-- Sends dead tasks again, with all their attempts and without their expires_at, which may have passed; and retrying ones
-- now. Says how many these are. One that stands behind another one of its key still waits for that one; one that no route
-- matched is routed anew. Scheduled tasks are left alone.
create or replace function aftercommit.hold_retry(hold_ids bigint[]) returns bigint
language plpgsql volatile
set search_path = '' set enable_seqscan = off set enable_sort = off
as $function$
declare
  retried bigint;
begin
  perform aftercommit.hold_lock(s.slot)
  from (select distinct h.slot from aftercommit.hold h where h.hold_id = any (hold_ids) order by h.slot) s;
  update aftercommit.hold h
  set state = 'retrying', updated_at = clock_timestamp(),
      attempts = case when h.state = 'dead' then 0 else h.attempts end,
      expires_at = case when h.state = 'dead' then null else h.expires_at end,
      due_at = case
        when h.blocks and (
          select true from aftercommit.hold q
          where q.slot = h.slot and q.sink = h.sink and q.blocks and q.key = h.key
            and hashtextextended(q.key, 0) = hashtextextended(h.key, 0) and q.hold_id + 0 < h.hold_id
          order by q.hold_id + 0 limit 1
        ) is not null then h.due_at
        else least(h.due_at, clock_timestamp())
      end
  where h.hold_id = any (hold_ids) and h.state <> 'scheduled';
  get diagnostics retried = row_count;
  return retried;
end
$function$;

create or replace function aftercommit.hold_retry(hold_id bigint) returns boolean
language sql volatile
set search_path = ''
as $function$
  select aftercommit.hold_retry(array[hold_id]) = 1
$function$;

-- Drops held tasks, and says how many. One that is being sent at this moment may still arrive; one that an open
-- transaction is cancelling is passed over. Those behind them go on.
create or replace function aftercommit.hold_discard(hold_ids bigint[]) returns bigint
language plpgsql volatile
set search_path = '' set enable_seqscan = off set enable_sort = off
as $function$
declare
  discarded bigint;
begin
  perform aftercommit.hold_lock(s.slot)
  from (select distinct h.slot from aftercommit.hold h where h.hold_id = any (hold_ids) order by h.slot) s;
  delete from aftercommit.hold h
  where h.hold_id in (
    select l.hold_id from aftercommit.hold l where l.hold_id = any (hold_ids) for update skip locked
  );
  get diagnostics discarded = row_count;
  return discarded;
end
$function$;

create or replace function aftercommit.hold_discard(hold_id bigint) returns boolean
language sql volatile
set search_path = ''
as $function$
  select aftercommit.hold_discard(array[hold_id]) = 1
$function$;

-- Cancels a scheduled task by its id. The answer:
--   cancelled     it will not run, if this transaction commits
--   too late      its time has come, or it has been tried: it runs, or has run, or is dead
--   not held      it is not in the hold: it was dispatched or cancelled before, never scheduled, or has committed so
--                 shortly before that it is not held yet: then ask again
--
-- For the application, which may not touch the table: it runs with the owner's rights. It waits for nobody, and makes
-- nobody wait: the daemon passes over a task whose cancelling transaction is still open.
create or replace function aftercommit.cancel(id text) returns text
language plpgsql volatile security definer
set search_path = ''
as $function$
begin
  delete from aftercommit.hold h
  where hashtextextended(h.id, 0) = hashtextextended(cancel.id, 0) and h.id = cancel.id
    and h.state = 'scheduled' and h.released_at is null and not h.blocks;
  if found then
    return 'cancelled';
  end if;
  perform from aftercommit.hold h
  where hashtextextended(h.id, 0) = hashtextextended(cancel.id, 0) and h.id = cancel.id;
  return case when found then 'too late' else 'not held' end;
end
$function$;

create or replace function aftercommit.cancel(id uuid) returns text
language sql volatile security invoker
set search_path = ''
as $function$
  select aftercommit.cancel(id::text)
$function$;

create or replace function aftercommit.cancel(id bigint) returns text
language sql volatile security invoker
set search_path = ''
as $function$
  select aftercommit.cancel(id::text)
$function$;

-- A function is everybody's when it is made.
revoke execute on function
  aftercommit.hold_lock(text),
  aftercommit.hold_advance(text[], text[], text[]),
  aftercommit.hold_stop(bigint[]),
  aftercommit.hold_after_delete(),
  aftercommit.hold_enqueue(text, bigint[]),
  aftercommit.hold_retry(bigint[]),
  aftercommit.hold_retry(bigint),
  aftercommit.hold_discard(bigint[]),
  aftercommit.hold_discard(bigint),
  aftercommit.cancel(text),
  aftercommit.cancel(uuid),
  aftercommit.cancel(bigint)
  from public;
