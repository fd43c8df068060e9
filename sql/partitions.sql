-- The partitions of an outbox that is partitioned by range of its date: made ahead of time, and dropped when all that was
-- in them is settled.
--
-- Only a table's owner may make or drop a partition. These functions do just that, with their owner's rights (who ran
-- init: the table's owner, or a superuser), for a role that may delete every row of the table anyway. So the daemon's role
-- owns nothing. New partitions belong to the owner of the table.
--
-- Days and months are UTC's. A timestamp without time zone, or a date, may be anybody's: it is past when it is past
-- everywhere, and to come until it has come everywhere.
--
-- pg_temp stands last in their search paths: a caller's temporary types shadow nothing.
--
-- No function waits for a lock for longer than 100 ms: whoever waits for an exclusive lock makes the application wait, too.

-- The type of the column by which an outbox is partitioned; an error where it is partitioned in another way, or not, or
-- where the caller may not delete its rows.
create or replace function aftercommit.outbox_key(outbox regclass) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
  key text;
begin
  select format_type(a.atttypid, null) into key
  from pg_catalog.pg_partitioned_table p
  join pg_catalog.pg_attribute a on a.attrelid = p.partrelid and a.attnum = p.partattrs[0]
  where p.partrelid = outbox and p.partstrat = 'r' and p.partnatts = 1
    and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype);
  if key is null then
    raise exception '% is not partitioned by range of one column of type timestamptz, timestamp or date', outbox
      using errcode = 'wrong_object_type';
  end if;
  if not has_table_privilege(session_user, outbox, 'delete') then
    raise exception 'role % may not delete from %', session_user, outbox using errcode = 'insufficient_privilege';
  end if;
  return key;
end
$function$;

