//! A TCP proxy that makes faults, switched while connections are open.
//!
//! It runs on a thread and a runtime of its own, so that a test that blocks does not hold up the traffic.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::port::free_port;
use super::wait::{PATIENCE, within};

/// What happens to the bytes of one direction, of open connections and of new ones.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fault {
    /// They pass.
    Pass,
    /// They pass later. The throughput is not limited.
    Delay(Duration),
    /// They pass in pieces of so many bytes, with a pause after each.
    Drip(usize, Duration),
    /// They are not read any more: the sender's buffers fill up.
    Stall,
    /// They are read and thrown away, as behind a dead link: nothing arrives, no end either.
    BlackHole,
    /// So many bytes of each connection pass from now on; then the connection is reset.
    CutAfter(u64),
    /// The receiver sees the end of the stream; the other direction goes on.
    HalfClose,
}

/// A direction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Faults {
    up: Fault,
    down: Fault,
    refuse: bool,
    /// A connection that was opened under an older number is reset.
    resets: u64,
}

impl Faults {
    fn of(self, way: Way) -> Fault {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }
}

/// A proxy on a free port of 127.0.0.1; gone, with its connections, when dropped.
pub(crate) struct Proxy {
    port: u16,
    faults: watch::Sender<Faults>,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl Proxy {
    /// Starts a proxy in front of a port on 127.0.0.1.
    pub(crate) fn start(upstream: u16) -> Proxy {
        let port = free_port();
        let (faults, receiver) = watch::channel(Faults {
            up: Fault::Pass,
            down: Fault::Pass,
            refuse: false,
            resets: 0,
        });
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        listener
            .set_nonblocking(true)
            .expect("a nonblocking listener");
        let thread = std::thread::spawn({
            let counts = Arc::clone(&counts);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    tokio::select! {
                        _ = stopped => (),
                        () = accept(listener, port, upstream, receiver, counts) => (),
                    }
                });
            }
        });
        Proxy {
            port,
            faults,
            counts,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sets the fault of one direction.
    pub(crate) fn set(&self, way: Way, fault: Fault) {
        self.faults.send_modify(|faults| match way {
            Way::Up => faults.up = fault,
            Way::Down => faults.down = fault,
        });
    }

    /// Sets the fault of both directions.
    pub(crate) fn both(&self, fault: Fault) {
        self.faults.send_modify(|faults| {
            faults.up = fault;
            faults.down = fault;
        });
    }

    /// Ends all faults; after [`refuse`](Proxy::refuse) it listens again. What a black hole took stays lost.
    pub(crate) fn pass(&self) {
        self.faults.send_modify(|faults| {
            faults.up = Fault::Pass;
            faults.down = Fault::Pass;
            faults.refuse = false;
        });
    }

    /// Resets (RST) the open connections, once; new ones pass.
    pub(crate) fn reset(&self) {
        self.faults.send_modify(|faults| faults.resets += 1);
    }

    /// Resets the open connections and refuses new ones, until [`pass`](Proxy::pass).
    pub(crate) fn refuse(&self) {
        self.faults.send_modify(|faults| {
            faults.refuse = true;
            faults.resets += 1;
        });
    }

    /// As [`refuse`](Proxy::refuse) or [`pass`](Proxy::pass), and done when it returns: the proxy has a thread of its own.
    pub(crate) fn set_away(&self, away: bool) {
        match away {
            true => self.refuse(),
            false => self.pass(),
        }
        let changed = || {
            let there = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())).is_ok();
            let gone = !there && self.open() == 0;
            (if away { gone } else { there }).then_some(())
        };
        within(PATIENCE, changed).expect("a proxy that does what it is told");
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    upstream: u16,
    mut faults: watch::Receiver<Faults>,
    counts: Arc<Counts>,
) {
    let mut listener = Some(listener);
    loop {
        if faults.borrow_and_update().refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(listen(port).await);
        }
        let client = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = faults.changed() => if changed.is_err() { return },
            Ok((client, _)) = client => {
                counts.accepted.fetch_add(1, Ordering::SeqCst);
                counts.open.fetch_add(1, Ordering::SeqCst);
                let (faults, counts) = (faults.clone(), Arc::clone(&counts));
                tokio::spawn(async move {
                    relay(client, upstream, faults).await;
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

/// Listens again on a port that it has listened on before.
async fn listen(port: u16) -> TcpListener {
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        if socket
            .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .is_ok()
            && let Ok(listener) = socket.listen(1024)
        {
            return listener;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Carries one connection, until both directions have ended or one asks for a reset.
async fn relay(client: TcpStream, upstream: u16, faults: watch::Receiver<Faults>) {
    let resets = faults.borrow().resets;
    let mut resetting = faults.clone();
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await else {
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return;
    };
    // Not tokio's halves: those send a FIN when dropped, and a reset must not begin with one.
    let (client, server) = (Arc::new(client), Arc::new(server));
    let end = tokio::select! {
        both = async {
            tokio::try_join!(
                carry(&client, &server, Way::Up, faults.clone()),
                carry(&server, &client, Way::Down, faults.clone())
            )
        } => both.map(|_| ()),
        _ = resetting.wait_for(|faults| faults.resets > resets) => Err(Reset),
    };
    for stream in [&client, &server] {
        if end.is_err() {
            // Closing, which happens at the end of this function, now sends the RST.
            let _ = SockRef::from(&**stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The connection is to be reset.
struct Reset;

/// A piece of the stream, and when it may leave.
type Piece = (Instant, Bytes);

/// Carries one direction until its end.
async fn carry(
    from: &TcpStream,
    to: &TcpStream,
    way: Way,
    faults: watch::Receiver<Faults>,
) -> Result<(), Reset> {
    let _ = to.set_nodelay(true);
    // Bounded: a stalled receiver stalls its sender. Wide enough for a delay not to limit the throughput of a test.
    let (sender, receiver) = mpsc::channel(1024);
    tokio::try_join!(
        read(from, way, faults.clone(), sender),
        write(to, way, faults, receiver)
    )
    .map(|_| ())
}

/// Reads pieces, until the end of the stream.
async fn read(
    from: &TcpStream,
    way: Way,
    mut faults: watch::Receiver<Faults>,
    queue: mpsc::Sender<Piece>,
) -> Result<(), Reset> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let reads = |faults: &Faults| faults.of(way) != Fault::Stall;
        faults.wait_for(reads).await.map_err(|_| Reset)?;
        tokio::select! {
            _ = faults.changed() => continue,
            readable = from.readable() => readable.map_err(|_| Reset)?,
        }
        let fault = faults.borrow().of(way);
        let length = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) if fault == Fault::BlackHole => return Ok(()),
            Err(_) => return Err(Reset),
        };
        let due = match fault {
            Fault::Delay(delay) => Instant::now() + delay,
            _ => Instant::now(),
        };
        let piece = Bytes::copy_from_slice(&buffer[..length]);
        if queue.send((due, piece)).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes the pieces when they are due, or does to them what the fault asks for.
async fn write(
    to: &TcpStream,
    way: Way,
    mut faults: watch::Receiver<Faults>,
    mut queue: mpsc::Receiver<Piece>,
) -> Result<(), Reset> {
    let mut fault = faults.borrow_and_update().of(way);
    let mut passed = 0; // bytes, under the present fault
    let mut due = Instant::now();
    let mut pending = Bytes::new();
    let mut ended = false;
    loop {
        match fault {
            Fault::HalfClose => {
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                while queue.recv().await.is_some() {} // the sender does not notice
                return Ok(());
            }
            Fault::CutAfter(limit) if passed >= limit => return Err(Reset),
            Fault::Stall | Fault::BlackHole => (),
            _ if ended => {
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            _ => (),
        }
        tokio::select! {
            biased;
            changed = faults.changed() => {
                changed.map_err(|_| Reset)?;
                let now = faults.borrow_and_update().of(way);
                if now != fault {
                    (fault, passed) = (now, 0);
                }
            }
            piece = queue.recv(), if pending.is_empty() && !ended && fault != Fault::Stall => {
                match piece {
                    Some(piece) => (due, pending) = piece,
                    None => ended = true,
                }
            }
            () = sleep_until(due), if !pending.is_empty() && fault != Fault::Stall => {
                let most = match fault {
                    Fault::Drip(bytes, _) => bytes.max(1),
                    Fault::CutAfter(limit) => usize::try_from(limit - passed).unwrap_or(usize::MAX),
                    _ => usize::MAX,
                };
                let part = pending.split_to(most.min(pending.len()));
                passed += part.len() as u64;
                if fault != Fault::BlackHole {
                    write_all(to, &part).await.map_err(|_| Reset)?;
                }
                if let Fault::Drip(_, pause) = fault {
                    due = Instant::now() + pause;
                }
            }
        }
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
