//! `[postgres]`: the primary, the slot and the publication.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::target::Target;

/// `[postgres]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Connection URL of the primary, straight to the server: poolers do not pass replication.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`.
    pub url_file: Option<PathBuf>,
    /// A file that holds the password, where the URL has none.
    pub password_file: Option<PathBuf>,
    /// What `password_file` holds; read when the configuration is loaded.
    #[serde(skip)]
    pub password: Option<SecretString>,
    /// The logical replication slot.
    #[serde(default = "default_name")]
    pub slot: String,
    /// The publication.
    #[serde(default = "default_name")]
    pub publication: String,
    /// A lost slot is made again, and the rows that are still in the outbox are dispatched.
    #[serde(default)]
    pub heal: bool,
}

impl Config {
    /// Where the primary is.
    ///
    /// # Errors
    /// What is wrong with the URL, in words that repeat no secret.
    pub fn target(&self) -> Result<Target, String> {
        let url = self.url.as_ref().ok_or("the primary has no URL")?;
        Target::parse(url.expose_secret(), self.password.clone())
    }
}

fn default_name() -> String {
    "aftercommit".to_owned()
}
