//! What is wrong with a configuration, as the operator reads it: the place, the line, a caret, the remedy.

use std::fmt;
use std::ops::Range;

use super::snippet::{Excerpt, Style};
use super::{mask, tree};

/// One thing that is wrong, before its place in the text is looked up.
#[derive(Debug)]
pub(super) struct Problem {
    title: String,
    at: Option<Range<usize>>,
    label: Option<String>,
    help: Option<String>,
    hide: Vec<Range<usize>>,
}

impl Problem {
    pub(super) fn new(title: impl Into<String>) -> Problem {
        Problem {
            title: title.into(),
            at: None,
            label: None,
            help: None,
            hide: Vec::new(),
        }
    }

    /// The place in the text.
    pub(super) fn at(self, at: impl Into<Option<Range<usize>>>) -> Problem {
        let at = at.into();
        Problem { at, ..self }
    }

    /// What stands beside the caret.
    pub(super) fn label(self, label: impl Into<Option<String>>) -> Problem {
        let label = label.into();
        Problem { label, ..self }
    }

    /// The remedy.
    pub(super) fn help(self, help: impl Into<String>) -> Problem {
        let help = Some(help.into());
        Problem { help, ..self }
    }

    /// Strings that are not shown, since nothing is known of them.
    pub(super) fn hide(self, hide: Vec<Range<usize>>) -> Problem {
        Problem { hide, ..self }
    }
}

/// One thing that is wrong, with the line that it is about. Secrets in the line are masked already.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    title: String,
    place: Option<Excerpt>,
    help: Option<String>,
}

/// Why a configuration cannot be used. [`fmt::Display`] shows each problem with its place and its remedy, over several
/// lines; no secret is in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    name: String,
    reports: Vec<Report>,
}

/// More would scroll the first one away.
const SHOWN: usize = 10;

impl Error {
    /// A failure that has no place in a text, such as an unreadable file.
    pub(super) fn without_place(name: &str, title: String, help: Option<String>) -> Error {
        let report = Report {
            title,
            place: None,
            help,
        };
        Error {
            name: name.to_owned(),
            reports: vec![report],
        }
    }

    /// Looks up and masks the lines of `problems`, and puts them in the order of the text.
    pub(super) fn new(
        name: &str,
        text: &str,
        mut problems: Vec<Problem>,
        secrets: &[Range<usize>],
    ) -> Error {
        problems.sort_by_key(|problem| problem.at.as_ref().map_or(0, |at| at.start));
        let reports = problems.into_iter().map(|problem| {
            let hidden = problem
                .hide
                .iter()
                .flat_map(|at| mask::inside_quotes(text, at));
            let secrets: Vec<_> = secrets.iter().cloned().chain(hidden).collect();
            let place = problem
                .at
                .map(|at| place(text, &at, problem.label, &secrets));
            let Problem { title, help, .. } = problem;
            Report { title, place, help }
        });
        Error {
            name: name.to_owned(),
            reports: reports.collect(),
        }
    }

    /// The whole message, with colours if `styled`.
    pub fn render(&self, styled: bool) -> String {
        let style = Style::new(styled);
        let shown = self.reports.iter().take(SHOWN);
        let mut out: Vec<String> = shown
            .map(|report| report.render(&self.name, &style))
            .collect();
        match self.reports.len() {
            0 | 1 => {}
            n if n > SHOWN => out.push(format!(
                "{}: {n} errors; the first {SHOWN} are shown",
                self.name
            )),
            n => out.push(format!("{}: {n} errors", self.name)),
        }
        out.join("\n\n")
    }
}

fn place(
    text: &str,
    at: &Range<usize>,
    label: Option<String>,
    secrets: &[Range<usize>],
) -> Excerpt {
    let start = floor(text, at.start);
    let end = floor(text, at.end).max(start);
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let rest = text.get(line_start..).unwrap_or_default();
    let length = rest.find(['\n', '\r']).unwrap_or(rest.len());
    let line = line_start..line_start + length;
    let column = 1 + text
        .get(line_start..start)
        .unwrap_or_default()
        .chars()
        .count();
    let mark = start.min(line.end)..end.min(line.end);
    let (source, mark) = mask::cover(text, &line, secrets, &mark);
    Excerpt {
        line: tree::line_number(text, start),
        column,
        source,
        mark,
        label,
    }
}

/// The nearest boundary of a character that is not beyond `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl Report {
    fn render(&self, name: &str, style: &Style) -> String {
        let mut out = style.title(&self.title);
        match &self.place {
            Some(place) => out.push_str(&place.render(name, style)),
            None => out.push_str(&style.origin(0, name)),
        }
        if let Some(help) = &self.help {
            let gutter = self.place.as_ref().map_or(0, Excerpt::gutter);
            out.push_str(&style.help(gutter, help));
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// `a, b or c`, each between `quote`s.
pub(super) fn listed(names: &[String], quote: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("{quote}{n}{quote}")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) if quote.is_empty() => format!("{} and {last}", others.join(", ")),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// Something that `check` and `run` tell about a configuration that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The line in the file, from 1; none where it is about the file as a whole.
    pub line: Option<usize>,
    /// What it is, in words.
    pub text: String,
}

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Most likely a mistake.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
        })
    }
}
