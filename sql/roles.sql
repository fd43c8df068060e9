-- Two groups without a login. The application's role becomes a member of the first, the daemon's of the second.
-- REPLICATION is an attribute and is not inherited: the daemon's own role has to have it.
-- Roles belong to the whole cluster: another database's init may make them at the same moment.
do $$
declare
  missing name;
begin
  for missing in
    select wanted from unnest(array['aftercommit_app', 'aftercommit_daemon']::name[]) wanted
    where not exists (select from pg_catalog.pg_roles where rolname = wanted)
  loop
    begin
      execute format('create role %I nologin', missing);
    exception when duplicate_object or unique_violation then
      null;
    end;
  end loop;
end
$$;
