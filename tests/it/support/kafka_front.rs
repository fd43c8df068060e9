//! TLS, and a login, in front of Kafka's brokers, which speak in plain and let everyone in: a port for each. A broker tells
//! its clients where the brokers are; the front puts its own ports in there, so that nobody passes it by.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::kafka::show;
use super::port::free_port;
use super::scram::{Login, Mechanism, Step};
use super::tls::Certificates;
use super::tls_front::acceptor;

const SASL_HANDSHAKE: i16 = 17;
const API_VERSIONS: i16 = 18;
const SASL_AUTHENTICATE: i16 = 36;

const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// Who is let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// Everyone who speaks TLS.
    Open,
    /// Who has a certificate of the same authority.
    Certificate,
    /// [`USER`], by this mechanism.
    Login(Mechanism),
}

/// The one user.
pub(crate) const USER: &str = "dispatcher";

/// It ends, with its connections, when dropped.
pub(crate) struct KafkaFront {
    ports: Vec<u16>,
    rules: Arc<Rules>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Rules {
    acceptor: TlsAcceptor,
    admission: Admission,
    password: Mutex<Option<String>>,
    /// Who is in leaves when this changes.
    turns: watch::Sender<usize>,
    /// The brokers' ports, and ours.
    ports: Vec<(u16, u16)>,
    let_in: AtomicUsize,
}

impl KafkaFront {
    /// In front of these brokers: `127.0.0.1:1000,127.0.0.1:1001`.
    pub(crate) fn start(
        brokers: &str,
        certificates: &Certificates,
        admission: Admission,
    ) -> KafkaFront {
        let broker_ports = brokers.split(',').map(|broker| {
            let (_, port) = broker.rsplit_once(':').expect("a port");
            port.parse::<u16>().expect("a number")
        });
        let ports: Vec<(u16, u16)> = broker_ports.map(|port| (port, free_port())).collect();
        let rules = Arc::new(Rules {
            acceptor: acceptor(certificates, admission == Admission::Certificate),
            admission,
            password: Mutex::default(),
            turns: watch::Sender::new(0),
            ports: ports.clone(),
            let_in: AtomicUsize::new(0),
        });
        let listeners: Vec<(u16, TcpListener)> = ports
            .iter()
            .map(|(broker, port)| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
                let listener = listener.expect("a free port");
                listener.set_nonblocking(true).expect("a socket");
                (*broker, listener)
            })
            .collect();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn({
            let rules = Arc::clone(&rules);
            move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    for (broker, listener) in listeners {
                        let listener = tokio::net::TcpListener::from_std(listener);
                        let listener = listener.expect("a listener");
                        tokio::spawn(accept(listener, broker, Arc::clone(&rules)));
                    }
                    let _ = stopped.await;
                });
            }
        });
        KafkaFront {
            ports: ports.into_iter().map(|(_, port)| port).collect(),
            rules,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it is.
    pub(crate) fn brokers(&self) -> String {
        let brokers: Vec<String> = self
            .ports
            .iter()
            .map(|it| format!("127.0.0.1:{it}"))
            .collect();
        brokers.join(",")
    }

    /// The user's password from now on; with none, nobody is let in. Who is in has to leave.
    pub(crate) fn admit(&self, password: Option<&str>) {
        *lock(&self.rules.password) = password.map(str::to_owned);
        self.rules.turns.send_modify(|turn| *turn += 1);
    }

    /// How many connections were let in.
    pub(crate) fn let_in(&self) -> usize {
        self.rules.let_in.load(Ordering::SeqCst)
    }
}

impl Drop for KafkaFront {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: tokio::net::TcpListener, broker: u16, rules: Arc<Rules>) {
    while let Ok((client, _)) = listener.accept().await {
        let rules = Arc::clone(&rules);
        tokio::spawn(async move {
            // Whoever is not let in, or leaves, is gone; the client tells of it.
            let _ = serve(client, broker, &rules).await;
        });
    }
}

async fn serve(client: TcpStream, broker: u16, rules: &Rules) -> io::Result<()> {
    let mut turns = rules.turns.subscribe();
    let client = rules.acceptor.accept(client).await?;
    let broker = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).await?;
    let (from_client, to_client) = split(client);
    let (from_broker, to_broker) = broker.into_split();
    let to_client = tokio::sync::Mutex::new(to_client);
    tokio::select! {
        ended = requests(from_client, to_broker, &to_client, rules) => ended,
        ended = responses(from_broker, &to_client, rules) => ended,
        _ = turns.changed() => Ok(()),
    }
}

