//! A tap on the way to a broker: passes everything on, and keeps what has passed.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What has passed on one connection.
#[derive(Default)]
struct Passed {
    up: Vec<u8>,
    down: Vec<u8>,
    /// The ends of batches, in both ways.
    marks: Vec<(usize, usize)>,
}

type Connections = Arc<Mutex<Vec<Passed>>>;

/// Listens until the process ends.
pub(super) struct Tap {
    port: u16,
    connections: Connections,
}

/// What was sent on a connection, by batch, and what was answered.
pub(super) struct Recording {
    pub(super) up: Vec<Vec<u8>>,
    pub(super) down: Vec<Vec<u8>>,
}

impl Tap {
    /// In front of this port.
    pub(super) fn on(upstream: u16) -> Tap {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let connections = Connections::default();
        let known = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).expect("a server");
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("TCP_NODELAY");
                }
                let mut all = known.lock().expect("no panic");
                let number = all.len();
                all.push(Passed::default());
                let (from, to) = (clone(&client), clone(&server));
                let connections = known.clone();
                thread::spawn(move || pass(from, to, &connections, number, |it| &mut it.up));
                let connections = known.clone();
                thread::spawn(move || {
                    pass(server, client, &connections, number, |it| &mut it.down)
                });
            }
        });
        Tap { port, connections }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A batch has come to its end.
    pub(super) fn mark(&self) {
        for passed in self.connections.lock().expect("no panic").iter_mut() {
            passed.marks.push((passed.up.len(), passed.down.len()));
        }
    }

    /// What has passed, by connection and batch. One that was opened later has empty batches first.
    pub(super) fn recordings(&self) -> Vec<Recording> {
        let connections = self.connections.lock().expect("no panic");
        let most = connections.iter().map(|it| it.marks.len()).max();
        let recording = |passed: &Passed| {
            let missing = most.unwrap_or(0) - passed.marks.len();
            let mut marks = vec![(0, 0); missing + 1];
            marks.extend(&passed.marks);
            let pieces = marks.windows(2);
            let up = |pair: &[(usize, usize)]| passed.up[pair[0].0..pair[1].0].to_vec();
            let down = |pair: &[(usize, usize)]| passed.down[pair[0].1..pair[1].1].to_vec();
            Recording {
                up: pieces.clone().map(up).collect(),
                down: pieces.map(down).collect(),
            }
        };
        connections.iter().map(recording).collect()
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a stream")
}

/// Passes one way on, until it ends.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    connections: &Connections,
    number: usize,
    way: fn(&mut Passed) -> &mut Vec<u8>,
) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        // Kept before it is passed on: whoever has the answer finds its bytes here.
        let bytes = &buffer[..read];
        way(&mut connections.lock().expect("no panic")[number]).extend_from_slice(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
