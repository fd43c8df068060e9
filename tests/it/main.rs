//! Integration tests: real servers, started by `support`.

mod celery_messages;
mod celery_redis;
mod cli;
mod config;
mod config_errors;
mod config_generated;
mod conformance;
mod contract;
mod control_postgres;
mod demo;
mod example;
mod gate;
mod hold_cli;
mod hold_histories;
mod hold_store;
mod init;
mod kills;
mod preflight;
mod private_postgres;
mod properties;
mod redis_server;
mod scenarios;
mod support;
mod tls;
mod walsender;
