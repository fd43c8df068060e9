//! Reads a queue of RabbitMQ and leaves everything in it: a consumer that never acknowledges, unless it is asked to.
//!
//! What it was given goes back to its place when its connection ends. After that it is all given again, also what a killed
//! server had on disk; so that a [`rewind`](Reader::rewind) shows what is truly there, whatever was seen before.

use std::collections::HashMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Of larger bodies only the beginning is kept.
const KEPT: usize = 1 << 20;
/// So much of it.
const BEGINNING: usize = 1 << 10;
/// So many are taken out at once.
const TAKEN: u64 = 500;
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// A message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// The property `message_id`.
    pub(crate) id: String,
    /// The header `aftercommit-lsn`.
    pub(crate) lsn: String,
    /// The header `task`, or the property `type`.
    pub(crate) task: String,
    /// The beginning, where it is very large.
    pub(crate) body: Vec<u8>,
    /// The length of the body.
    pub(crate) length: usize,
}

#[derive(Default)]
struct State {
    messages: Vec<Message>,
    /// How often each id is among them.
    times: HashMap<String, usize>,
    /// Connections of an older one have nothing to say.
    generation: u64,
    stream: Option<TcpStream>,
    ended: bool,
}

/// The consumer; it ends when dropped.
pub(crate) struct Reader {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Reads a queue of the server on this port, as `guest`.
    pub(crate) fn start(port: u16, vhost: &str, queue: &str) -> Reader {
        Reader::start_with(port, vhost, queue, false)
    }

    /// As [`start`](Reader::start), and takes out what it has read: a quorum queue has no more than 2000 messages with a consumer.
    pub(crate) fn start_taking(port: u16, vhost: &str, queue: &str) -> Reader {
        Reader::start_with(port, vhost, queue, true)
    }

    fn start_with(port: u16, vhost: &str, queue: &str, takes: bool) -> Reader {
        let state = Arc::new(Mutex::new(State::default()));
        let (vhost, queue) = (vhost.to_owned(), queue.to_owned());
        let thread = thread::spawn({
            let state = state.clone();
            move || {
                while !lock(&state).ended {
                    let _ = consume(port, &vhost, &queue, takes, &state);
                    thread::sleep(PAUSE);
                }
            }
        });
        Reader {
            state,
            thread: Some(thread),
        }
    }

    /// What has come, in order, without so many of the first ones.
    pub(crate) fn messages_from(&self, first: usize) -> Vec<Message> {
        lock(&self.state).messages[first..].to_vec()
    }

