-- The application inserts, and does nothing else: it can neither read, nor change, nor delete a row.
grant usage on schema aftercommit to aftercommit_app;
grant insert on table aftercommit.outbox to aftercommit_app;
grant execute on function aftercommit.enqueue to aftercommit_app;
