//! From a TCP connection to a TLS session, as `sslmode` says.
//!
//! Postgres documentation, chapters "Secure TCP/IP Connections with SSL" and "SSL Session Encryption": the client
//! sends an SSLRequest and the server answers with one byte, `S` or `N`. Exactly one byte is read, so that nothing
//! sent in the clear can pass for part of the session.

use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::{Error, Place};
use super::socket::Socket;
use super::target::SslMode;
use crate::tls::{self, Names, Rules};

/// libpq's keywords.
const NAMES: Names = Names {
    roots: "sslrootcert",
    certificate: "sslcert",
    key: "sslkey",
};

/// Starts TLS on a fresh connection. `None` back from the server's `N` is the same connection, in the clear.
pub(super) async fn negotiate(
    mut stream: TcpStream,
    host: &str,
    mode: SslMode,
    rules: &Rules,
) -> Result<Socket, Error> {
    let place = Place::Connect;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let answered = match stream.write_all(&request).await {
        Ok(()) => stream.read_u8().await,
        Err(e) => Err(e),
    };
    match answered.map_err(|e| Error::io(place, e))? {
        b'S' => {}
        b'N' if mode == SslMode::Prefer || mode == SslMode::Allow => {
            return Ok(Socket::Tcp(stream));
        }
        b'N' => {
            return Err(Error::refused(
                place,
                "the server does not offer TLS, and sslmode demands it. Set ssl = on in postgresql.conf, or \
                 choose another sslmode",
            ));
        }
        // An ErrorResponse here is not authenticated by anything: its words are not shown.
        b'E' => return Err(Error::closed(place)),
        _ => {
            return Err(Error::protocol(
                place,
                "the answer is not a Postgres server's",
            ));
        }
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::refused(place, "the host is neither a DNS name nor an IP address"))?;
    // The files are read each time anew, so that a renewed certificate counts.
    let rules = rules.clone();
    let config = tokio::task::spawn_blocking(move || tls::client_config(&rules, NAMES))
        .await
        .map_err(|_| Error::closed(place))?
        .map_err(|words| Error::refused(place, words))?;
    match TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
    {
        Ok(session) => Ok(Socket::Tls(Box::new(session))),
        Err(e) => Err(Error::io(place, e)),
    }
}
