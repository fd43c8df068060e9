//! Integration tests: real servers, started by `support`.

mod scenarios;
mod support;
