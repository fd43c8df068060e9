//! Secrets that stand in files of their own.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::de::DeTable;

use super::Config;
use super::report::Problem;
use super::{mask, tree};

/// Reads the secret in a file, or tells in words why it cannot.
pub(super) type Open<'a> = &'a dyn Fn(&Path) -> Result<SecretString, String>;

/// No URL and no password is longer.
const LONGEST: u64 = 64 << 10;

/// Fills in what the `*_file` keys of `config` name, and empties these keys.
pub(super) fn fill(config: &mut Config, table: &DeTable<'_>, open: Open<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut fill =
        |path: &[&str], file: &mut Option<PathBuf>, secret: &mut Option<SecretString>| {
            let Some(file) = file.take() else { return };
            match open(&file) {
                Ok(text) => *secret = Some(text),
                Err(why) => {
                    let key = path.last().copied().unwrap_or_default();
                    let title = format!("`{key}`: {why}");
                    let place = tree::value(table, path).map(|value| value.span());
                    problems.push(Problem::new(title).at(place));
                }
            }
        };
    let postgres = &mut config.postgres;
    fill(
        &["postgres", "url_file"],
        &mut postgres.url_file,
        &mut postgres.url,
    );
    fill(
        &["postgres", "password_file"],
        &mut postgres.password_file,
        &mut postgres.password,
    );
    for (kind, name, settings) in config.sinks.each_mut() {
        for of in settings.secrets() {
            fill(&["sink", kind, name, of.key], of.file, of.secret);
        }
    }
    problems
}

/// The text of a file without the newlines at its end.
pub(super) fn read(path: &Path) -> Result<SecretString, String> {
    let shown = path.display().to_string();
    let shown = match mask::has_credentials(&shown) {
        true => "the file that it names",
        false => shown.as_str(),
    };
    let because = |error: std::io::Error| format!("{shown} cannot be read: {error}");
    let file = File::open(path).map_err(because)?;
    let mut text = String::new();
    let length = file.take(LONGEST + 1).read_to_string(&mut text);
    let length = length.map_err(because)?;
    if length as u64 > LONGEST {
        return Err(format!("{shown} is longer than 64 KiB"));
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("{shown} is empty")),
        text => Ok(text.to_owned().into()),
    }
}
