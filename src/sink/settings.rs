//! Settings of sinks: what a `[sink.<type>.<name>]` owes, and the checks that many of them share.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::Sink;

/// What is configured in `[sink.<type>.<name>]`.
pub trait Settings {
    /// Checks what can be checked without the destination and without a file.
    ///
    /// # Errors
    /// The first setting that does not do.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// The settings that may stand in files of their own.
    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        Vec::new()
    }

    /// A client; it connects when it is first used. Files that the settings name are read now.
    ///
    /// # Errors
    /// The first setting that does not do.
    fn open(&self) -> Result<Box<dyn Sink>, Invalid>;
}

/// A setting that does not do: which one, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} {words}")]
pub struct Invalid {
    /// The key in `[sink.<type>.<name>]`.
    pub key: &'static str,
    /// What is wrong with it; begins with a verb. Repeats nothing that may be secret.
    pub words: String,
}

impl Invalid {
    /// This key does not do.
    pub fn new(key: &'static str, words: impl Into<String>) -> Invalid {
        Invalid {
            key,
            words: words.into(),
        }
    }

    /// What this file holds is needed now, and nobody has read it.
    pub(super) fn unread(file_key: &'static str) -> Invalid {
        Invalid::new(file_key, "has not been read")
    }
}

/// A secret that may stand in a file of its own. Once the configuration is loaded, it stands where it belongs.
#[derive(Debug)]
pub struct SecretFile<'a> {
    /// The key that names the file.
    pub key: &'static str,
    /// The file.
    pub file: &'a mut Option<PathBuf>,
    /// The setting that the file's content becomes.
    pub secret: &'a mut Option<SecretString>,
}

/// A setting and the file that may hold it, with their keys.
pub(super) struct Either<'a> {
    /// The setting, and its key.
    pub(super) setting: (&'static str, &'a Option<SecretString>),
    /// The file, and its key.
    pub(super) file: (&'static str, &'a Option<PathBuf>),
}

impl<'a> Either<'a> {
    /// `url` and `url_file`.
    pub(super) fn url(url: &'a Option<SecretString>, file: &'a Option<PathBuf>) -> Either<'a> {
        Either {
            setting: ("url", url),
            file: ("url_file", file),
        }
    }

    /// No more than one of them.
    pub(super) fn at_most_one(&self) -> Result<(), Invalid> {
        match (self.setting, self.file) {
            ((key, Some(_)), (file_key, Some(_))) => Err(Invalid::new(
                file_key,
                format!("and {key} exclude each other"),
            )),
            _ => Ok(()),
        }
    }

    /// One of them: the setting, unless a file holds it. Where neither is given, `missing` says what to give.
    pub(super) fn one(&self, missing: &'static str) -> Result<Option<&'a SecretString>, Invalid> {
        self.at_most_one()?;
        match (self.setting, self.file) {
            ((key, None), (_, None)) => Err(Invalid::new(key, format!("is missing: {missing}"))),
            ((_, setting), _) => Ok(setting.as_ref()),
        }
    }
}

/// A wait without an end is none, and one of no length ends before anything can be.
pub(super) fn check_timeout(key: &'static str, timeout: Duration) -> Result<(), Invalid> {
    match timeout.is_zero() {
        true => Err(Invalid::new(key, "must be longer than nothing")),
        false => Ok(()),
    }
}

/// How long a broker may be silent before it counts as away.
pub(super) fn default_timeout() -> Duration {
    Duration::from_secs(10)
}
