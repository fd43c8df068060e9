//! `aftercommit hold` on a real server.
