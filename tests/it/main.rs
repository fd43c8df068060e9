//! Integration tests: real servers, started by `support`.

mod demo;
mod private_postgres;
mod properties;
mod scenarios;
mod support;
mod tls;
mod walsender;
