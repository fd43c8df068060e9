-- One row is one task. A row that no worker could take fails here, in the application's own transaction.
--
-- json, not jsonb: the text goes through as it was written (big integers, order of keys), and costs neither the
-- application nor the server a conversion. A jsonb value is cast on assignment.
--
-- The limit on a row's size counts what logical decoding sends: text, and a body in hexadecimal, twice its size. It is
-- far below the 1 GB that decoding can send at all: a larger change would stop the slot for ever.
--
-- created_at is the time of the row, not that of its transaction: it keeps the order of rows of one statement, which the table
-- itself does not (a small row goes into a gap that a large one left).
--
-- Together the checks cost an insert about 17 microseconds of the server's time, once per statement.
create table if not exists aftercommit.outbox (
  id         uuid        not null default gen_random_uuid(),
  task       text        not null,
  args       json,
  kwargs     json,
  payload    json,
  body       bytea,
  key        text,
  queue      text,
  headers    json,
  priority   smallint,
  run_at     timestamptz,
  expires_at timestamptz,
  options    json,
  created_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint task_is_not_empty    check (task <> ''),
  constraint args_is_an_array     check (json_typeof(args) = 'array'),
  constraint kwargs_is_an_object  check (json_typeof(kwargs) = 'object'),
  constraint headers_is_an_object check (json_typeof(headers) = 'object'),
  constraint options_is_an_object check (json_typeof(options) = 'object'),
  constraint priority_is_a_byte   check (priority between 0 and 255),
  constraint run_at_is_a_date     check (run_at >= '1970-01-01 00:00:00+00' and run_at < '9999-01-01 00:00:00+00'),
  constraint expires_at_is_a_date check (expires_at >= '1970-01-01 00:00:00+00' and expires_at < '9999-01-01 00:00:00+00'),
  constraint row_is_at_most_256_mib check (
    octet_length(concat(task, args, kwargs, payload, body, key, queue, headers, options)) <= 268435456
  )
);

comment on table aftercommit.outbox is
  'insert a row: its task is dispatched when the transaction has committed, and never if it rolls back';
comment on column aftercommit.outbox.id is 'the task''s identity everywhere: Celery task_id, message id, idempotency key';
comment on column aftercommit.outbox.task is 'task name or event type: what routes match';
comment on column aftercommit.outbox.args is 'positional arguments, a JSON array';
comment on column aftercommit.outbox.kwargs is 'keyword arguments, a JSON object';
comment on column aftercommit.outbox.payload is 'the body for sinks that carry events instead of calls';
comment on column aftercommit.outbox.body is
  'a message that the application has already built; sent as it is (options say its type)';
comment on column aftercommit.outbox.key is 'ordering key: same key, same order';
comment on column aftercommit.outbox.queue is 'overrides the route''s queue, subject, topic or stream';
comment on column aftercommit.outbox.headers is 'message headers, a JSON object';
comment on column aftercommit.outbox.priority is '0 to 255, as the broker understands it';
comment on column aftercommit.outbox.run_at is 'not before';
comment on column aftercommit.outbox.expires_at is 'not after';
comment on column aftercommit.outbox.options is 'sink-specific extras, a JSON object';
