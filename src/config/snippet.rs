//! One line of a file, with a caret under a place in it.

use std::ops::Range;

use unicode_width::UnicodeWidthChar;

/// A line that may be shown, and what to mark in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// Number of the line in the file, from 1.
    pub(super) line: usize,
    /// Number of the marked character in the line of the file, from 1.
    pub(super) column: usize,
    /// The line, without its end.
    pub(super) source: String,
    /// What is marked in `source`.
    pub(super) mark: Range<usize>,
    /// What stands beside the caret.
    pub(super) label: Option<String>,
}

/// A longer line is cut around its mark.
const WIDEST: usize = 120;
/// So much is kept before the mark.
const BEFORE: usize = 40;
const CUT: &str = "...";

impl Excerpt {
    /// The width of the line's number.
    pub(super) fn gutter(&self) -> usize {
        self.line.to_string().len()
    }

    pub(super) fn render(&self, name: &str, style: &Style) -> String {
        let gutter = self.gutter();
        let before = printable(self.source.get(..self.mark.start).unwrap_or_default());
        let marked = printable(self.source.get(self.mark.clone()).unwrap_or_default());
        let after = printable(self.source.get(self.mark.end..).unwrap_or_default());
        let whole = width(&before) + width(&marked) + width(&after);
        let (before, marked, after) = match whole > WIDEST {
            true => (
                last(&before, BEFORE),
                first(&marked, BEFORE),
                first(&after, BEFORE),
            ),
            false => (before, marked, after),
        };
        let carets = "^".repeat(width(&marked).max(1));
        let label = self
            .label
            .as_ref()
            .map_or(String::new(), |l| format!(" {l}"));
        let mark = style.error(&format!("{carets}{label}"));
        let indent = " ".repeat(width(&before));
        let number = style.frame(&format!("{} |", self.line));
        let empty = style.frame(&format!("{:gutter$} |", ""));
        let origin = style.origin(gutter, &format!("{name}:{}:{}", self.line, self.column));
        format!("{origin}\n{empty}\n{number} {before}{marked}{after}\n{empty} {indent}{mark}")
    }
}

/// Tabs as spaces, and nothing that a terminal would obey.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str("    "),
            c if c.is_control() || is_direction(c) => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

/// Characters that reorder what follows them.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}')
}

fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

fn first(text: &str, count: usize) -> String {
    match text.char_indices().nth(count) {
        Some((at, _)) => format!("{}{CUT}", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn last(text: &str, count: usize) -> String {
    let length = text.chars().count();
    match text.char_indices().nth(length.saturating_sub(count)) {
        Some((at, _)) if at > 0 => format!("{CUT}{}", text.get(at..).unwrap_or_default()),
        _ => text.to_owned(),
    }
}

/// With colours, or without.
pub(super) struct Style {
    red: &'static str,
    blue: &'static str,
    bold: &'static str,
    off: &'static str,
}

impl Style {
    pub(super) fn new(colours: bool) -> Style {
        match colours {
            true => Style {
                red: "\x1b[1;31m",
                blue: "\x1b[1;34m",
                bold: "\x1b[1m",
                off: "\x1b[0m",
            },
            false => Style {
                red: "",
                blue: "",
                bold: "",
                off: "",
            },
        }
    }

    pub(super) fn title(&self, title: &str) -> String {
        let (red, bold, off) = (self.red, self.bold, self.off);
        format!("{red}error{off}{bold}: {}{off}", printable(title))
    }

    /// Where it is: `--> file:line:column`, on a new line.
    pub(super) fn origin(&self, gutter: usize, place: &str) -> String {
        let arrow = self.frame("-->");
        format!("\n{:gutter$}{arrow} {}", "", printable(place))
    }

    /// The remedy, on lines of its own.
    pub(super) fn help(&self, gutter: usize, help: &str) -> String {
        let mut out = String::new();
        for (index, line) in help.lines().enumerate() {
            let lead = match index {
                0 => format!("{} {}help:{}", self.frame("="), self.bold, self.off),
                _ => " ".repeat("= help:".len()),
            };
            out.push_str(&format!("\n{:gutter$} {lead} {}", "", printable(line)));
        }
        out
    }

    fn error(&self, text: &str) -> String {
        format!("{}{}{}", self.red, printable(text), self.off)
    }

    fn frame(&self, text: &str) -> String {
        format!("{}{text}{}", self.blue, self.off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str, mark: Range<usize>) -> String {
        let excerpt = Excerpt {
            line: 12,
            column: 3,
            source: source.to_owned(),
            mark,
            label: Some("here".to_owned()),
        };
        excerpt.render("f", &Style::new(false))
    }

    #[test]
    fn the_caret_stands_under_the_mark() {
        for (source, mark, line, caret) in [
            ("a = b", 4..5, "a = b", "    ^ here"),
            ("a = b", 5..5, "a = b", "     ^ here"),
            ("", 0..0, "", "^ here"),
            ("\ta = bc", 5..7, "    a = bc", "        ^^ here"),
            ("é = '日本'", 5..13, "é = '日本'", "    ^^^^^^ here"),
            ("a\u{1b}[2J = 1", 8..9, "a\u{FFFD}[2J = 1", "        ^ here"),
        ] {
            let expected = format!("\n  --> f:12:3\n   |\n12 | {line}\n   | {caret}");
            assert_eq!(shown(source, mark), expected, "{source:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_around_its_mark() {
        let source = format!("{}mark{}", "x".repeat(500), "y".repeat(500));
        let lines = shown(&source, 500..504);
        let expected = format!("12 | ...{}mark{}...", "x".repeat(40), "y".repeat(40));
        assert!(lines.lines().any(|line| line == expected), "{lines}");
        assert!(lines.lines().all(|line| width(line) <= WIDEST + 10));
    }
}
