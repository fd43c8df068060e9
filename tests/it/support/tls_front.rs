//! TLS in front of a server that speaks in plain: what comes in under a certificate of the test's goes on to its port. And
//! its counterpart, which takes what comes in plain and keeps it.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::port::free_port;
use super::tls::Certificates;

/// It ends, with its connections, when dropped.
pub(crate) struct TlsFront {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TlsFront {
    /// In front of a port on 127.0.0.1.
    pub(crate) fn start(upstream: u16, certificates: &Certificates) -> TlsFront {
        let acceptor = acceptor(certificates, false);
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        listener
            .set_nonblocking(true)
            .expect("a nonblocking listener");
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    _ = stopped => {}
                    () = accept(&listener, &acceptor, upstream) => {}
                }
            });
        });
        TlsFront {
            port,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Under the server's certificate; with or without a demand for one of the same authority's clients.
pub(super) fn acceptor(certificates: &Certificates, demands: bool) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certificates.certificate()).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(certificates.key()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let clients = match demands {
        false => versions.with_no_client_auth(),
        true => {
            let authority = CertificateDer::from_pem_file(certificates.authority());
            let mut authorities = RootCertStore::empty();
            let added = authorities.add(authority.expect("a certificate"));
            added.expect("an authority");
            let verifier =
                WebPkiClientVerifier::builder_with_provider(authorities.into(), provider);
            versions.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let config = clients.with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.expect("a certificate")))
}

async fn accept(listener: &tokio::net::TcpListener, acceptor: &TlsAcceptor, upstream: u16) {
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut client) = acceptor.accept(client).await else {
                return;
            };
            let server = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await;
            if let Ok(mut server) = server {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

/// Somebody who listens where TLS is expected, speaks in plain, and keeps what is said. It ends when dropped.
pub(crate) struct Eavesdropper {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Eavesdropper {
    /// Says this to everybody, first.
    pub(crate) fn start(greeting: &'static [u8]) -> Eavesdropper {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        let (heard, ended) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = thread::spawn({
            let (heard, ended) = (heard.clone(), ended.clone());
            move || {
                for client in listener.incoming().flatten() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let heard = heard.clone();
                    thread::spawn(move || listen(client, greeting, &heard));
                }
            }
        });
        Eavesdropper {
            port,
            heard,
            ended,
            thread: Some(thread),
        }
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// All that it has heard.
    pub(crate) fn heard(&self) -> Vec<u8> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.clone()
    }
}

impl Drop for Eavesdropper {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(mut client: TcpStream, greeting: &[u8], heard: &Mutex<Vec<u8>>) {
    use std::io::Write as _;
    let _ = client.write_all(greeting);
    let mut space = [0; 4096];
    while let Ok(read @ 1..) = client.read(&mut space) {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend_from_slice(&space[..read]);
    }
}
