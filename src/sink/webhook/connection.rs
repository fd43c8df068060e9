//! A connection to the receiver: its name resolved, each address checked, and connected to just these; TLS; HTTP/1.1.
//!
//! Nothing is spawned: a connection is driven by the request that uses it, and rests in between.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::{self, Range};
use crate::sink::Cause;

/// So much of an answer's body is read, so that its connection can be used again; a longer one costs the connection.
const MOST_READ: usize = 64 << 10;
/// The head of an answer may be so long.
const LONGEST_HEAD: usize = 64 << 10;

/// Where to connect to, and how.
pub(super) struct Place {
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) allowed: Vec<Range>,
    pub(super) connect_timeout: Duration,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Place {
    /// Connects.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) async fn connect(&self) -> Result<Link, Cause> {
        let Place {
            host,
            port,
            connect_timeout,
            ..
        } = self;
        match timeout(*connect_timeout, self.open()).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err(Cause::new(format!(
                "{host}:{port} cannot be reached within {connect_timeout:?}"
            ))),
        }
    }

    /// Whether what is sent stays on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    async fn open(&self) -> Result<Link, Cause> {
        let Place { host, port, .. } = self;
        let failed =
            |error: io::Error| Cause::new(format!("{host}:{port} cannot be reached: {error}"));
        let addresses = self.resolve().await?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let share = self.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(1);
        for address in addresses {
            let stream = match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    last = error;
                    continue;
                }
                Err(_) => {
                    last = io::ErrorKind::TimedOut.into();
                    continue;
                }
            };
            stream.set_nodelay(true).map_err(failed)?;
            let stream: Box<dyn Duplex> = match &self.tls {
                None => Box::new(stream),
                Some((connector, name)) => {
                    let session = connector.connect(name.clone(), stream).await;
                    Box::new(session.map_err(failed)?)
                }
            };
            return Link::begin(stream)
                .await
                .map_err(|error| failed(io::Error::other(error)));
        }
        Err(failed(last))
    }

    /// The addresses of the host, of which each was found good; the connection goes to one of these, so that a name which
    /// points elsewhere a moment later changes nothing.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Cause> {
        let Place {
            host,
            port,
            allowed,
            ..
        } = self;
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, *port)],
            Err(_) => match lookup_host((host.as_str(), *port)).await {
                Ok(addresses) => addresses.collect(),
                Err(error) => {
                    return Err(Cause::new(format!("{host} cannot be resolved: {error}")));
                }
            },
        };
        for address in &addresses {
            if let Some(words) = address::objection(address.ip(), allowed) {
                return Err(Cause::new(format!(
                    "{host} is {}, {words}: not connected to; see allow_addresses",
                    address.ip()
                )));
            }
        }
        Ok(addresses)
    }
}

/// A connection.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; `None` once it has ended.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
}

impl Link {
    async fn begin(stream: Box<dyn Duplex>) -> hyper::Result<Link> {
        let mut builder = http1::Builder::new();
        let (sender, driver) = builder
            .max_buf_size(LONGEST_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Link {
            sender,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Whether a request can be sent on it: the other end has not closed it.
    pub(super) async fn is_usable(&mut self) -> bool {
        let Link { sender, driver } = self;
        drive(driver, sender.ready()).await.is_ok() && driver.is_some()
    }

    /// Sends a request and reads the answer. The connection can be used again where the last value says so.
    ///
    /// # Errors
    /// There was no answer.
    pub(super) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<(StatusCode, HeaderMap, bool)> {
        let Link { sender, driver } = self;
        let answer = drive(driver, sender.send_request(request)).await?;
        let (head, mut body) = answer.into_parts();
        let mut read = 0;
        while let Some(frame) = drive(driver, body.frame()).await {
            read += match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => data.len(),
                Ok(Err(_)) => 0,
                // What it says is known.
                Err(_) => return Ok((head.status, head.headers, false)),
            };
            if read > MOST_READ {
                return Ok((head.status, head.headers, false));
            }
        }
        Ok((head.status, head.headers, driver.is_some()))
    }
}

/// Does `work`, and what the connection has to do for it.
async fn drive<T>(
    driver: &mut Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // How it ended, the work is told, too.
        if driver
            .as_mut()
            .is_some_and(|driver| driver.as_mut().poll(cx).is_ready())
        {
            *driver = None;
        }
        work.as_mut().poll(cx)
    })
    .await
}
