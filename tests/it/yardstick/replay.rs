//! The broker's own limit: the bytes that a sink has sent, sent again by a bare loop that encodes nothing and reads answers only
//! to count them.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::answers::{Answers, Protocol};
use super::tap::Recording;

/// The same connections once more.
pub(super) struct Replay<'r> {
    connections: Vec<Connection<'r>>,
    batch: usize,
}

struct Connection<'r> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    answers: Answers,
    buffer: Vec<u8>,
    /// By batch: what is sent at once, and how many answers there are after it.
    batches: Vec<Vec<(&'r [u8], u64)>>,
    so_far: u64,
}

impl<'r> Replay<'r> {
    /// To this port.
    pub(super) async fn to(
        port: u16,
        protocol: Protocol,
        recordings: &'r [Recording],
    ) -> Replay<'r> {
        let mut connections = Vec::new();
        for recording in recordings {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            let stream = stream.expect("a broker");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let (from, to) = stream.into_split();
            let mut counted = Answers::of(protocol);
            let batches = recording.up.iter().zip(&recording.down);
            let batches = batches.map(|(up, down)| {
                let before = counted.hear(b"");
                let after = counted.hear(down);
                match protocol {
                    // The next request goes when the one before it is answered.
                    Protocol::Http => requests(up).zip(before + 1..).collect(),
                    _ => vec![(up.as_slice(), after)],
                }
            });
            connections.push(Connection {
                from,
                to,
                batches: batches.collect(),
                answers: Answers::of(protocol),
                buffer: vec![0; 256 << 10],
                so_far: 0,
            });
        }
        Replay {
            connections,
            batch: 0,
        }
    }

    /// Sends the next batch, and waits until it is answered.
    pub(super) async fn next(&mut self) {
        let batch = self.batch;
        self.batch += 1;
        let each = self.connections.iter_mut().map(|it| it.exchange(batch));
        futures_util::future::join_all(each).await;
    }
}

impl Connection<'_> {
    async fn exchange(&mut self, batch: usize) {
        let Connection {
            from,
            to,
            answers,
            buffer,
            batches,
            so_far,
        } = self;
        for (bytes, expected) in batches.get(batch).into_iter().flatten() {
            let write = async { to.write_all(bytes).await.expect("it is written") };
            let read = async {
                while *so_far < *expected {
                    let read = from.read(buffer).await.expect("it is read");
                    assert!(read > 0, "the broker has hung up");
                    *so_far = answers.hear(&buffer[..read]);
                }
            };
            tokio::join!(write, read);
        }
    }
}

/// The requests of HTTP/1.1 in what was sent.
pub(super) fn requests(mut sent: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let head = sent.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
        let words = std::str::from_utf8(&sent[..head]).expect("a head");
        let mut lines = words.lines().filter_map(|line| line.split_once(": "));
        let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.map_or(0, |(_, it)| it.parse().expect("a length"));
        let (request, rest) = sent.split_at(head + length);
        sent = rest;
        Some(request)
    })
}
