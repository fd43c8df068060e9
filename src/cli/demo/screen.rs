//! The terminal: lines that stay, and below them a few that are drawn again and again. A thread of its own writes,
//! so that a terminal that is held up holds up neither the load nor Ctrl-C.

use std::io::{IsTerminal, Write, stdin, stdout};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

/// Widest line that is written.
pub(super) const WIDTH: usize = 78;

/// Colours, where the terminal wants them.
#[derive(Clone, Copy)]
pub(super) enum Paint {
    /// As it is.
    Plain,
    /// Headings.
    Bold,
    /// What matters less.
    Dim,
    /// A fault.
    Red,
    /// As it should be.
    Green,
}

/// Standard output.
pub(super) struct Screen {
    sender: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
    live: bool,
    colours: bool,
    /// Lines on the terminal that the next frame replaces.
    drawn: usize,
}

impl Screen {
    /// Live where standard output is a terminal that can move its cursor and is wide enough; plain lines otherwise.
    pub(super) fn open() -> Screen {
        let (sender, receiver) = mpsc::channel(64);
        let term = std::env::var("TERM").unwrap_or_default();
        let terminal = stdout().is_terminal() && !matches!(term.as_str(), "" | "dumb");
        Screen {
            sender,
            writer: std::thread::spawn(move || write(receiver)),
            live: terminal && columns().is_none_or(|columns| columns > WIDTH),
            colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            drawn: 0,
        }
    }

    /// Whether frames are drawn in place.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Text in a colour.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Plain => return text.to_owned(),
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Green => 32,
        };
        match self.colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Writes a line that stays.
    pub(super) async fn say(&mut self, line: &str) {
        self.drawn = 0;
        self.send(format!("{line}\n")).await;
    }

    /// Draws lines in place of the last frame. Where frames cannot be drawn, they are plain lines.
    pub(super) async fn frame(&mut self, lines: &[String]) {
        let mut text = match (self.live, self.drawn) {
            (true, 1..) => format!("\x1b[{}A", self.drawn),
            _ => String::new(),
        };
        for line in lines {
            text += line;
            text += if self.live { "\x1b[K\n" } else { "\n" };
        }
        self.drawn = if self.live { lines.len() } else { 0 };
        self.send(text).await;
    }

    /// Waits until standard output takes no more: the reader of a pipe went away.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    /// Writes what is left.
    pub(super) fn finish(self) {
        drop(self.sender);
        let _ = self.writer.join();
    }

    async fn send(&self, text: String) {
        // A closed channel is seen by `closed`, which ends the demo.
        let _ = self.sender.send(text.into_bytes()).await;
    }
}

/// Ends at the first write that fails; dropping the receiver then tells the others.
fn write(mut receiver: mpsc::Receiver<Vec<u8>>) {
    let mut output = stdout();
    while let Some(bytes) = receiver.blocking_recv() {
        if output
            .write_all(&bytes)
            .and_then(|()| output.flush())
            .is_err()
        {
            return;
        }
    }
}

/// The terminal's width, where `stty` can tell.
fn columns() -> Option<usize> {
    if !stdin().is_terminal() {
        return None;
    }
    let output = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .filter(|&columns| columns > 0)
}

/// A bar that is filled so far.
pub(super) fn bar(done: f64, width: usize) -> String {
    let full = (done.clamp(0.0, 1.0) * width as f64).round() as usize;
    "#".repeat(full) + &".".repeat(width - full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        for (done, expected) in [(-1.0, "...."), (0.5, "##.."), (1.0, "####"), (7.0, "####")] {
            assert_eq!(bar(done, 4), expected);
        }
    }
}
