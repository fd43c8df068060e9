//! How a connection is opened: TCP, TLS, the login, the limits, the virtual host, and a channel that confirms.
//!
//! A broker reads what a client says in the order in which it was said, and ignores what comes behind something that it
//! refuses; so nothing is waited for that is not needed to go on. The first time that are the ways to log in and the limits:
//! three round trips. Of a node that is known, both are known, and all is said at once.

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

/// What a node and we have agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of a frame.
    frame_max: u32,
    /// Seconds; 0 for none.
    heartbeat: u16,
}

impl Limits {
    /// What we make of a broker's limits.
    fn agreed(frame_max: u32, theirs: u16, ours: Option<u16>) -> Result<Limits, Trouble> {
        let frame_max = match frame_max {
            0 => FRAME_MAX,
            LEAST_FRAME.. => frame_max.min(FRAME_MAX),
            _ => return Err(Trouble::NotAmqp),
        };
        let heartbeat = match (ours, theirs) {
            (Some(ours), 0) => ours,
            (Some(ours), theirs) => ours.min(theirs),
            (None, theirs) => theirs,
        };
        Ok(Limits {
            frame_max,
            heartbeat,
        })
    }
}

impl Link {
    /// Connects, logs in, and opens a channel whose messages are confirmed. `known`: what was agreed on with this node the
    /// last time. Should it allow less by now, it closes the connection: then nothing is known.
    ///
    /// # Errors
    /// Why that is not possible.
    pub(super) async fn open(
        address: &Arc<Address>,
        tls: Option<&Arc<ClientConfig>>,
        known: Option<Limits>,
    ) -> Result<(Link, Limits), Trouble> {
        let stream = connect(address, tls).await.map_err(Trouble::Unreachable)?;
        let mut link = Link::new(Arc::clone(address), stream);
        if let Some(limits) = known {
            link.log_in(address);
            link.go_on(limits, &address.vhost);
        }
        let Method::Start {
            properties,
            mechanisms,
        } = link.said().await?
        else {
            return Err(Trouble::NotAmqp);
        };
        let version = property(&properties, "version").unwrap_or_default();
        let product = property(&properties, "product").unwrap_or("AMQP broker".to_owned());
        link.cluster = property(&properties, "cluster_name");
        link.server = format!("{product} {version}").chars().take(64).collect();
        if known.is_none() {
            let wanted = mechanism(address);
            if !mechanisms.split(' ').any(|offered| offered == wanted) {
                return Err(Trouble::NoMechanism(mechanisms));
            }
            link.log_in(address);
        }
        let Method::Tune {
            frame_max,
            heartbeat,
        } = link.said().await?
        else {
            return Err(Trouble::NotAmqp);
        };
        let limits = match known {
            Some(limits) => limits,
            None => {
                let limits = Limits::agreed(frame_max, heartbeat, address.heartbeat)?;
                link.go_on(limits, &address.vhost);
                limits
            }
        };
        if link.said().await? != Method::ConnectionOpen {
            return Err(Trouble::NotAmqp);
        }
        link.channel_opens().await?;
        Ok((link, limits))
    }

    /// Says who we are.
    fn log_in(&mut self, address: &Address) {
        let response = match &address.login {
            Some(login) => ["", &login.user, login.password.expose_secret()].join("\0"),
            None => String::new(),
        };
        method::start_ok(&mut self.output, mechanism(address), response.as_bytes());
    }

    /// Says all that follows the login.
    fn go_on(&mut self, limits: Limits, vhost: &str) {
        let Limits {
            frame_max,
            heartbeat,
        } = limits;
        self.frame_max = frame_max as usize;
        self.set_heartbeat(Duration::from_secs(heartbeat.into()));
        method::tune_ok(&mut self.output, frame_max, heartbeat);
        method::open(&mut self.output, vhost);
        self.ask_for_channel();
    }

    /// Opens the next channel, in the place of one which the broker has closed.
    pub(super) async fn open_channel(&mut self) -> Result<(), Trouble> {
        self.ask_for_channel();
        self.channel_opens().await
    }

    /// Opens the next channel, and closes this one, on which nothing is under way.
    pub(super) async fn change_channel(&mut self) -> Result<(), Trouble> {
        method::close_channel(&mut self.output, self.channel);
        self.open_channel().await
    }

    /// Asks for the next channel, whose messages are confirmed.
    fn ask_for_channel(&mut self) {
        self.channel = 3 - self.channel.clamp(1, 2);
        method::open_channel(&mut self.output, self.channel);
        method::confirm_select(&mut self.output, self.channel);
        self.tag = 0;
        self.nacked = false;
    }

    /// Waits for the channel that was asked for.
    async fn channel_opens(&mut self) -> Result<(), Trouble> {
        for expected in [Method::ChannelOpen, Method::Confirming] {
            if self.said().await? != expected {
                return Err(Trouble::NotAmqp);
            }
        }
        Ok(())
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

/// How we log in.
fn mechanism(address: &Address) -> &'static str {
    match address.login {
        Some(_) => "PLAIN",
        None => "EXTERNAL",
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
