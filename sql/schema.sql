create schema if not exists aftercommit;
comment on schema aftercommit is 'aftercommit: tasks that are dispatched after COMMIT';
