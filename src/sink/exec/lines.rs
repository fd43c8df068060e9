//! Lines from a pipe, in bounded memory: of a line that is too long, only its beginning is kept.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Reads lines from `R`.
pub(super) struct Lines<R> {
    reader: R,
    /// What was read and not given out.
    input: Vec<u8>,
    /// The rest of a line that was too long is passed over.
    skips: bool,
    longest: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Of a line at most `longest` bytes are given.
    pub(super) fn new(reader: R, longest: usize) -> Lines<R> {
        Lines {
            reader,
            input: Vec::new(),
            skips: false,
            longest,
        }
    }

    /// The next line, without its end; `None` when there is none any more. What stands behind the last line end counts as a
    /// line. Cancel-safe.
    ///
    /// # Errors
    /// The pipe's.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.take() {
                return Ok(Some(line));
            }
            self.input.reserve(4096);
            if self.reader.read_buf(&mut self.input).await? == 0 {
                let rest = std::mem::take(&mut self.input);
                return Ok((!rest.is_empty() && !self.skips).then_some(rest));
            }
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        loop {
            match memchr::memchr(b'\n', &self.input) {
                Some(end) => {
                    let mut line: Vec<u8> = self.input.drain(..=end).collect();
                    if std::mem::take(&mut self.skips) {
                        continue;
                    }
                    line.pop();
                    line.truncate(self.longest);
                    return Some(line);
                }
                None if self.skips => {
                    self.input.clear();
                    return None;
                }
                None if self.input.len() > self.longest => {
                    let mut line = std::mem::take(&mut self.input);
                    line.truncate(self.longest);
                    self.skips = true;
                    return Some(line);
                }
                None => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_of_any_length_in_bounded_memory() {
        let text = [
            &b"one\n\ntwo\r\n"[..],
            &vec![b'x'; 100_000],
            b"\nthree\nrest",
        ]
        .concat();
        let mut lines = Lines::new(&text[..], 10);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.expect("it is read") {
            found.push(String::from_utf8(line).expect("ASCII"));
            assert!(lines.input.capacity() < 64 << 10);
        }
        assert_eq!(found, ["one", "", "two\r", "xxxxxxxxxx", "three", "rest"]);
    }
}
