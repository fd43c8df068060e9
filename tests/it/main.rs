//! Integration tests: real servers, started by `support`.

mod demo;
