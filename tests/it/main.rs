//! Integration tests: real servers, started by `support`.

mod celery_messages;
mod celery_redis;
mod cli;
mod config;
mod conformance;
mod contract;
mod control_postgres;
mod demo;
mod example;
mod gate;
mod init;
mod kills;
mod lifecycle;
mod preflight;
mod primary_faults;
mod private_postgres;
mod properties;
mod redis_server;
mod refused;
mod scenarios;
mod sink_faults;
mod server_faults;
mod support;
mod tls;
mod versions;
mod walsender;
