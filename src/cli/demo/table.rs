//! Pure: the closing table, and what it means in words. Both are made of the counts and of nothing else.

use std::time::Duration;

use super::ledger::{Counts, millis};

/// Width of the table's first column; its others are [`COLUMN`] wide.
const LABEL: usize = 34;
const COLUMN: usize = 13;

/// One act's column: its name and what it came to.
pub(super) struct Column {
    /// The act's name.
    pub(super) name: &'static str,
    /// What it came to.
    pub(super) counts: Counts,
    /// Whether a task's dispatch comes after COMMIT, so that the time between them means something.
    pub(super) after_commit: bool,
}

/// How a line of the table is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tone {
    /// Nothing that matters.
    Plain,
    /// A heading.
    Heading,
    /// A count that should be zero, with whether it is, column by column.
    Fault,
}

/// A line of the table: its label, a cell for each column, and how to read it.
#[derive(Debug)]
pub(super) struct Row {
    /// What the row counts.
    pub(super) label: &'static str,
    /// One cell for each act.
    pub(super) cells: Vec<String>,
    /// How to read it.
    pub(super) tone: Tone,
}

impl Row {
    /// The label, padded to its width.
    pub(super) fn padded_label(&self) -> String {
        format!("  {:<LABEL$}", self.label)
    }

    /// The cells, padded to theirs.
    pub(super) fn padded_cells(&self) -> impl Iterator<Item = String> + '_ {
        self.cells.iter().map(|cell| format!("{cell:>COLUMN$}"))
    }
}

/// The closing table.
pub(super) fn rows(columns: &[Column]) -> Vec<Row> {
    let row = |label, tone, cell: &dyn Fn(&Column) -> String| Row {
        label,
        cells: columns.iter().map(cell).collect(),
        tone,
    };
    let count = |label, tone, of: fn(&Counts) -> u64| {
        row(label, tone, &|column| of(&column.counts).to_string())
    };
    let latency = |label, percent| {
        row(label, Tone::Plain, &|column| {
            column
                .counts
                .percentile(percent)
                .filter(|_| column.after_commit)
                .map_or_else(|| "-".to_owned(), millis)
        })
    };
    vec![
        row("tasks", Tone::Heading, &|column| column.name.to_owned()),
        count("committed", Tone::Plain, |counts| counts.committed),
        count("rolled back", Tone::Plain, |counts| counts.rolled_back),
        count("run", Tone::Plain, |counts| counts.run),
        count("row not found", Tone::Fault, |counts| counts.not_found),
        count("phantom", Tone::Fault, |counts| counts.phantom),
        count("lost", Tone::Fault, |counts| counts.lost),
        count("twice, with the same id", Tone::Plain, |counts| {
            counts.twice - counts.other_id
        }),
        latency("COMMIT to dispatch, p50", 50),
        latency("COMMIT to dispatch, p99", 99),
    ]
}

/// Whether the outbox kept its promise: every committed task ran and found its row, no other did, and order per key
/// and ids held.
pub(super) fn kept(counts: &Counts) -> bool {
    counts.committed > 0
        && counts.not_found + counts.phantom + counts.lost + counts.undecided == 0
        && counts.other_id + counts.out_of_order == 0
}

