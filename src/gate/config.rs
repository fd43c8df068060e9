//! `[gate]`: when a committed task may leave.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::replication::Target;

/// `[gate]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A task waits until a snapshot of the primary sees its transaction.
    pub visibility: bool,
    /// URLs of standbys that workers read from; a task also waits until each has replayed its transaction.
    pub replicas: Vec<SecretString>,
    /// After this long at the gate a task is counted and warned of; it is never dispatched early.
    #[serde(deserialize_with = "crate::units::duration")]
    pub timeout: Duration,
}

impl Config {
    /// Where the standbys are. `password` is for a URL that has none.
    ///
    /// # Errors
    /// What is wrong with a URL, in words that repeat no secret.
    pub fn targets(
        &self,
        password: Option<&SecretString>,
    ) -> impl Iterator<Item = Result<Target, String>> {
        self.replicas.iter().map(move |url| {
            let target = Target::parse(url.expose_secret(), None)?;
            Ok(target.or_password(password.cloned()).in_recovery_too())
        })
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            visibility: true,
            replicas: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }
}
