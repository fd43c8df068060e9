//! What a row of the exam has measured, beside its bounds, and the receipt that says it in one line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{is_full, seed};

/// How a figure is written.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Unit {
    Count,
    Seconds,
    Megabytes,
    Mebibytes,
    Cores,
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Unit::Count => format!("{value:.0}"),
            Unit::Seconds => format!("{value:.2}"),
            Unit::Megabytes | Unit::Mebibytes => format!("{value:.1}"),
            Unit::Cores => format!("{value:.3}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Count => "",
            Unit::Seconds => " s",
            Unit::Megabytes => " MB",
            Unit::Mebibytes => " MiB",
            Unit::Cores => " cores",
        }
    }
}

#[derive(Clone, Debug)]
struct Figure {
    name: &'static str,
    measured: f64,
    bound: f64,
    /// The bound is the least that will do, not the most.
    at_least: bool,
    unit: Unit,
}

impl Figure {
    fn holds(&self) -> bool {
        match self.at_least {
            true => self.measured >= self.bound,
            false => self.measured <= self.bound,
        }
    }

    /// How far it is from what it must be; the worst of several is kept.
    fn excess(&self) -> f64 {
        match self.at_least {
            true => self.bound - self.measured,
            false => self.measured - self.bound,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    figures: Vec<Figure>,
    notes: Vec<String>,
    skipped: Option<String>,
}

/// The figures of one row, shared by those who measure.
#[derive(Clone, Debug, Default)]
pub(super) struct Sheet(Arc<Mutex<Inner>>);

impl Sheet {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a figure down. Of several with one name the worst is kept.
    fn take(&self, figure: Figure) {
        let figures = &mut self.inner().figures;
        match figures.iter_mut().find(|known| known.name == figure.name) {
            Some(known) if figure.excess() > known.excess() => *known = figure,
            Some(_) => {}
            None => figures.push(figure),
        }
    }

    fn most(&self, name: &'static str, measured: f64, bound: f64, unit: Unit) {
        self.take(Figure {
            name,
            measured,
            bound,
            at_least: false,
            unit,
        });
    }

    /// A number that must not be higher.
    pub(super) fn count(&self, name: &'static str, measured: usize, most: usize) {
        self.most(name, measured as f64, most as f64, Unit::Count);
    }

    /// A number that must not be lower.
    pub(super) fn at_least(&self, name: &'static str, measured: usize, least: usize) {
        self.take(Figure {
            name,
            measured: measured as f64,
            bound: least as f64,
            at_least: true,
            unit: Unit::Count,
        });
    }

    /// A time that must not be longer. In the quick profile, when rows share the machine with other tests, the bound is
    /// three times as long.
    pub(super) fn time(&self, name: &'static str, measured: Duration, most: Duration) {
        let slack = if is_full() { 1 } else { 3 };
        let most = most * slack;
        self.most(
            name,
            measured.as_secs_f64(),
            most.as_secs_f64(),
            Unit::Seconds,
        );
    }

    /// Memory in bytes, against a bound in bytes; in MB.
    pub(super) fn memory(&self, measured: u64, most: u64) {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        self.most("memory", mb(measured), mb(most), Unit::Megabytes);
    }

    /// WAL in bytes, against a bound in bytes; in MiB.
    pub(super) fn wal(&self, name: &'static str, measured: u64, most: u64) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        self.most(name, mib(measured), mib(most), Unit::Mebibytes);
    }

    /// A share of a processor core.
    pub(super) fn cores(&self, name: &'static str, measured: f64, most: f64) {
        self.most(name, measured, most, Unit::Cores);
    }

    /// What a reader of the receipt should know.
    pub(super) fn note(&self, words: impl Into<String>) {
        self.inner().notes.push(words.into());
    }

    /// The row cannot be sat here, and why.
    pub(super) fn skip(&self, why: impl Into<String>) {
        self.inner().skipped = Some(why.into());
    }

    /// The receipt: one line, and whether all that was measured holds.
    fn receipt(&self, row: &str, name: &str, took: Duration, broke: Option<&str>) -> Receipt {
        let inner = self.inner();
        let failed = inner.figures.iter().any(|figure| !figure.holds());
        let verdict = match (&inner.skipped, broke) {
            (_, Some(_)) => "FAIL",
            (Some(_), None) => "SKIP",
            (None, None) if failed || inner.figures.is_empty() => "FAIL",
            (None, None) => "PASS",
        };
        let mut line = format!("{verdict} row {row}, {name}:");
        for figure in &inner.figures {
            let sign = if figure.at_least { "≥" } else { "≤" };
            let mark = if figure.holds() { "" } else { " (!)" };
            let (measured, bound) = (
                figure.unit.write(figure.measured),
                figure.unit.write(figure.bound),
            );
            let _ = write!(
                line,
                " {} {measured} {sign} {bound}{}{mark},",
                figure.name,
                figure.unit.name()
            );
        }
        let _ = write!(line, " {:.0} s, seed {}", took.as_secs_f64(), seed());
        for words in inner.notes.iter().map(String::as_str).chain(broke) {
            let _ = write!(line, "; {words}");
        }
        if let Some(why) = &inner.skipped {
            let _ = write!(line, "; {why}");
        }
        Receipt {
            passed: verdict != "FAIL",
            line,
        }
    }
}

/// A row's result.
struct Receipt {
    passed: bool,
    line: String,
}

/// Sits one row: runs the scenario to its end or its panic, prints the receipt, and panics when the row has failed.
pub(super) async fn sit<F>(row: &str, name: &str, scenario: impl FnOnce(Sheet) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sheet, start) = (Sheet::default(), Instant::now());
    let ended = tokio::spawn(scenario(sheet.clone())).await;
    let broke = ended.err().map(|error| match error.try_into_panic() {
        Ok(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            words
                .or_else(|| {
                    panic
                        .downcast_ref::<&str>()
                        .map(|words| (*words).to_owned())
                })
                .unwrap_or_default()
        }
        Err(error) => error.to_string(),
    });
    let broke = broke.map(|words| {
        let first: String = words.chars().take(300).collect();
        format!("broken off: {}", first.replace('\n', " "))
    });
    let receipt = sheet.receipt(row, name, start.elapsed(), broke.as_deref());
    eprintln!("{}", receipt.line);
    if let Some(file) = std::env::var_os("EXAM_RECEIPTS") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(file)
            .expect("EXAM_RECEIPTS is a file that can be written");
        writeln!(file, "{}", receipt.line).expect("the receipt is written");
    }
    assert!(receipt.passed, "{}", receipt.line);
}

