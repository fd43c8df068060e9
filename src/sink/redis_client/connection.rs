//! One connection to a Redis server: opened, logged in, and asked. The caller bounds every wait.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::resp::{self, Refusal, Reply};
use super::url::{Address, Place};

/// Why a connection is of no more use.
#[derive(Debug)]
pub(in crate::sink) enum Trouble {
    /// It could not be opened.
    Unreachable(io::Error),
    /// It broke.
    Lost(io::Error),
    /// The server does not let us in.
    Refused(Refusal),
    /// What answers is no Redis.
    NotRedis,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(in crate::sink) struct Connection {
    stream: Box<dyn Duplex>,
    input: Vec<u8>,
}

impl Connection {
    /// Connects, logs in, and tries `trial`, commands without an effect: where one is refused, we are.
    pub(in crate::sink) async fn open(
        address: &Address,
        tls: Option<&Arc<ClientConfig>>,
        trial: &[&[u8]],
    ) -> Result<Connection, Trouble> {
        let stream = connect(address, tls).await.map_err(Trouble::Unreachable)?;
        let mut connection = Connection {
            stream,
            input: Vec::with_capacity(4096),
        };
        let (mut request, mut expected) = (Vec::new(), trial.len());
        if let Some(password) = &address.password {
            let password = password.expose_secret().as_bytes();
            match &address.user {
                Some(user) => {
                    resp::write_command(&mut request, &[b"AUTH", user.as_bytes(), password])
                }
                None => resp::write_command(&mut request, &[b"AUTH", password]),
            }
            expected += 1;
        }
        if address.db != 0 {
            resp::write_command(
                &mut request,
                &[b"SELECT", address.db.to_string().as_bytes()],
            );
            expected += 1;
        }
        for command in trial {
            resp::write_command(&mut request, &[command]);
        }
        for reply in connection.ask(&[IoSlice::new(&request)], expected).await? {
            if let Reply::Error(refusal) = reply {
                return Err(Trouble::Refused(refusal));
            }
        }
        Ok(connection)
    }

    /// Sends `request`, and waits for `expected` replies.
    pub(in crate::sink) async fn ask(
        &mut self,
        request: &[IoSlice<'_>],
        expected: usize,
    ) -> Result<Vec<Reply>, Trouble> {
        self.send(request).await?;
        self.replies(expected).await
    }

    /// Sends a part of a request.
    pub(in crate::sink) async fn send(&mut self, request: &[IoSlice<'_>]) -> Result<(), Trouble> {
        let written = write_all(&mut self.stream, request).await;
        written.map_err(Trouble::Lost)
    }

    /// Waits for `expected` replies to what was sent.
    pub(in crate::sink) async fn replies(
        &mut self,
        expected: usize,
    ) -> Result<Vec<Reply>, Trouble> {
        let mut replies = Vec::with_capacity(expected);
        while replies.len() < expected {
            if let Some((reply, len)) = resp::parse(&self.input).map_err(|_| Trouble::NotRedis)? {
                self.input.drain(..len);
                replies.push(reply);
                continue;
            }
            let read = self
                .stream
                .read_buf(&mut self.input)
                .await
                .map_err(Trouble::Lost)?;
            if read == 0 {
                return Err(Trouble::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(replies)
    }

    /// Whether the server has closed an idle connection, or said something unasked. Does not wait.
    pub(in crate::sink) async fn is_stale(&mut self) -> bool {
        let mut space = [0; 1];
        let mut buffer = ReadBuf::new(&mut space);
        let stream = &mut self.stream;
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_read(cx, &mut buffer).is_ready()))
            .await
            || !self.input.is_empty()
    }
}

async fn connect(
    address: &Address,
    tls: Option<&Arc<ClientConfig>>,
) -> io::Result<Box<dyn Duplex>> {
    let (host, port) = match &address.place {
        Place::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        Place::Tcp { host, port } => (host, *port),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let name = address.name.as_ref().unwrap_or(host);
    let name = ServerName::try_from(name.clone())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await?;
    Ok(Box::new(stream))
}

async fn write_all(stream: &mut Box<dyn Duplex>, request: &[IoSlice<'_>]) -> io::Result<()> {
    let mut slices = request.to_vec();
    let mut rest = slices.as_mut_slice();
    // Drops empty slices in front.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = stream.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    stream.flush().await
}