-- The partitions, but for the DEFAULT one. past: for how long no clock in the world has shown a date of the partition.
create or replace function aftercommit.outbox_partitions(outbox regclass)
returns table (id oid, name text, lower timestamptz, upper timestamptz, past interval)
language sql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $function$
  select p.oid, p.name, p.lower, p.upper,
         case when isfinite(p.upper) then now() - p.upper end
           - case when aftercommit.outbox_key(outbox) = 'timestamp with time zone' then interval '0' else interval '12 hours' end
  from (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name,
           case bounds[1] when 'MINVALUE' then '-infinity' else trim(both '''' from bounds[1])::timestamptz end as lower,
           case bounds[2] when 'MAXVALUE' then 'infinity' else trim(both '''' from bounds[2])::timestamptz end as upper
    from pg_catalog.pg_inherits i
    join pg_catalog.pg_class c on c.oid = i.inhrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    cross join regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') bounds
    where i.inhparent = outbox and not i.inhdetachpending and bounds is not null
  ) p
  order by p.lower
$function$;

-- Makes the partitions that are missing between now and two partitions from now, and returns them. Each is as wide as the
-- last one that there is, and begins where one ends; months stay months. The first is as wide as it is said here. One
-- that cannot be made, because rows of it are in the DEFAULT partition or its name is taken, is returned with the problem,
-- and the next ones are made.
--
-- Made as a table and then attached: that lets readers and writers of the outbox go on, which CREATE TABLE ... PARTITION
-- OF does not.
create or replace function aftercommit.outbox_extend(outbox regclass, width interval)
returns table (name text, lower timestamptz, upper timestamptz, problem text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '100ms'
as $function$
declare
  key constant text := aftercommit.outbox_key(outbox);
  is_anybodys constant boolean := key <> 'timestamp with time zone';
  parent record;
  newest record;
  months integer := 0;
  moment timestamptz := now() - case when is_anybodys then interval '12 hours' else interval '0' end;
  goal timestamptz;
  here timestamptz;
  below timestamptz;
  above timestamptz;
  origin timestamptz;
  base text;
  tries integer := 0;
begin
  select n.nspname, c.relname, pg_get_userbyid(c.relowner) as owner, t.spcname into strict parent
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_tablespace t on t.oid = c.reltablespace
  where c.oid = outbox;
  select p.lower, p.upper into newest
  from aftercommit.outbox_partitions(outbox) p
  where isfinite(p.lower) and isfinite(p.upper)
  order by p.upper desc limit 1;
  if newest.upper is not null then
    width := newest.upper - newest.lower;
    if date_trunc('month', newest.lower) = newest.lower and date_trunc('month', newest.upper) = newest.upper then
      width := age(newest.upper, newest.lower);
      months := 12 * extract(year from width) + extract(month from width);
    end if;
  end if;
  if key = 'date' and months = 0 then
    width := make_interval(days => ceil(extract(epoch from width) / 86400)::integer);
  end if;
  goal := now() + 2 * width + case when is_anybodys then interval '14 hours' else interval '0' end;

  -- Where a name is too long, its end makes room for the date.
  base := parent.relname;
  while octet_length(base) > 63 - length('_p20250101_235959') loop
    base := left(base, -1);
  end loop;

  while moment < goal and tries < 100 loop
    here := null;
    select p.upper into here from aftercommit.outbox_partitions(outbox) p where p.lower <= moment and p.upper > moment;
    exit when here = 'infinity';
    if here is not null then
      moment := here;
      continue;
    end if;
    select max(p.upper) filter (where p.upper <= moment), min(p.lower) filter (where p.lower > moment) into below, above
    from aftercommit.outbox_partitions(outbox) p;
    -- 2001 began with a Monday.
    origin := coalesce(below, case when isfinite(above) then above end, '2001-01-01');
    if months = 0 then
      lower := origin + floor(extract(epoch from moment - origin) / extract(epoch from width))::double precision * width;
    else
      lower := origin + make_interval(months => months * floor((
          12 * (extract(year from moment) - extract(year from origin)) + extract(month from moment) - extract(month from origin)
        ) / months)::integer);
      if lower > moment then
        lower := lower - width;
      end if;
    end if;
    upper := least(lower + width, above);
    lower := greatest(lower, below);
    name := base || to_char(lower, '"_p"YYYYMMDD') || case
      when lower = date_trunc('day', lower) then ''
      when lower = date_trunc('minute', lower) then to_char(lower, '"_"HH24MI')
      else to_char(lower, '"_"HH24MISS')
    end;
    problem := null;
    begin
      execute format('create table %I.%I (like %s including all excluding identity excluding comments)%s',
        parent.nspname, name, outbox, ' tablespace ' || quote_ident(parent.spcname));
      if parent.owner <> current_user then
        execute format('alter table %I.%I owner to %I', parent.nspname, name, parent.owner);
      end if;
      execute format('alter table %s attach partition %I.%I for values from (%L) to (%L)',
        outbox, parent.nspname, name, lower, upper);
    exception when check_violation or duplicate_table then
      problem := sqlerrm;
    end;
    name := format('%I.%I', parent.nspname, name);
    return next;
    tries := tries + 1;
    moment := upper;
  end loop;
end
$function$;

-- Drops a partition that is past. That all in it is settled is for the caller to know.
create or replace function aftercommit.outbox_drop(outbox regclass, id oid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  gone text;
begin
  perform aftercommit.outbox_key(outbox);
  execute format('lock table only %s in access exclusive mode', outbox);
  select p.name into gone
  from aftercommit.outbox_partitions(outbox) p
  where p.id = outbox_drop.id and p.past > interval '0';
  if gone is null then
    raise exception '% has no partition with OID % that is past', outbox, id using errcode = 'undefined_table';
  end if;
  execute format('drop table %s', gone);
end
$function$;

-- The DEFAULT partition, where it has rows.
create or replace function aftercommit.outbox_strays(outbox regclass) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  name text;
  has_rows boolean;
begin
  perform aftercommit.outbox_key(outbox);
  select format('%I.%I', n.nspname, c.relname) into name
  from pg_catalog.pg_partitioned_table p
  join pg_catalog.pg_class c on c.oid = p.partdefid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where p.partrelid = outbox;
  if name is not null then
    execute format('select exists (select from %s)', name) into has_rows;
  end if;
  return case when has_rows then name end;
end
$function$;

-- A function is everybody's when it is made.
revoke execute on function
  aftercommit.outbox_key(regclass),
  aftercommit.outbox_partitions(regclass),
  aftercommit.outbox_extend(regclass, interval),
  aftercommit.outbox_drop(regclass, oid),
  aftercommit.outbox_strays(regclass)
  from public;
