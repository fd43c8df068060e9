//! Pure: held tasks as lines of at most 100 columns.

use std::fmt::Write as _;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of the whole line.
const WIDTH: usize = 100;
/// What a column takes at most; the last one takes what is left.
const HEADINGS: [(&str, usize); 9] = [
    ("HOLD_ID", 19),
    ("STATE", 9),
    ("TASK", 25),
    ("KEY", 11),
    ("SINK", 10),
    ("TRIES", 6),
    ("AGE", 5),
    ("DUE", 6),
    ("ERROR", WIDTH),
];

/// A row of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) hold_id: i64,
    pub(super) state: String,
    pub(super) task: String,
    pub(super) key: Option<String>,
    pub(super) sink: String,
    pub(super) attempts: i32,
    /// Seconds since it was held.
    pub(super) age_s: i64,
    pub(super) due: Due,
    pub(super) error: Option<String>,
}

/// When a task is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// In so many seconds.
    In(i64),
    /// When those before it in its key have gone.
    Behind,
    /// It is dead.
    Never,
}

/// The table, with its heading.
pub(super) fn render(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(|(heading, _)| heading.to_owned())];
    lines.extend(rows.iter().map(cells));
    let mut widths = HEADINGS.map(|(_, most)| most);
    let mut left = WIDTH;
    for (column, width) in widths.iter_mut().enumerate() {
        let widest = lines.iter().map(|line| line[column].width()).max();
        *width = widest.unwrap_or_default().min(*width).min(left);
        left = left.saturating_sub(*width + 1);
    }
    let mut out = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Of a task's name the end tells more.
            let cell = match column {
                2 => cut_front(cell, width),
                _ => cut_back(cell, width),
            };
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            let is_number = matches!(column, 0 | 5 | 6 | 7);
            let _ = match is_number {
                true => write!(shown, "{padding}{cell} "),
                false => write!(shown, "{cell}{padding} "),
            };
        }
        out.push_str(shown.trim_end());
        out.push('\n');
    }
    out
}

fn cells(row: &Row) -> [String; 9] {
    [
        row.hold_id.to_string(),
        row.state.clone(),
        printable(&row.task),
        row.key.as_deref().map_or("-".to_owned(), printable),
        printable(&row.sink),
        row.attempts.to_string(),
        span(row.age_s),
        match row.due {
            Due::In(seconds) if seconds <= 0 => "now".to_owned(),
            Due::In(seconds) => span(seconds),
            Due::Behind => "behind".to_owned(),
            Due::Never => "-".to_owned(),
        },
        row.error.as_deref().map_or(String::new(), printable),
    ]
}

/// Text from a row, for a terminal: what would move the cursor or colour the screen is shown as a dot.
pub(super) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '·' } else { c };
    text.chars().map(shown).collect()
}

/// `42s`, `7m`, `3h`, `12d`, `4y`.
pub(super) fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let (size, unit) = match seconds.max(0) {
        0..MINUTE => (1, 's'),
        MINUTE..HOUR => (MINUTE, 'm'),
        HOUR..DAY => (HOUR, 'h'),
        DAY..YEAR => (DAY, 'd'),
        _ => (YEAR, 'y'),
    };
    match seconds.max(0) / size {
        number if number > 999 => "never".to_owned(),
        number => format!("{number}{unit}"),
    }
}

fn cut_back(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = fitting(text.chars(), width);
    cut.push('…');
    cut
}

fn cut_front(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let end = fitting(text.chars().rev(), width);
    std::iter::once('…').chain(end.chars().rev()).collect()
}

/// The first of these characters, with room for one more.
fn fitting(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width.saturating_sub(1);
    chars
        .take_while(|c| {
            let columns = c.width().unwrap_or_default();
            let fits = columns <= left;
            left = left.saturating_sub(columns);
            fits
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            hold_id: 17,
            state: "retrying".to_owned(),
            task: "shop.tasks.send_receipt".to_owned(),
            key: Some("order-42".to_owned()),
            sink: "workers".to_owned(),
            attempts: 3,
            age_s: 7_300,
            due: Due::In(90),
            error: Some("connection refused".to_owned()),
        }
    }

    #[test]
    fn a_table_takes_what_it_needs() {
        let dead = Row {
            hold_id: 1_234,
            state: "dead".to_owned(),
            key: None,
            due: Due::Never,
            error: None,
            ..row()
        };
        assert_eq!(
            render(&[row(), dead]),
            "\
HOLD_ID STATE    TASK                    KEY      SINK    TRIES AGE DUE ERROR
     17 retrying shop.tasks.send_receipt order-42 workers     3  2h  1m connection refused
   1234 dead     shop.tasks.send_receipt -        workers     3  2h   -
"
        );
        assert_eq!(
            render(&[]),
            "HOLD_ID STATE TASK KEY SINK TRIES AGE DUE ERROR\n"
        );
    }

    #[test]
    fn a_line_is_never_too_long() {
        let long = |c: &str| c.repeat(200);
        for c in ["x", "语", "\u{1b}", "e\u{301}"] {
            let row = Row {
                hold_id: i64::MAX,
                task: long(c),
                key: Some(long(c)),
                sink: long(c),
                attempts: i32::MAX,
                age_s: i64::MAX,
                due: Due::In(i64::MAX),
                error: Some(long(c)),
                ..row()
            };
            let table = render(&[row]);
            for line in table.lines() {
                assert!(line.width() <= 100, "{} {line}", line.width());
                assert!(!line.contains('\u{1b}'));
            }
        }
        let name = Row {
            task: "a.module.with.a.very.long.name.send_receipt".to_owned(),
            ..row()
        };
        assert!(render(&[name]).contains(" …y.long.name.send_receipt "));
    }

    #[test]
    fn spans_are_short() {
        for (seconds, shown) in [
            (-5, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_599, "59m"),
            (86_399, "23h"),
            (31_535_999, "364d"),
            (31_536_000, "1y"),
            (i64::MAX, "never"),
        ] {
            assert_eq!(span(seconds), shown);
        }
    }
}