    /// Forgets all that it has seen, and reads the queue from its first message.
    pub(crate) fn rewind(&self) {
        let mut state = lock(&self.state);
        state.messages.clear();
        state.times.clear();
        state.generation += 1;
        hang_up(&mut state);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.ended = true;
        hang_up(&mut state);
        drop(state);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hang_up(state: &mut State) {
    if let Some(stream) = state.stream.take() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Reads until the connection breaks.
fn consume(
    port: u16,
    vhost: &str,
    queue: &str,
    takes: bool,
    state: &Mutex<State>,
) -> io::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let generation = {
        let mut state = lock(state);
        if state.ended {
            return Ok(());
        }
        state.stream = Some(stream.try_clone()?);
        state.generation
    };
    let mut wire = Wire(BufReader::new(stream));
    wire.open(vhost, queue)?;
    let mut times: HashMap<String, usize> = HashMap::new();
    for tag in 1_u64.. {
        let message = wire.message()?;
        if takes && tag % TAKEN == 0 {
            wire.take_out(tag)?;
        }
        let count = times.entry(message.id.clone()).or_default();
        *count += 1;
        let mut state = lock(state);
        if state.generation != generation {
            return Ok(());
        }
        let known = state.times.entry(message.id.clone()).or_default();
        if *count > *known {
            *known = *count;
            state.messages.push(message);
        }
    }
    Ok(())
}

/// A connection of AMQP 0-9-1.
struct Wire(BufReader<TcpStream>);

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const DELIVER: [u8; 4] = [0, 60, 0, 60];

impl Wire {
    fn open(&mut self, vhost: &str, queue: &str) -> io::Result<()> {
        self.0.get_mut().write_all(b"AMQP\0\0\x09\x01")?;
        self.expect([0, 10, 0, 10])?;
        let mut start = vec![0, 10, 0, 11, 0, 0, 0, 0];
        short(&mut start, "PLAIN");
        start.extend(b"\0\0\0\x0c\0guest\0guest");
        short(&mut start, "en_US");
        self.send(0, &start)?;
        let tune = self.expect([0, 10, 0, 30])?;
        // As it says, and without heartbeats.
        let mut agreed = vec![0, 10, 0, 31];
        agreed.extend(tune.get(4..10).ok_or_else(short_frame)?);
        agreed.extend([0, 0]);
        self.send(0, &agreed)?;
        let mut open = vec![0, 10, 0, 40];
        short(&mut open, vhost);
        open.extend([0, 0]);
        self.send(0, &open)?;
        self.expect([0, 10, 0, 41])?;
        self.send(1, &[0, 20, 0, 10, 0])?;
        self.expect([0, 20, 0, 11])?;
        let mut consume = vec![0, 60, 0, 20, 0, 0];
        short(&mut consume, queue);
        consume.extend([0, 0, 0, 0, 0, 0]);
        self.send(1, &consume)?;
        self.expect([0, 60, 0, 21])?;
        Ok(())
    }

    /// All messages up to this one.
    fn take_out(&mut self, tag: u64) -> io::Result<()> {
        let mut acknowledgement = vec![0, 60, 0, 80];
        acknowledgement.extend(tag.to_be_bytes());
        acknowledgement.push(1);
        self.send(1, &acknowledgement)
    }

    fn send(&mut self, channel: u8, method: &[u8]) -> io::Result<()> {
        let mut frame = vec![METHOD, 0, channel];
        frame.extend(u32::try_from(method.len()).expect("a length").to_be_bytes());
        frame.extend(method);
        frame.push(0xce);
        self.0.get_mut().write_all(&frame)
    }

    /// The next method, which has to be this one.
    fn expect(&mut self, method: [u8; 4]) -> io::Result<Vec<u8>> {
        let (kind, payload) = self.frame()?;
        match kind == METHOD && payload.starts_with(&method) {
            true => Ok(payload),
            false => Err(io::Error::other("another method")),
        }
    }

    fn message(&mut self) -> io::Result<Message> {
        self.expect(DELIVER)?;
        let (kind, header) = self.frame()?;
        if kind != HEADER {
            return Err(io::Error::other("no header"));
        }
        let (mut message, length) = properties(&header).ok_or_else(short_frame)?;
        while message.length < length {
            let (kind, part) = self.frame()?;
            if kind != BODY {
                return Err(io::Error::other("no body"));
            }
            message.length += part.len();
            let room = if length <= KEPT { KEPT } else { BEGINNING };
            let room = room.saturating_sub(message.body.len());
            message.body.extend(&part[..room.min(part.len())]);
        }
        Ok(message)
    }

    /// The next frame that is no heartbeat: its type and its payload.
    fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            let head = self.take(7)?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = self.take(length as usize + 1)?;
            payload.pop();
            if head[0] != HEARTBEAT {
                return Ok((head[0], payload));
            }
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut taken = vec![0; length];
        self.0.read_exact(&mut taken)?;
        Ok(taken)
    }
}

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("a short string"));
    out.extend(text.as_bytes());
}

fn short_frame() -> io::Error {
    io::Error::other("a frame ends early")
}

/// What of a content header is of interest, and the length of the body.
fn properties(header: &[u8]) -> Option<(Message, usize)> {
    let mut rest = header.get(4..)?;
    let length = usize::try_from(u64::from_be_bytes(take(&mut rest, 8)?.try_into().ok()?)).ok()?;
    let flags = u16::from_be_bytes(take(&mut rest, 2)?.try_into().ok()?);
    let mut message = Message::default();
    // From the highest bit on: content_type, content_encoding, headers, delivery_mode, priority, correlation_id, reply_to,
    // expiration, message_id, timestamp, type.
    for property in (0..11).filter(|property| flags & (0x8000 >> property) != 0) {
        match property {
            2 => {
                let length = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
                headers(take(&mut rest, length as usize)?, &mut message)?;
            }
            3 | 4 => drop(take(&mut rest, 1)?),
            9 => drop(take(&mut rest, 8)?),
            property => {
                let text = short_text(&mut rest)?;
                match property {
                    8 => message.id = text,
                    10 => message.task = text,
                    _ => {}
                }
            }
        }
    }
    Some((message, length))
}

fn headers(mut table: &[u8], message: &mut Message) -> Option<()> {
    while !table.is_empty() {
        let name = short_text(&mut table)?;
        let kind = take(&mut table, 1)?[0];
        let length = match kind {
            b't' | b'b' | b'B' => 1,
            b's' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' | b'F' | b'A' => {
                u32::from_be_bytes(take(&mut table, 4)?.try_into().ok()?) as usize
            }
            b'V' => 0,
            _ => return None,
        };
        let value = take(&mut table, length)?;
        let text = || String::from_utf8_lossy(value).into_owned();
        match name.as_str() {
            "aftercommit-lsn" => message.lsn = text(),
            "task" => message.task = text(),
            _ => {}
        }
    }
    Some(())
}

fn short_text(rest: &mut &[u8]) -> Option<String> {
    let length = take(rest, 1)?[0];
    let text = take(rest, usize::from(length))?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}
