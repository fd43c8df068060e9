//! Integration tests: real servers, started by `support`.

mod scenarios;
mod support;
mod private_postgres;
mod tls;
mod walsender;
mod properties;
mod demo;
