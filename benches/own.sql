-- The outbox of our own, with the same payloads, for what happens to settled rows; and one that is partitioned.
create table aftercommit.parted (like aftercommit.outbox including defaults including constraints, primary key (id, created_at))
  partition by range (created_at);

create publication own for table aftercommit.outbox, aftercommit.parted
  with (publish = 'insert', publish_via_partition_root = true);

-- So many rows, in transactions of a hundred; of ten thousand keys, or without.
create procedure load_own(target regclass, total bigint, keyed boolean) language plpgsql as $$
begin
  for k in 0 .. total / 100 - 1 loop
    execute format(
      'insert into %s (task, key, kwargs, headers)
       select ''app.orders.tasks.send_confirmation'', case when $2 then ''customer-'' || (i %% 10000) end,
              payload(i)::json, headers(i)::json
       from generate_series($1 * 100 + 1, $1 * 100 + 100) i', target) using k, keyed;
    commit;
  end loop;
end
$$;

-- Today's partition, which is what a run fills.
create procedure make_partition() language plpgsql as $$
begin
  execute format('create table if not exists aftercommit.parted_now partition of aftercommit.parted for values from (%L) to (%L)',
                 date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '1 day',
                 date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' + interval '1 day');
end
$$;
