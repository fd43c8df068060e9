-- The application may cancel what it has scheduled.
grant usage on schema aftercommit to aftercommit_app;
grant execute on function aftercommit.cancel(text), aftercommit.cancel(uuid), aftercommit.cancel(bigint)
  to aftercommit_app;

-- The daemon, and who may do what it may: holds tasks, and keeps its checkpoint. It reads catalogs, which everybody may,
-- and the slot.
grant usage on schema aftercommit to aftercommit_daemon;
grant select, insert, update, delete on table aftercommit.hold to aftercommit_daemon;
grant select, insert, update on table aftercommit.checkpoint to aftercommit_daemon;
grant execute on function
  aftercommit.hold_lock(text),
  aftercommit.hold_advance(text[], text[], text[]),
  aftercommit.hold_stop(bigint[]),
  aftercommit.hold_after_delete(),
  aftercommit.hold_enqueue(text, bigint[]),
  aftercommit.hold_retry(bigint[]),
  aftercommit.hold_retry(bigint),
  aftercommit.hold_discard(bigint[]),
  aftercommit.hold_discard(bigint)
  to aftercommit_daemon;
grant execute on function aftercommit.cancel(text), aftercommit.cancel(uuid), aftercommit.cancel(bigint)
  to aftercommit_daemon;
do $$
begin
  if not has_database_privilege('aftercommit_daemon', current_database(), 'connect') then
    execute format('grant connect on database %I to aftercommit_daemon', current_database());
  end if;
end
$$;
