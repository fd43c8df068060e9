//! One connection to a NATS server: opened, logged in, written to and read. The caller bounds every wait.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::io::poll_read_buf;

use super::login::Identity;
use super::protocol::{self, Frame, Hello, Info, NotNats};
use super::servers::Server;

/// What is written at once, at most; more is made when it is gone.
const WRITTEN_AT_ONCE: usize = 128 << 10;
/// A buffer that has grown beyond this is given back.
const BUFFER_KEPT: usize = 1 << 20;
/// Room for what is read at once.
const READ_AT_ONCE: usize = 32 << 10;

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It could not be opened.
    Unreachable(io::Error),
    /// It broke.
    Lost(io::Error),
    /// The server does not let us in, or has shown us out.
    Refused(String),
    /// We cannot log in as it is configured.
    Unable(String),
    /// What answers is no NATS.
    NotNats,
}

impl From<NotNats> for Trouble {
    fn from(_: NotNats) -> Trouble {
        Trouble::NotNats
    }
}

/// How to connect.
#[derive(Clone)]
pub(super) struct Manner {
    pub(super) identity: Identity,
    /// TLS is wanted, whatever the URL says.
    pub(super) tls_wanted: bool,
    /// TLS comes before the server has said anything.
    pub(super) tls_first: bool,
    /// For where TLS is wanted.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) struct Connection {
    stream: Box<dyn Duplex>,
    input: BytesMut,
    /// The length of the frame that was handed out last.
    taken: usize,
    /// To be written, of which the first `written` bytes are.
    output: Vec<u8>,
    written: usize,
    flushed: bool,
    sent: u64,
    /// The answer to the login is to come.
    logging_in: bool,
    pub(super) info: Info,
}

impl Connection {
    /// Connects and logs in. A server that is `known` to let us in is not waited for: what follows goes out with the login, and
    /// comes to nothing where that is refused by now.
    pub(super) async fn open(
        server: &Server,
        manner: &Manner,
        known: bool,
    ) -> Result<Connection, Trouble> {
        let tls_wanted = manner.tls_wanted || server.tls;
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await;
        let tcp = tcp.map_err(Trouble::Unreachable)?;
        tcp.set_nodelay(true).map_err(Trouble::Unreachable)?;
        let first = manner.tls_first && tls_wanted;
        let stream: Box<dyn Duplex> = match first {
            true => encrypted(Box::new(tcp), server, manner).await?,
            false => Box::new(tcp),
        };
        let mut connection = Connection {
            stream,
            input: BytesMut::new(),
            taken: 0,
            output: Vec::new(),
            written: 0,
            flushed: true,
            sent: 0,
            logging_in: false,
            info: Info::default(),
        };
        connection.info = connection.greeting().await?;
        let info = &connection.info;
        if !tls_wanted && info.tls_required {
            let words = "it demands TLS: write tls:// in its URL, or set tls = true";
            return Err(Trouble::Unable(words.to_owned()));
        }
        if !first && tls_wanted {
            if !info.tls_required && !info.tls_available {
                let words = "it offers no TLS, and TLS is configured";
                return Err(Trouble::Unable(words.to_owned()));
            }
            // Whatever was said in plain text before is not to be taken for what comes encrypted.
            if !connection.input.is_empty() {
                return Err(Trouble::NotNats);
            }
            connection.stream = encrypted(connection.stream, server, manner).await?;
        }
        connection.log_in(server, manner)?;
        if !known {
            connection.is_let_in().await?;
        }
        Ok(connection)
    }

