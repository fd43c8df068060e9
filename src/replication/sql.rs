//! A plain SQL session, for tokio-postgres, opened by our own rules.
//!
//! tokio-postgres knows fewer TLS modes and would send a password in the clear. So our own code opens the session,
//! and tokio-postgres gets it as it stands: its startup message goes nowhere, and it is shown what the server said.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};

use super::error::Error;
use super::session::Session;
use super::silence::Heard;
use super::socket::Socket;
use super::startup::{self, Purpose};
use super::target::Target;

/// How long the server may be silent while it owes the daemon an answer. Long: a commit may wait for a standby, and a lock
/// for whoever has it; and the same would be asked again.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Opens a plain SQL session on the same server, by the same rules for TLS and authentication.
///
/// Its connection is driven by a task on the current runtime, which ends when the client is dropped. It breaks when the server
/// owes an answer and is silent for [`ANSWER_WITHIN`].
/// `application_name` is for a URL that gives none.
///
/// # Errors
/// Those of every step from DNS to the server's readiness; [`Error::policy`] says what to do.
pub async fn connect_sql(target: &Target, application_name: &str) -> Result<Client, Error> {
    let (client, connection) = open_sql(target, application_name, Some(ANSWER_WITHIN)).await?;
    tokio::spawn(drive(connection));
    Ok(client)
}

/// As [`connect_sql`], for statements that may take as long as a table is large: the server may be silent for ever.
///
/// # Errors
/// As [`connect_sql`].
pub async fn connect_sql_unhurried(
    target: &Target,
    application_name: &str,
) -> Result<Client, Error> {
    let (client, connection) = open_sql(target, application_name, None).await?;
    tokio::spawn(drive(connection));
    Ok(client)
}

/// Drives the connection of [`open_sql`] to its end, for a caller who need not know why that came.
pub async fn drive(connection: impl Future<Output = Result<(), Error>>) {
    match connection.await {
        // Whoever has asked hears only that the connection is closed.
        Err(error) if error.is_silence() => tracing::warn!(%error, "a SQL session is given up"),
        Err(error) => tracing::debug!(%error, "a SQL session ended"),
        Ok(()) => {}
    }
}

/// As [`connect_sql`], for a caller that drives the connection itself, and so learns why it ended: a server that
/// shuts down says so here (57P01), and to a waiting query only that the connection is closed. So does one that owes an answer
/// and is silent for longer than `patience`.
///
/// # Errors
/// As [`connect_sql`].
pub async fn open_sql(
    target: &Target,
    application_name: &str,
    patience: Option<Duration>,
) -> Result<
    (
        Client,
        impl Future<Output = Result<(), Error>> + Send + use<>,
    ),
    Error,
> {
    let session = startup::open(target, Purpose::Sql, application_name).await?;
    let context = session.context.clone();
    let mut config = tokio_postgres::Config::new();
    config.user(target.user()).ssl_mode(SslMode::Disable);
    let (client, connection) = config
        .connect_raw(Opened::new(session, patience), NoTls)
        .await
        .map_err(|e| Error::from(e).with(&context))?;
    let driver = async move { connection.await.map_err(|e| Error::from(e).with(&context)) };
    Ok((client, driver))
}

/// A session that is open already, dressed as one that is just being opened.
struct Opened {
    /// The server's side of the startup. Until it is read, what is written is the client's side, and is dropped.
    greeting: Bytes,
    /// What the server has sent behind it.
    rest: Bytes,
    socket: Heard<Socket>,
}

impl Opened {
    fn new(session: Session, patience: Option<Duration>) -> Opened {
        let mut greeting = BytesMut::new();
        let mut frame = |tag: u8, body: &[&[u8]]| {
            let length: usize = body.iter().map(|part| part.len()).sum();
            greeting.put_u8(tag);
            // The parts were read from frames of at most 16 MiB.
            greeting.put_u32(u32::try_from(length).unwrap_or(0) + 4);
            body.iter().for_each(|part| greeting.put_slice(part));
        };
        frame(b'R', &[&0_u32.to_be_bytes()]);
        for (name, value) in &session.parameters {
            frame(b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"]);
        }
        // The key is for cancelling, which nobody does here.
        frame(b'K', &[&session.backend_pid.to_be_bytes(), &[0; 4]]);
        frame(b'Z', &[b"I"]);
        Opened {
            greeting: greeting.freeze(),
            socket: Heard::new(session.socket, patience, &session.buffer),
            rest: session.buffer.freeze(),
        }
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        for kept in [&mut this.greeting, &mut this.rest] {
            if !kept.is_empty() {
                let length = kept.len().min(buf.remaining());
                buf.put_slice(&kept.split_to(length));
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut this.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.greeting.has_remaining() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