/// Passes requests on, from the login on; before it, only the question what the broker can do.
async fn requests(
    mut client: impl AsyncRead + Unpin,
    mut broker: impl AsyncWrite + Unpin,
    to_client: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    rules: &Rules,
) -> io::Result<()> {
    if let Admission::Login(mechanism) = rules.admission {
        let password = lock(&rules.password).clone();
        let mut login = Login::new(mechanism, USER, password.as_deref());
        loop {
            let request = frame(&mut client).await?;
            let mut rest = Rest(&request);
            let (api, _version, correlation) = (rest.short()?, rest.short()?, rest.long()?);
            rest.string()?;
            let mut answer = correlation.to_be_bytes().to_vec();
            match api {
                API_VERSIONS => {
                    send(&mut broker, &request).await?;
                    continue;
                }
                SASL_HANDSHAKE => {
                    let is_ours = rest.string()? == mechanism.name().as_bytes();
                    let error = if is_ours {
                        0
                    } else {
                        UNSUPPORTED_SASL_MECHANISM
                    };
                    answer.extend(error.to_be_bytes());
                    answer.extend(1_i32.to_be_bytes());
                    put_string(&mut answer, mechanism.name());
                    send(&mut *to_client.lock().await, &answer).await?;
                }
                SASL_AUTHENTICATE => {
                    let step = login.hear(rest.bytes()?);
                    let (error, words, more) = match &step {
                        Step::On(more) | Step::Done(more) => (0, "", more.as_slice()),
                        Step::Refused => (
                            SASL_AUTHENTICATION_FAILED,
                            "Authentication failed: invalid credentials",
                            &[][..],
                        ),
                    };
                    answer.extend(error.to_be_bytes());
                    put_string(&mut answer, words);
                    answer.extend(i32::try_from(more.len()).expect("a few").to_be_bytes());
                    answer.extend(more);
                    send(&mut *to_client.lock().await, &answer).await?;
                    match step {
                        Step::On(_) => {}
                        Step::Done(_) => break,
                        Step::Refused => return Ok(()),
                    }
                }
                _ => return Ok(()),
            }
        }
    }
    rules.let_in.fetch_add(1, Ordering::SeqCst);
    loop {
        let request = frame(&mut client).await?;
        send(&mut broker, &request).await?;
    }
}

async fn responses(
    mut broker: impl AsyncRead + Unpin,
    to_client: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    rules: &Rules,
) -> io::Result<()> {
    let mut is_first = matches!(rules.admission, Admission::Login(_));
    loop {
        let mut response = frame(&mut broker).await?;
        // What the broker can do is asked first, in a version that it has at the second attempt at the latest.
        if is_first && response.get(4..6) == Some(&[0, 0]) {
            offer_login(&mut response);
            is_first = false;
        }
        for (broker, ours) in &rules.ports {
            show(&mut response, *broker, *ours);
        }
        send(&mut *to_client.lock().await, &response).await?;
    }
}

/// Adds the requests of a login to the list of those that the broker knows: each with its first and last version.
fn offer_login(response: &mut Vec<u8>) {
    let count = response.get(6..10).and_then(|it| it.try_into().ok());
    let count = i32::from_be_bytes(count.expect("a list"));
    let entries = [[SASL_HANDSHAKE, 0, 1], [SASL_AUTHENTICATE, 0, 0]];
    let entries = entries.concat().into_iter().flat_map(i16::to_be_bytes);
    let longer = (count + 2).to_be_bytes().into_iter().chain(entries);
    response.splice(6..10, longer);
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).expect("a frame");
    to.write_all(&[&length.to_be_bytes()[..], frame].concat())
        .await?;
    to.flush().await
}

fn put_string(to: &mut Vec<u8>, text: &str) {
    to.extend(i16::try_from(text.len()).expect("a name").to_be_bytes());
    to.extend(text.as_bytes());
}

/// What is left of a request.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> io::Result<i16> {
        let taken = self.take(2)?;
        Ok(i16::from_be_bytes(taken.try_into().expect("two bytes")))
    }

    fn long(&mut self) -> io::Result<i32> {
        let taken = self.take(4)?;
        Ok(i32::from_be_bytes(taken.try_into().expect("four bytes")))
    }

    fn string(&mut self) -> io::Result<&'a [u8]> {
        let length = self.short()?;
        self.take(usize::try_from(length).unwrap_or_default())
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.long()?;
        self.take(usize::try_from(length).unwrap_or_default())
    }
}
