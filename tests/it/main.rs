//! Integration tests: real servers, started by `support`.

mod celery_messages;
mod celery_redis;
mod conformance;
mod redis_server;
