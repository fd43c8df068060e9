grant execute on function
  aftercommit.outbox_key(regclass),
  aftercommit.outbox_partitions(regclass),
  aftercommit.outbox_extend(regclass, interval),
  aftercommit.outbox_drop(regclass, oid),
  aftercommit.outbox_strays(regclass)
  to aftercommit_daemon;
