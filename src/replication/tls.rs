//! From a TCP connection to a TLS session, as `sslmode` says.
//!
//! Postgres documentation, chapters "Secure TCP/IP Connections with SSL" and "SSL Session Encryption": the client
//! sends an SSLRequest and the server answers with one byte, `S` or `N`. Exactly one byte is read, so that nothing
//! sent in the clear can pass for part of the session.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::{Error, Place};
use super::socket::Socket;
use super::target::{Roots, SslMode, TlsRules};
use super::verifier::{Trust, Verifier};

/// Starts TLS on a fresh connection. `None` back from the server's `N` is the same connection, in the clear.
pub(super) async fn negotiate(
    mut stream: TcpStream,
    host: &str,
    rules: &TlsRules,
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
        b'N' if rules.mode == SslMode::Prefer || rules.mode == SslMode::Allow => {
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
    let files = rules.clone();
    let config = tokio::task::spawn_blocking(move || client_config(&files))
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

/// Reads the files of certificates, each time anew.
fn client_config(rules: &TlsRules) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match &rules.roots {
        Roots::Unverified => Trust::Anyone,
        Roots::System => Trust::system()?,
        Roots::File(path) => Trust::these(certificates("sslrootcert", path)?)
            .map_err(|words| format!("sslrootcert {}: {words}", path.display()))?,
    };
    let verifier = Verifier {
        trust,
        check_name: rules.mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &rules.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates("sslcert", certificate)?, private_key(key)?)
            .map_err(|e| {
                format!(
                    "sslcert {} and sslkey do not fit: {e}",
                    certificate.display()
                )
            }),
    }
}

fn certificates(keyword: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let place = || format!("{keyword} {}", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unreadable(&place(), e))?;
    if certificates.is_empty() {
        return Err(format!(
            "{}: the file holds no certificate in PEM form",
            place()
        ));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| match e {
        pem::Error::NoItemsFound => format!(
            "sslkey {}: the file holds no private key in PEM form; an encrypted one is not supported",
            path.display()
        ),
        e => unreadable(&format!("sslkey {}", path.display()), e),
    })
}

fn unreadable(place: &str, e: pem::Error) -> String {
    match e {
        pem::Error::Io(e) => format!("{place}: {e}"),
        _ => format!("{place}: the file is not valid PEM"),
    }
}
