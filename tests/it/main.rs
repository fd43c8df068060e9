//! Integration tests: real servers, started by `support`.

mod demo;
mod private_postgres;
mod properties;
mod scenarios;
mod support;
mod tls;
mod walsender;
mod celery_messages;
mod celery_redis;
mod conformance;
mod redis_server;
mod cli;
mod config;
mod config_errors;
mod config_generated;
mod example;