#[test]
fn a_receipt_tells_what_was_measured_and_whether_it_holds() {
    let line = |sheet: &Sheet, broke| {
        let line = sheet.receipt("7", "x", Duration::from_secs(3), broke).line;
        let (line, _) = line.split_once(", seed ").expect("a seed");
        line.to_owned()
    };
    let sheet = Sheet::default();
    assert!(
        line(&sheet, None).starts_with("FAIL"),
        "nothing was measured"
    );
    sheet.count("lost", 0, 0);
    sheet.memory(15_000_000, 96_000_000);
    sheet.wal("lag", 1 << 19, 1 << 20);
    sheet.at_least("rounds", 4, 4);
    assert_eq!(
        line(&sheet, None),
        "PASS row 7, x: lost 0 ≤ 0, memory 15.0 ≤ 96.0 MB, lag 0.5 ≤ 1.0 MiB, rounds 4 ≥ 4, 3 s"
    );
    assert!(line(&sheet, Some("it broke")).starts_with("FAIL"));
    sheet.count("lost", 2, 0);
    sheet.count("lost", 1, 0);
    sheet.at_least("rounds", 5, 4);
    assert_eq!(
        line(&sheet, None),
        "FAIL row 7, x: lost 2 ≤ 0 (!), memory 15.0 ≤ 96.0 MB, lag 0.5 ≤ 1.0 MiB, rounds 4 ≥ 4, 3 s"
    );
    let sheet = Sheet::default();
    sheet.skip("no Postgres 18");
    assert!(line(&sheet, None).starts_with("SKIP row 7, x:"));
}
