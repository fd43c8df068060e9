//! The floor: a bare loop that reads a slot, with nothing in it but the protocol. As fast as a client can be, and good for
//! nothing else: it believes every byte, checks nothing, confirms before Redis has answered, and knows no gate. A yardstick,
//! not code to build on.
//!
//!     rustc -O --edition 2024 floor.rs && ./floor slot=.. publication=.. rows=N [mode=count|celery] [latency=FILE]
//!
//! Stops after N rows and prints `SECS`, the time from the first row to the last. The table is the bench's outbox: id, topic,
//! key, payload, headers, created_at. `PGHOST`, `PGPORT`, `PGUSER`, `PGDATABASE` and `REDIS_PORT` say where; no password,
//! no TLS. `mode=celery` makes a Celery message of each row and pushes it to the list `celery`.
//!
//! `lazy_us` (200): the pause after a read shorter than `lazy_min` (65536) bytes. Each wake-up of the reader interrupts the
//! walsender; with the pause both are several times faster. 0 for none, as when latency is measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Commands that Redis may have unanswered.
const WINDOW: usize = 500;

fn main() {
    let slot = argument("slot").expect("slot=");
    let publication = argument("publication").expect("publication=");
    let rows: u64 = number("rows", 1);
    let pause = Duration::from_micros(number("lazy_us", 200));
    let short = number("lazy_min", 65536) as usize;
    let latency = argument("latency");
    let mut redis = match argument("mode").as_deref() {
        None | Some("count") => None,
        Some("celery") => Some(Redis::connect()),
        Some(other) => panic!("mode={other}"),
    };

    let mut socket = start(&slot, &publication);
    let mut buffer = vec![0u8; 256 << 10];
    let (mut begin, mut end) = (0, 0);
    let (mut seen, mut reads, mut checksum) = (0u64, 0u64, 0u64);
    let mut first = Instant::now();
    let mut confirmed = 0u64;
    let mut status_at = Instant::now();
    let mut times: Vec<(i64, i64)> = Vec::new();
    'read: loop {
        if begin == end {
            (begin, end) = (0, 0);
        }
        if buffer.len() - end < 8192 {
            buffer.copy_within(begin..end, 0);
            (begin, end) = (0, end - begin);
            if buffer.len() - end < 8192 {
                buffer.resize(buffer.len() * 2, 0);
            }
        }
        let read = socket.read(&mut buffer[end..]).unwrap();
        assert!(read > 0, "the server has closed the connection");
        reads += 1;
        end += read;
        let mut asked = false;
        while end - begin >= 5 {
            let length = u32_at(&buffer[begin + 1..]) as usize;
            if end - begin < length + 1 {
                break;
            }
            let (tag, message) = (buffer[begin], &buffer[begin + 5..begin + 1 + length]);
            begin += length + 1;
            match (tag, message.first()) {
                (b'E', _) => panic!("{}", String::from_utf8_lossy(message)),
                (b'd', Some(b'k')) => asked |= message[17] == 1,
                // XLogData: 25 bytes of header, then the message of pgoutput.
                (b'd', Some(b'w')) => match message[25] {
                    b'I' => {
                        if seen == 0 {
                            first = Instant::now();
                        }
                        seen += 1;
                        let columns = columns(&message[26..]);
                        checksum =
                            checksum.wrapping_add((columns[0].len() + columns[3].len()) as u64);
                        if latency.is_some() {
                            times.push((text(columns[0]).parse().unwrap(), now_us()));
                        }
                        if let Some(redis) = &mut redis {
                            redis.push(text(columns[0]), columns[3]);
                        }
                    }
                    // Commit: flags, LSN of the record, LSN after it.
                    b'C' => {
                        confirmed = u64_at(&message[25 + 10..]);
                        if seen >= rows {
                            break 'read;
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        if let Some(redis) = &mut redis {
            redis.flush(WINDOW);
        }
        if asked || status_at.elapsed() > Duration::from_secs(1) {
            confirm(&mut socket, confirmed);
            status_at = Instant::now();
        }
        if !pause.is_zero() && seen > 0 && read < short {
            std::thread::sleep(pause);
        }
    }
    if let Some(redis) = &mut redis {
        redis.flush(0);
    }
    println!("SECS {:.4}", first.elapsed().as_secs_f64());
    println!("NOTE {seen} rows in {reads} reads, checksum {checksum}");
    if let Some(file) = latency {
        let lines: String = times
            .iter()
            .map(|(sent, got)| format!("{sent} {got}\n"))
            .collect();
        std::fs::write(file, lines).unwrap();
    }
    confirm(&mut socket, confirmed);
    let _ = socket.write_all(b"c\0\0\0\x04X\0\0\0\x04");
}

fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| {
        argument
            .strip_prefix(name)?
            .strip_prefix('=')
            .map(str::to_owned)
    })
}

fn number(name: &str, default: u64) -> u64 {
    argument(name).map_or(default, |value| value.parse().unwrap())
}

fn environment(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn u32_at(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn u64_at(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64
}

/// Connects and starts to stream.
fn start(slot: &str, publication: &str) -> TcpStream {
    let host = environment("PGHOST", "127.0.0.1");
    let mut socket =
        TcpStream::connect(format!("{host}:{}", environment("PGPORT", "5432"))).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut startup = vec![0, 3, 0, 0];
    for (key, value) in [
        ("user", environment("PGUSER", "postgres")),
        ("database", environment("PGDATABASE", "bench")),
        ("replication", "database".to_owned()),
    ] {
        startup.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
    }
    startup.push(0);
    socket
        .write_all(&(startup.len() as u32 + 4).to_be_bytes())
        .unwrap();
    socket.write_all(&startup).unwrap();
    // ReadyForQuery ends the start.
    loop {
        let mut head = [0; 5];
        socket.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32_at(&head[1..]) as usize - 4];
        socket.read_exact(&mut body).unwrap();
        match head[0] {
            b'E' => panic!("{}", String::from_utf8_lossy(&body)),
            b'Z' => break,
            _ => {}
        }
    }
    let query = format!(
        "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names '\"{publication}\"')\0"
    );
    socket
        .write_all(
            &[
                &b"Q"[..],
                &(query.len() as u32 + 4).to_be_bytes(),
                query.as_bytes(),
            ]
            .concat(),
        )
        .unwrap();
    socket
}

/// A standby status update.
fn confirm(socket: &mut TcpStream, lsn: u64) {
    let mut update = vec![b'd', 0, 0, 0, 38, b'r'];
    for _ in 0..3 {
        update.extend_from_slice(&lsn.to_be_bytes());
    }
    update.extend_from_slice(&[0; 9]);
    socket.write_all(&update).unwrap();
}

/// The values of an Insert, after its tag: relation, 'N', count, then each with its kind.
fn columns(insert: &[u8]) -> [&[u8]; 8] {
    let mut columns = [&insert[..0]; 8];
    let count = u16::from_be_bytes([insert[5], insert[6]]) as usize;
    let mut at = 7;
    for column in 0..count {
        let kind = insert[at];
        at += 1;
        if kind == b't' {
            let length = u32_at(&insert[at..]) as usize;
            at += 4;
            columns[column & 7] = &insert[at..at + length];
            at += length;
        }
    }
    columns
}

struct Redis {
    socket: TcpStream,
    out: Vec<u8>,
    message: Vec<u8>,
    /// Commands in `out`, and commands sent and not answered.
    queued: usize,
    pending: usize,
    replies: Vec<u8>,
}

impl Redis {
    fn connect() -> Redis {
        let socket =
            TcpStream::connect(format!("127.0.0.1:{}", environment("REDIS_PORT", "6379"))).unwrap();
        socket.set_nodelay(true).unwrap();
        Redis {
            socket,
            out: Vec::new(),
            message: Vec::new(),
            queued: 0,
            pending: 0,
            replies: vec![0; 65536],
        }
    }

    fn push(&mut self, id: &str, payload: &[u8]) {
        let message = &mut self.message;
        message.clear();
        message.extend_from_slice(b"{\"body\": \"");
        base64(payload, message);
        write!(
            message,
            "\", \"content-encoding\": \"utf-8\", \"content-type\": \"application/json\", \"headers\": {{\"lang\": \"py\", \
             \"task\": \"app.orders.tasks.send_confirmation\", \"id\": \"{id}\", \"shadow\": null, \"eta\": null, \
             \"expires\": null, \"group\": null, \"group_index\": null, \"retries\": 0, \"timelimit\": [null, null], \
             \"root_id\": \"{id}\", \"parent_id\": null, \"argsrepr\": \"()\", \"kwargsrepr\": \"{{}}\", \"origin\": \"floor\", \
             \"ignore_result\": false}}, \"properties\": {{\"correlation_id\": \"{id}\", \"reply_to\": \"\", \
             \"delivery_mode\": 2, \"delivery_info\": {{\"exchange\": \"\", \"routing_key\": \"celery\"}}, \"priority\": 0, \
             \"body_encoding\": \"base64\", \"delivery_tag\": \"00000000-0000-0000-0000-{id:0>12}\"}}}}"
        )
        .unwrap();
        write!(
            self.out,
            "*3\r\n$5\r\nLPUSH\r\n$6\r\ncelery\r\n${}\r\n",
            message.len()
        )
        .unwrap();
        self.out.extend_from_slice(message);
        self.out.extend_from_slice(b"\r\n");
        self.queued += 1;
        if self.queued >= WINDOW {
            self.flush(WINDOW);
        }
    }

    /// Sends what is queued, and waits until no more than `window` commands are unanswered. An answer is one line.
    fn flush(&mut self, window: usize) {
        self.socket.write_all(&self.out).unwrap();
        self.out.clear();
        self.pending += std::mem::take(&mut self.queued);
        while self.pending > window {
            let read = self.socket.read(&mut self.replies).unwrap();
            assert!(read > 0, "Redis has closed the connection");
            let replies = &self.replies[..read];
            assert!(
                !replies.contains(&b'-'),
                "{}",
                String::from_utf8_lossy(replies)
            );
            self.pending -= replies.iter().filter(|byte| **byte == b'\n').count();
        }
    }
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0u32, |bits, byte| bits << 8 | *byte as u32)
            << (8 * (3 - group.len()));
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            out.push(if digit <= group.len() {
                DIGITS[index as usize]
            } else {
                b'='
            });
        }
    }
}
