//! Sinks whose secrets stand in files: what the configuration said before these were read, to read them again.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use tracing::warn;

use super::{Config, secrets};
use crate::sink::renewed::Renewed;
use crate::sink::{Named, Sink, Tables};

/// The sinks as they are written, and the folder that relative paths begin at.
#[derive(Clone, Debug)]
pub(super) struct AsWritten {
    pub(super) sinks: Tables,
    pub(super) folder: PathBuf,
}

impl Config {
    /// A client of each sink; it connects when it is first used. Where its secrets stand in files, it takes those that stand
    /// there when its place is away.
    ///
    /// # Errors
    /// The key that makes no sense, and why.
    pub fn open_sinks(&self) -> Result<Vec<Named>, String> {
        let sinks = self.sinks.open()?;
        let renewed = |(name, sink): Named| {
            let sink = match &self.as_written {
                Some(written) => written.renewed(&name, sink),
                None => sink,
            };
            (name, sink)
        };
        Ok(sinks.into_iter().map(renewed).collect())
    }
}

impl AsWritten {
    fn renewed(&self, name: &str, sink: Box<dyn Sink>) -> Box<dyn Sink> {
        let written = self.clone();
        let Ok(mut known) = written.read(name).map(|(secrets, _)| secrets) else {
            return sink;
        };
        if known.is_empty() {
            return sink;
        }
        let of = name.to_owned();
        let renew = move || {
            let (found, mut sinks) = match written.read(&of) {
                Ok(read) => read,
                Err(why) => {
                    warn!(sink = %of, %why, "the secrets of a sink that is away cannot be read again");
                    return None;
                }
            };
            let text = |secret: &SecretString| secret.expose_secret().to_owned();
            if found.iter().map(text).eq(known.iter().map(text)) {
                return None;
            }
            known = found;
            let (_, _, settings) = sinks.each_mut().find(|(_, name, _)| *name == of)?;
            match settings.open() {
                Ok(sink) => Some(sink),
                Err(invalid) => {
                    warn!(sink = %of, why = %invalid, "the new secrets of a sink do not do");
                    None
                }
            }
        };
        Box::new(Renewed::new(name, sink, Box::new(renew)))
    }

    /// The secrets of a sink as they stand in their files now, and its settings with them.
    fn read(&self, name: &str) -> Result<(Vec<SecretString>, Tables), String> {
        let mut sinks = self.sinks.clone();
        let mut found = Vec::new();
        for (_, _, settings) in sinks.each_mut().filter(|(_, known, _)| *known == name) {
            for of in settings.secrets() {
                if let Some(file) = of.file.take() {
                    let secret = secrets::read(&self.folder.join(Path::new(&file)))?;
                    found.push(secret.clone());
                    *of.secret = Some(secret);
                }
            }
        }
        Ok((found, sinks))
    }
}