    async fn greeting(&mut self) -> Result<Info, Trouble> {
        loop {
            match protocol::decode(&self.input)? {
                Some((Frame::Info(json), len)) => {
                    let info = serde_json::from_slice(json).map_err(|_| Trouble::NotNats)?;
                    self.input.advance(len);
                    return Ok(info);
                }
                Some((Frame::Error(words), _)) => return Err(Trouble::Refused(words.to_owned())),
                Some(_) => return Err(Trouble::NotNats),
                None => {}
            }
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(Trouble::Lost)? == 0 {
                return Err(Trouble::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Says who we are.
    fn log_in(&mut self, server: &Server, manner: &Manner) -> Result<(), Trouble> {
        if !self.info.headers {
            let words = "it is too old: it knows no headers (2.2 and newer do)";
            return Err(Trouble::Unable(words.to_owned()));
        }
        let login = manner.identity.login(server, &self.info.nonce);
        let hello = Hello {
            tls_required: manner.tls_wanted || server.tls,
            name: "aftercommit",
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            headers: true,
            no_responders: true,
            login: login.map_err(Trouble::Unable)?,
            ..Hello::default()
        };
        self.output.extend_from_slice(b"CONNECT ");
        serde_json::to_writer(&mut self.output, &hello)
            .map_err(|e| Trouble::Unable(e.to_string()))?;
        self.output.extend_from_slice(b"\r\nPING\r\n");
        self.logging_in = true;
        Ok(())
    }

    /// Waits for the answer to the login.
    async fn is_let_in(&mut self) -> Result<(), Trouble> {
        loop {
            if let Some(Frame::Error(words)) = self.next()? {
                return Err(Trouble::Refused(words.to_owned()));
            }
            if !self.logging_in {
                return Ok(());
            }
            self.turn().await?;
        }
    }

    /// What is to be sent goes here; it is sent by [`turn`](Connection::turn).
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether there is room for another message. One that is larger than the room goes alone.
    pub(super) fn has_room(&self) -> bool {
        self.output.len() < WRITTEN_AT_ONCE
    }

    /// Bytes that have been written: grows while the server takes them.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// So many bytes, if nothing else waits to be written.
    pub(super) fn alone(&self, bytes: usize) -> u64 {
        match self.output.len() - self.written == bytes {
            true => bytes as u64,
            false => 0,
        }
    }

    /// The next whole frame that has been read. PING is answered, INFO and the answer to the login are noted, on
    /// the way.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, Trouble> {
        loop {
            self.input.advance(self.taken.min(self.input.len()));
            self.taken = 0;
            let len = match protocol::decode(&self.input)? {
                None => return Ok(None),
                Some((Frame::Ping, len)) => {
                    self.output.extend_from_slice(b"PONG\r\n");
                    len
                }
                Some((Frame::Info(json), len)) => {
                    let info = serde_json::from_slice(json).map_err(|_| Trouble::NotNats)?;
                    self.info = info;
                    len
                }
                Some((Frame::Ok, len)) => len,
                // What else is answered with PONG was asked later.
                Some((Frame::Pong, len)) if self.logging_in => {
                    self.logging_in = false;
                    len
                }
                Some((_, len)) => {
                    self.taken = len;
                    break;
                }
            };
            self.input.advance(len);
        }
        // Decoded once more, because the loop's borrow ends where it goes on.
        Ok(protocol::decode(&self.input)?.map(|(frame, _)| frame))
    }

    /// Writes and reads what can be written and read, and waits until one of them gets on. May be dropped at any await.
    pub(super) async fn turn(&mut self) -> Result<(), Trouble> {
        poll_fn(|cx| match self.poll_turn(cx) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(e) => Poll::Ready(Err(Trouble::Lost(e))),
        })
        .await
    }

    /// As [`turn`](Connection::turn), without waiting.
    pub(super) async fn glance(&mut self) -> Result<(), Trouble> {
        poll_fn(|cx| Poll::Ready(self.poll_turn(cx).map(drop)))
            .await
            .map_err(Trouble::Lost)
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while let Some(rest) = self.output.get(self.written..).filter(|it| !it.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.written += written;
                    self.flushed = false;
                    self.sent += written as u64;
                    moved = true;
                }
                Poll::Pending => break,
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.output.shrink_to(BUFFER_KEPT);
            self.written = 0;
            if !self.flushed {
                self.flushed = Pin::new(&mut self.stream).poll_flush(cx)?.is_ready();
            }
        }
        self.input.reserve(READ_AT_ONCE);
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input)? {
            Poll::Ready(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(_) => Ok(true),
            Poll::Pending => Ok(moved),
        }
    }
}

async fn encrypted(
    stream: Box<dyn Duplex>,
    server: &Server,
    manner: &Manner,
) -> Result<Box<dyn Duplex>, Trouble> {
    let name = ServerName::try_from(server.host.clone())
        .map_err(|e| Trouble::Unreachable(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
    let Some(tls) = &manner.tls else {
        return Err(Trouble::Unable("TLS was not prepared".to_owned()));
    };
    let connector = TlsConnector::from(Arc::clone(tls));
    let stream = connector.connect(name, stream).await;
    Ok(Box::new(stream.map_err(Trouble::Unreachable)?))
}
