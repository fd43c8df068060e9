//! How many answers there are in what a broker says, so that it is known when a batch is done.

use std::collections::BTreeSet;

/// How the answers of a broker are counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Protocol {
    /// Lines of any kind: the same commands are answered with as many.
    Redis,
    /// Messages to our inbox.
    Nats,
    /// Confirms.
    Amqp,
    /// Status lines.
    Http,
}

/// What was said on one connection, so far.
pub(super) struct Answers {
    protocol: Protocol,
    /// Begun, and not yet whole.
    rest: Vec<u8>,
    lines: u64,
    /// All up to this tag are confirmed, and those beyond it that follow.
    low: u64,
    beyond: BTreeSet<u64>,
}

impl Answers {
    pub(super) fn of(protocol: Protocol) -> Answers {
        Answers {
            protocol,
            rest: Vec::new(),
            lines: 0,
            low: 0,
            beyond: BTreeSet::new(),
        }
    }

    /// Takes more in; how many answers there are by now.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> u64 {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(len) = self.next(at) {
            at += len;
        }
        self.rest.drain(..at);
        self.lines + self.low + self.beyond.len() as u64
    }

    /// The length of the piece that begins here, if it is whole.
    fn next(&mut self, at: usize) -> Option<usize> {
        let rest = &self.rest[at..];
        let begins = match self.protocol {
            Protocol::Amqp => return self.frame(at),
            Protocol::Redis => &b""[..],
            Protocol::Nats => b"MSG ",
            Protocol::Http => b"HTTP/1.1 2",
        };
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        self.lines += u64::from(rest.starts_with(begins));
        Some(end + 2)
    }

    /// A frame of AMQP; a confirm is the method 80 of the class 60, with a tag and whether it stands for all up to it.
    fn frame(&mut self, at: usize) -> Option<usize> {
        let rest = &self.rest[at..];
        let size = u32::from_be_bytes(rest.get(3..7)?.try_into().ok()?) as usize;
        let frame = rest.get(..size + 8)?;
        if frame[0] == 1 && frame[7..11] == [0, 60, 0, 80] {
            let tag = u64::from_be_bytes(frame[11..19].try_into().ok()?);
            match frame[19] & 1 {
                0 => drop(self.beyond.insert(tag)),
                _ => {
                    self.low = self.low.max(tag);
                    self.beyond = self.beyond.split_off(&(tag + 1));
                }
            }
        }
        Some(size + 8)
    }
}
