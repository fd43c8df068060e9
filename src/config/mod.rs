//! Floor 9: the configuration file, from text to checked structs.
//!
//! The structs of the sections stand beside what they configure. Here is what they have in common: reading, variables,
//! secrets from files, and errors that show the line, the place in it, and the remedy.
//!
//! The way of a text: TOML → variables (`interpolate`) → shape (`shape`) → structs (`decode`) → checks across keys
//! (`validate`) → secrets from files (`secrets`). All mistakes that one step finds are told together.

mod decode;
mod findings;
mod interpolate;
mod keys;
mod mask;
mod renewal;
mod report;
mod secrets;
mod sections;
mod shape;
mod snippet;
mod tree;
mod validate;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

pub use keys::all as keys;
pub use report::{Error, Finding, Severity};
pub use sections::{Admin, Limits};

use crate::{gate, logging, outbox, replication, route, sink};
use decode::Document;
use report::Problem;

/// A configuration that was read and checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[postgres]`
    pub postgres: replication::Config,
    /// `[outbox]`
    #[serde(default)]
    pub outbox: outbox::Config,
    /// `[gate]`
    #[serde(default)]
    pub gate: gate::config::Config,
    /// `[sink.<type>.<name>]`
    #[serde(default, rename = "sink")]
    pub sinks: sink::Tables,
    /// `[[route]]`, in the order of the file.
    #[serde(default, rename = "route")]
    pub routes: Vec<route::Config>,
    /// `[limits]`
    #[serde(default)]
    pub limits: Limits,
    /// `[log]`
    #[serde(default)]
    pub log: logging::Config,
    /// `[admin]`
    #[serde(default)]
    pub admin: Admin,
    /// The type of each sink, by its name.
    #[serde(skip)]
    pub sink_types: BTreeMap<String, String>,
    /// What the operator should know, although it can be used.
    #[serde(skip)]
    pub findings: Vec<Finding>,
    /// Before secrets were read from files.
    #[serde(skip)]
    as_written: Option<renewal::AsWritten>,
}

/// A longer file is no configuration.
const LONGEST: u64 = 1 << 20;

impl Config {
    /// Reads, checks and completes the file at `path`: variables from the environment, secrets from the files that it
    /// names (relative ones from its own folder).
    ///
    /// # Errors
    /// All that is wrong with it, with place and remedy.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let name = path.display().to_string();
        let text = read(path).map_err(|why| {
            let help = "give the path of the configuration with -c or AFTERCOMMIT_CONFIG";
            Error::without_place(
                &name,
                format!("cannot be read: {why}"),
                Some(help.to_owned()),
            )
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let open = |file: &Path| secrets::read(&folder.join(file));
        let environment = |variable: &str| std::env::var(variable).ok();
        let mut config = compose(&name, &text, &environment, Some(&open))?;
        if let Some(written) = &mut config.as_written {
            written.folder = folder.to_owned();
        }
        Ok(config)
    }

    /// Reads and checks `text`; `name` stands for the file in errors, `env` for the environment. Files that hold secrets
    /// are not opened.
    ///
    /// # Errors
    /// All that is wrong with it, with place and remedy.
    pub fn parse(
        name: &str,
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, Error> {
        compose(name, text, env, None)
    }
}

fn compose(
    name: &str,
    text: &str,
    env: interpolate::Env<'_>,
    open: Option<secrets::Open<'_>>,
) -> Result<Config, Error> {
    let (tree, faults) = DeTable::parse_recoverable(text);
    let masks = mask::secrets(tree.get_ref(), text, !faults.is_empty());
    let fail = |problems| Err(Error::new(name, text, problems, &masks));
    if !faults.is_empty() {
        return fail(syntax(text, &faults));
    }
    let mut document = Document::new(text, tree);
    let unset = interpolate::expand(document.tree.get_mut(), text, env);
    document.fail(unset);
    shape::check(&mut document);
    let (sink_types, twice) = shape::sinks(document.tree.get_ref());
    let Some(mut config) = document.decode() else {
        return fail(document.problems);
    };
    config.sink_types = sink_types;
    let mut problems = validate::check(&config, text, document.tree.get_ref());
    problems.extend(twice);
    if let (true, Some(open)) = (problems.is_empty(), open) {
        config.as_written = Some(renewal::AsWritten {
            sinks: config.sinks.clone(),
            folder: PathBuf::new(),
        });
        problems = secrets::fill(&mut config, document.tree.get_ref(), open);
        if problems.is_empty() {
            problems = validate::connections(&config, text, document.tree.get_ref());
        }
    }
    if !problems.is_empty() {
        return fail(problems);
    }
    config.findings = findings::told(&config, text, document.tree.get_ref());
    Ok(config)
}

/// The parser goes on after a mistake; what it finds on the same line is most often the same mistake.
fn syntax(text: &str, faults: &[toml::de::Error]) -> Vec<Problem> {
    let mut lines = Vec::new();
    let mut problems = Vec::new();
    for fault in faults {
        let line = fault.span().map(|at| tree::line_number(text, at.start));
        if !lines.contains(&line) {
            lines.push(line);
            let title = match fault.message() {
                message if message.contains("string, expected") => "this string is not closed",
                message => message,
            };
            problems.push(Problem::new(title).at(fault.span()));
        }
    }
    problems
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let longest = file.take(LONGEST + 1).read_to_end(&mut bytes);
    longest.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err("it is longer than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line =
            1 + memchr::memchr_iter(b'\n', error.as_bytes().get(..valid).unwrap_or(&[])).count();
        format!("line {line} is not UTF-8")
    })
}
