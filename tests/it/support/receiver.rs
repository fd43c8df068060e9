//! An HTTP server in this process, on a real socket, that answers as it is told: a webhook's receiver.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::port::free_port;
use super::wait::{PATIENCE, until};

/// A request that was received.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `POST /path HTTP/1.1`
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
}

impl Request {
    /// A header's value; empty without it.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Answers with this status and these header lines.
    Status(u16, Vec<String>),
    /// Answers after a while.
    Late(Duration, u16),
    /// Sends these bytes, and closes the connection.
    Raw(Vec<u8>),
    /// Closes the connection without an answer.
    Close,
    /// Never answers.
    Silence,
}

type Decide = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Shared {
    decide: Decide,
    tls: Option<Arc<ServerConfig>>,
    requests: Mutex<Vec<Request>>,
    open: AtomicBool,
    streams: Mutex<HashMap<usize, TcpStream>>,
    connections: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

/// The server; it ends when dropped.
pub(crate) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Answers each request with 204.
    pub(crate) fn start() -> Receiver {
        Receiver::deciding(|_| Answer::Status(204, Vec::new()))
    }

    /// Answers as `decide` says.
    pub(crate) fn deciding(
        decide: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Receiver {
        Receiver::with_tls(None, decide)
    }

    /// As [`deciding`](Receiver::deciding), over TLS.
    pub(crate) fn with_tls(
        tls: Option<ServerConfig>,
        decide: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Receiver {
        let mut receiver = Receiver {
            port: free_port(),
            shared: Arc::new(Shared {
                decide: Box::new(decide),
                tls: tls.map(Arc::new),
                requests: Mutex::default(),
                open: AtomicBool::new(false),
                streams: Mutex::default(),
                connections: AtomicUsize::new(0),
                at_once: AtomicUsize::new(0),
                most_at_once: AtomicUsize::new(0),
            }),
            accepting: None,
        };
        receiver.open();
        receiver
    }

    /// Its port on the loopback interface.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it takes requests.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}/hooks?a=b", self.port)
    }

    /// Takes connections, again.
    pub(crate) fn open(&mut self) {
        // A process that another test starts has all open files until it becomes that program: a port that was closed just now
        // may be open there for a moment.
        let listener = until(PATIENCE, "the port is free", || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
        self.shared.open.store(true, Ordering::SeqCst);
        let shared = self.shared.clone();
        self.accepting = Some(thread::spawn(move || accept(&listener, &shared)));
    }

    /// Closes all connections, and takes no more.
    pub(crate) fn close(&mut self) {
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        self.shared.open.store(false, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = accepting.join();
        self.hang_up();
    }

    /// Closes all connections.
    pub(crate) fn hang_up(&self) {
        for (_, stream) in lock(&self.shared.streams).drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// All that was received so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many requests were in its hands at a time, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if !shared.open.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let Ok(twin) = stream.try_clone() else {
            continue;
        };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        lock(&shared.streams).insert(number, twin);
        let shared = shared.clone();
        let Ok(end) = stream.try_clone() else {
            continue;
        };
        thread::spawn(move || {
            match &shared.tls {
                None => serve(stream, number, &shared),
                Some(config) => {
                    if let Ok(session) = ServerConnection::new(config.clone()) {
                        serve(StreamOwned::new(session, stream), number, &shared);
                    }
                }
            }
            // Its twins are still open.
            let _ = end.shutdown(Shutdown::Both);
            lock(&shared.streams).remove(&number);
        });
    }
}

fn serve(mut stream: impl Read + Write, connection: usize, shared: &Shared) {
    let mut input = Vec::new();
    while let Some(request) = read(&mut stream, &mut input, connection) {
        let at_once = 1 + shared.at_once.fetch_add(1, Ordering::SeqCst);
        shared.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let answer = (shared.decide)(&request);
        lock(&shared.requests).push(request);
        let answer = match answer {
            Answer::Late(pause, status) => {
                thread::sleep(pause);
                Answer::Status(status, Vec::new())
            }
            answer => answer,
        };
        shared.at_once.fetch_sub(1, Ordering::SeqCst);
        let written = match answer {
            Answer::Status(status, lines) => {
                let mut head = format!("HTTP/1.1 {status} As Told\r\n");
                for line in lines {
                    head.push_str(&line);
                    head.push_str("\r\n");
                }
                head.push_str(if status == 204 {
                    "\r\n"
                } else {
                    "content-length: 2\r\n\r\nok"
                });
                stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.flush())
            }
            Answer::Raw(bytes) => {
                let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                return;
            }
            Answer::Silence => {
                // Until the other end gives up.
                while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
                return;
            }
            Answer::Close | Answer::Late(..) => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn read(stream: &mut impl Read, input: &mut Vec<u8>, connection: usize) -> Option<Request> {
    let more = |stream: &mut dyn Read, input: &mut Vec<u8>| {
        let mut space = [0; 64 << 10];
        let read = stream.read(&mut space).ok().filter(|read| *read > 0)?;
        input.extend_from_slice(&space[..read]);
        Some(())
    };
    let head = loop {
        match input.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(head) => break head,
            None => more(stream, input)?,
        }
    };
    let text = String::from_utf8(input[..head].to_vec()).expect("a head of ASCII");
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, length)| length.parse().expect("a length"));
    input.drain(..head + 4);
    while input.len() < length {
        more(stream, input)?;
    }
    let body = input.drain(..length).collect();
    Some(Request {
        line,
        headers,
        body,
        connection,
    })
}
