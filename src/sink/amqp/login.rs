//! How a connection is opened: TCP, TLS, the login, the limits, the virtual host, and a channel that confirms.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::link::{Duplex, Event, FRAME_MAX, Link, Trouble};
use super::method::{self, Method, property};
use super::url::Address;

/// A server that allows less than this is not RabbitMQ, and headers have no room in it (specification, chapter 4.2.3).
const LEAST_FRAME: u32 = 4096;

impl Link {
    /// Connects, logs in, and opens a channel whose messages are confirmed.
    ///
    /// # Errors
    /// Why that is not possible.
    pub(super) async fn open(
        address: &Address,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Link, Trouble> {
        let stream = connect(address, tls).await.map_err(Trouble::Unreachable)?;
        let mut link = Link::new(stream);
        let Method::Start {
            properties,
            mechanisms,
        } = link.said().await?
        else {
            return Err(Trouble::NotAmqp);
        };
        let version = property(&properties, "version").unwrap_or_default();
        let product = property(&properties, "product").unwrap_or("AMQP broker".to_owned());
        link.server = format!("{product} {version}").chars().take(64).collect();
        let offered = |wanted: &str| mechanisms.split(' ').any(|mechanism| mechanism == wanted);
        match &address.login {
            Some(login) if offered("PLAIN") => {
                let password = login.password.expose_secret();
                let response = ["", &login.user, password].join("\0");
                method::start_ok(&mut link.output, "PLAIN", response.as_bytes());
            }
            None if offered("EXTERNAL") => method::start_ok(&mut link.output, "EXTERNAL", b""),
            _ => return Err(Trouble::NoMechanism(mechanisms)),
        }
        let Method::Tune {
            frame_max,
            heartbeat,
        } = link.said().await?
        else {
            return Err(Trouble::NotAmqp);
        };
        let frame_max = match frame_max {
            0 => FRAME_MAX,
            LEAST_FRAME.. => frame_max.min(FRAME_MAX),
            _ => return Err(Trouble::NotAmqp),
        };
        let heartbeat = match (address.heartbeat, heartbeat) {
            (Some(ours), 0) => ours,
            (Some(ours), theirs) => ours.min(theirs),
            (None, theirs) => theirs,
        };
        link.frame_max = frame_max as usize;
        link.set_heartbeat(Duration::from_secs(heartbeat.into()));
        method::tune_ok(&mut link.output, frame_max, heartbeat);
        method::open(&mut link.output, &address.vhost);
        match link.said().await? {
            Method::ConnectionOpen => link.open_channel().await?,
            _ => return Err(Trouble::NotAmqp),
        }
        Ok(link)
    }

    /// Opens the next channel: the first one, or one in the place of that which the broker has closed.
    pub(super) async fn open_channel(&mut self) -> Result<(), Trouble> {
        self.next_channel();
        method::confirm_select(&mut self.output, self.channel);
        self.tag = 0;
        for expected in [Method::ChannelOpen, Method::Confirming] {
            if self.said().await? != expected {
                return Err(Trouble::NotAmqp);
            }
        }
        Ok(())
    }

    /// Asks for a channel.
    pub(super) fn next_channel(&mut self) {
        self.channel = 3 - self.channel.clamp(1, 2);
        method::open_channel(&mut self.output, self.channel);
    }

    /// Waits for what the broker says to the last question.
    pub(super) async fn said(&mut self) -> Result<Method, Trouble> {
        loop {
            match self.event().await? {
                Event::Said(
                    Method::Blocked(_)
                    | Method::Unblocked
                    | Method::Ack { .. }
                    | Method::Nack { .. },
                )
                | Event::Returned { .. }
                | Event::Written => {}
                Event::Said(said) => return Ok(said),
            }
        }
    }
}

async fn connect(
    address: &Address,
    tls: Option<&Arc<ClientConfig>>,
) -> io::Result<Box<dyn Duplex>> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(address.host.clone())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await?;
    Ok(Box::new(stream))
}
