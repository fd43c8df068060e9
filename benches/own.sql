-- The outbox of our own, with the same payloads, for what happens to settled rows.
create publication own for table aftercommit.outbox with (publish = 'insert');

-- So many rows, in transactions of a hundred; of ten thousand keys, or without.
create procedure load_own(total bigint, keyed boolean) language plpgsql as $$
begin
  for k in 0 .. total / 100 - 1 loop
    insert into aftercommit.outbox (task, key, kwargs, headers)
      select 'app.orders.tasks.send_confirmation', case when keyed then 'customer-' || (i % 10000) end,
             payload(i)::json, headers(i)::json
      from generate_series(k * 100 + 1, k * 100 + 100) i;
    commit;
  end loop;
end
$$;