/// What the columns mean, in a few lines for each act.
pub(super) fn meaning(direct: &Counts, on_commit: &Counts, outbox: &Counts) -> Vec<String> {
    let mut lines = vec![
        format!(
            "direct: {} of {} runs found no row. {} came before the row was visible,",
            direct.not_found + direct.phantom,
            direct.run,
            direct.not_found
        ),
        format!(
            "  and {} were for a row that was rolled back, which no retry will find.",
            direct.phantom
        ),
        format!(
            "on_commit: {} of {} committed tasks were lost: {} times a process of the",
            on_commit.lost, on_commit.committed, on_commit.died
        ),
        "  application was gone between COMMIT and the hand-over. Nothing retries those."
            .to_owned(),
    ];
    lines.push(match kept(outbox) {
        true => format!(
            "outbox: all {} committed tasks ran and found their row, and no other task ran.",
            outbox.committed
        ),
        false => format!(
            "outbox: NOT KEPT: {} rows not found, {} phantom, {} lost, {} out of order",
            outbox.not_found + outbox.undecided,
            outbox.phantom,
            outbox.lost,
            outbox.out_of_order
        ),
    });
    let longest = outbox.waited.last().copied().unwrap_or(Duration::ZERO);
    lines.push(format!(
        "  kill -9 of the daemon; tasks that waited for its restart: {}, at most {}.",
        outbox.waited.len(),
        millis(longest)
    ));
    lines.push(format!(
        "  {} came twice, under the same id: the id is what a task deduplicates by.",
        outbox.twice - outbox.other_id
    ));
    if outbox.keys > 0 && outbox.out_of_order == 0 {
        lines.push(format!(
            "  Order within each of the {} keys was the order of their commits.",
            outbox.keys
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, after_commit: bool, counts: Counts) -> Column {
        Column {
            name,
            counts,
            after_commit,
        }
    }

    fn direct() -> Counts {
        Counts {
            committed: 650,
            rolled_back: 120,
            run: 770,
            not_found: 611,
            phantom: 120,
            latencies: vec![Duration::ZERO; 650],
            ..Counts::default()
        }
    }

    fn outbox() -> Counts {
        Counts {
            committed: 650,
            rolled_back: 120,
            run: 653,
            found: 653,
            twice: 3,
            keys: 20,
            latencies: (1..=200).map(Duration::from_millis).collect(),
            waited: vec![Duration::from_millis(700)],
            ..Counts::default()
        }
    }

    fn plain(columns: &[Column]) -> String {
        rows(columns)
            .iter()
            .map(|row| row.padded_label() + &row.padded_cells().collect::<String>() + "\n")
            .collect()
    }

    #[test]
    fn the_table_reads() {
        let table = plain(&[
            column("direct", false, direct()),
            column("outbox", true, outbox()),
        ]);
        let expected = "
  tasks                                    direct       outbox
  committed                                   650          650
  rolled back                                 120          120
  run                                         770          653
  row not found                               611            0
  phantom                                     120            0
  lost                                          0            0
  twice, with the same id                       0            3
  COMMIT to dispatch, p50                       -       100 ms
  COMMIT to dispatch, p99                       -       198 ms
";
        assert_eq!(table, expected.trim_start_matches('\n'));
    }

    #[test]
    fn everything_fits_80_columns() {
        let huge = Counts {
            committed: 9_999,
            rolled_back: 9_999,
            run: 19_998,
            not_found: 9_999,
            phantom: 9_999,
            lost: 9_999,
            died: 999,
            twice: 9_999,
            out_of_order: 99,
            waited: vec![Duration::from_secs(12)],
            ..Counts::default()
        };
        let columns =
            ["direct", "on_commit", "outbox"].map(|name| column(name, true, huge.clone()));
        let meaning = meaning(&huge, &huge, &huge);
        for line in plain(&columns)
            .lines()
            .chain(meaning.iter().map(String::as_str))
        {
            assert!(line.len() < 80, "{} wide: {line}", line.len());
        }
    }

    #[test]
    fn a_promise_is_kept_only_when_every_fault_is_zero() {
        assert!(kept(&outbox()));
        assert!(!kept(&Counts::default()), "nothing happened at all");
        let faults: [fn(&mut Counts) -> &mut u64; 6] = [
            |counts| &mut counts.not_found,
            |counts| &mut counts.undecided,
            |counts| &mut counts.phantom,
            |counts| &mut counts.lost,
            |counts| &mut counts.other_id,
            |counts| &mut counts.out_of_order,
        ];
        for fault in faults {
            let mut counts = outbox();
            *fault(&mut counts) = 1;
            assert!(!kept(&counts));
            assert!(
                meaning(&direct(), &direct(), &counts)
                    .iter()
                    .any(|line| line.contains("NOT KEPT"))
            );
        }
    }

    #[test]
    fn the_words_carry_the_counted_numbers() {
        let on_commit = Counts {
            committed: 650,
            lost: 31,
            died: 29,
            ..Counts::default()
        };
        let words = meaning(&direct(), &on_commit, &outbox()).join(" ");
        for part in [
            "731 of 770 runs found no row. 611 came before",
            "31 of 650 committed tasks were lost: 29 times",
            "all 650 committed tasks ran",
            "tasks that waited for its restart: 1, at most 700 ms",
            "3 came twice",
            "each of the 20 keys",
        ] {
            assert!(words.contains(part), "{part:?} is not in {words}");
        }
    }
}
