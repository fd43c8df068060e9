//! Integration tests: real servers, started by `support`.

mod celery_messages;
mod celery_redis;
mod cli;
mod config;
mod conformance;
mod contract;
mod demo;
mod example;
mod gate;
mod init;
mod kills;
mod lifecycle;
mod memory;
mod preflight;
mod primary_faults;
mod properties;
mod refused;
mod rejected;
mod scenarios;
mod server_faults;
mod sink_faults;
mod support;
mod tls;
mod versions;
mod walsender;
