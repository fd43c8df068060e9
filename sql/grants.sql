-- The application inserts, and does nothing else: it can neither read, nor change, nor delete a row.
grant usage on schema aftercommit to aftercommit_app;
grant insert on table aftercommit.outbox to aftercommit_app;
grant execute on function aftercommit.enqueue to aftercommit_app;

-- The daemon reads catalogs, which everybody may, and the slot.
grant usage on schema aftercommit to aftercommit_daemon;
do $$
begin
  if not has_database_privilege('aftercommit_daemon', current_database(), 'connect') then
    execute format('grant connect on database %I to aftercommit_daemon', current_database());
  end if;
end
$$;
