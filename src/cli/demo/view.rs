//! The live view of an act: what the application did, what the worker found, how far it is, and a few examples.

use std::collections::VecDeque;
use std::time::Duration;

use super::ledger::{Counts, Event, Ledger};
use super::screen::{Paint, Screen, WIDTH, bar};

/// Between two lines where frames cannot be drawn.
const LINE: Duration = Duration::from_secs(2);
/// Between two examples, so that they can be read.
const EXAMPLE: Duration = Duration::from_millis(500);
const EXAMPLES: usize = 4;

/// The ledger of an act, and how it is shown.
pub(super) struct View<'a> {
    screen: &'a mut Screen,
    ledger: Ledger,
    length: Duration,
    examples: VecDeque<String>,
    /// The last thing worth reading that happened since the last example.
    latest: Option<String>,
    next_example: Duration,
    next_line: Duration,
}

impl<'a> View<'a> {
    /// Of an act whose application works for so long.
    pub(super) fn new(screen: &'a mut Screen, length: Duration) -> View<'a> {
        View {
            screen,
            ledger: Ledger::default(),
            length,
            examples: VecDeque::new(),
            latest: None,
            next_example: Duration::ZERO,
            next_line: LINE,
        }
    }

    /// Writes an event down.
    pub(super) fn record(&mut self, event: Event) {
        let notable = matches!(event, Event::Killed { .. });
        let words = self.ledger.record(event);
        match words {
            Some(words) if notable => self.push_example(words),
            Some(words) => self.latest = Some(words),
            None => {}
        }
    }

    /// What it adds up to so far.
    pub(super) fn counts(&self) -> Counts {
        self.ledger.counts()
    }

    /// Shows how things stand, so long after the application began to work.
    pub(super) async fn draw(&mut self, now: Duration) {
        if now >= self.next_example
            && let Some(words) = self.latest.take()
        {
            self.push_example(words);
            self.next_example = now + EXAMPLE;
        }
        if self.screen.is_live() {
            self.show(now).await;
        } else if now >= self.next_line {
            self.next_line = now + LINE;
            let line = summary(&self.counts());
            self.screen
                .say(&format!("  {:4.1} s  {line}", now.as_secs_f64()))
                .await;
        }
    }

    /// Shows how it ended.
    pub(super) async fn close(&mut self) {
        if self.screen.is_live() {
            self.show(self.length).await;
        } else {
            let line = summary(&self.counts());
            self.screen.say(&format!("  ended   {line}")).await;
            for example in &self.examples {
                self.screen.say(&format!("          {example}")).await;
            }
        }
        self.screen.say("").await;
    }

    fn push_example(&mut self, words: String) {
        if self.examples.len() == EXAMPLES {
            self.examples.pop_front();
        }
        self.examples.push_back(words);
    }

    async fn show(&mut self, now: Duration) {
        let counts = self.counts();
        let mut lines = frame(&counts, now, self.length, |paint, text| {
            self.screen.paint(paint, text)
        });
        for n in 0..EXAMPLES {
            let example = self.examples.get(n).map_or("", String::as_str);
            lines.push(self.screen.paint(Paint::Dim, &format!("    {example}")));
        }
        self.screen.frame(&lines).await;
    }
}

/// One line of it all.
fn summary(counts: &Counts) -> String {
    format!(
        "{} commits, {} rollbacks; {} run: {} found, {} no row",
        counts.transactions_committed,
        counts.transactions_rolled_back + counts.savepoints_undone,
        counts.run,
        counts.found,
        counts.run - counts.found,
    )
}

/// The lines above the examples.
fn frame(
    counts: &Counts,
    now: Duration,
    length: Duration,
    paint: impl Fn(Paint, &str) -> String,
) -> Vec<String> {
    let missing = counts.run - counts.found;
    let tone = match missing {
        0 => Paint::Green,
        _ => Paint::Red,
    };
    let done = now.min(length).as_secs_f64();
    let progress = format!(" {done:4.1} of {:.1} s", length.as_secs_f64());
    vec![
        format!(
            "  transactions {:5} committed {:5} rolled back {:5} savepoints undone",
            counts.transactions_committed,
            counts.transactions_rolled_back,
            counts.savepoints_undone
        ),
        format!(
            "  tasks run    {:5}  {}  {}",
            counts.run,
            paint(Paint::Green, &format!("{:5} found their row", counts.found)),
            paint(tone, &format!("{missing:5} found no row")),
        ),
        format!(
            "  {}{progress}",
            bar(done / length.as_secs_f64(), WIDTH - 2 - progress.len())
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_and_says_what_was_found() {
        let counts = Counts {
            transactions_committed: 12_345,
            transactions_rolled_back: 1_234,
            savepoints_undone: 999,
            run: 13_000,
            found: 12_000,
            ..Counts::default()
        };
        let (now, length) = (Duration::from_secs(9), Duration::from_secs(15));
        let lines = frame(&counts, now, length, |_, text| text.to_owned());
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{lines:#?}");
        assert!(
            lines[1].contains("12000 found their row") && lines[1].contains("1000 found no row")
        );
        assert!(lines[2].ends_with(" 9.0 of 15.0 s"));
        assert!(summary(&counts).len() + 10 <= WIDTH);
    }

    #[test]
    fn the_bar_is_full_at_the_end_and_never_over() {
        let length = Duration::from_secs(2);
        for now in [length, 3 * length] {
            let lines = frame(&Counts::default(), now, length, |_, text| text.to_owned());
            assert!(
                !lines[2].contains('.') || lines[2].contains("# "),
                "{}",
                lines[2]
            );
            assert!(lines[2].ends_with(" 2.0 of 2.0 s"));
        }
    }
}
