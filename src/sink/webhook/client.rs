//! The sink: which request goes when, and what its end means.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use tokio::time::{Instant, timeout};

use super::answer::judge;
use super::connection::{Link, Place};
use super::message::{ID, Message, SIGNATURE, Shape, TIMESTAMP};
use super::pace::Pace;
use super::signature::Signer;
use super::silence::Silence;
use crate::clock;
use crate::outbox::Task;
use crate::sink::served;
use crate::sink::serving::{Server, Serves, Service, Tag};
use crate::sink::{Cause, Delivery, Outage, Outcome, Probe, Sight, Sink};

/// Where requests go, and how they are made.
pub(super) struct Endpoint {
    pub(super) place: Place,
    /// The path and the query.
    pub(super) target: Uri,
    pub(super) authority: HeaderValue,
    pub(super) signer: Option<Signer>,
    /// How long a request may take, with all that belongs to it.
    pub(super) timeout: Duration,
}

/// How a request has ended.
pub(super) enum End {
    /// With an answer; and the connection, where it can be used again.
    Answer(Outcome, Option<Link>),
    /// Without: the receiver may have it or not.
    Silence(Cause),
    /// It takes nothing from us.
    Away(Cause),
}

impl Endpoint {
    pub(super) fn request(&self, message: Message) -> Result<Request<Full<Bytes>>, Cause> {
        let Message {
            id,
            mut headers,
            body,
        } = message;
        let timestamp = (clock::now().to_unix_micros() / 1_000_000).to_string();
        let signature = self
            .signer
            .as_ref()
            .map(|signer| signer.sign(&id, &timestamp, &body));
        let of_attempt = [
            (ID, Some(id)),
            (TIMESTAMP, Some(timestamp)),
            (SIGNATURE, signature),
        ];
        for (name, value) in of_attempt {
            let Some(value) = value else { continue };
            let value = HeaderValue::try_from(value)
                .map_err(|error| Cause::new(format!("it makes no request: {name}: {error}")))?;
            headers.insert(name, value);
        }
        headers.insert(HOST, self.authority.clone());
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends a request, on a connection that is there, or on a new one.
    pub(super) async fn send(&self, link: Option<Link>, request: Request<Full<Bytes>>) -> End {
        match timeout(self.timeout, self.exchange(link, request)).await {
            Ok(end) => end,
            Err(_) => End::Silence(Cause::new(format!(
                "{} has not answered within {:?}",
                self.place.host, self.timeout
            ))),
        }
    }

    async fn exchange(&self, link: Option<Link>, request: Request<Full<Bytes>>) -> End {
        if let Some(mut link) = link
            && link.is_usable().await
        {
            match link.ask(request.clone()).await {
                Ok(answer) => return self.answered(link, answer),
                // It was closed before the request came: RFC 9112, section 9.3.1. The message's id tells that it is the
                // same one.
                Err(error)
                    if error.is_canceled()
                        || error.is_closed()
                        || error.is_incomplete_message() => {}
                Err(error) => return self.silent(&error),
            }
        }
        let mut link = match self.place.connect().await {
            Ok(link) => link,
            Err(cause) => return End::Away(cause),
        };
        match link.ask(request).await {
            Ok(answer) => self.answered(link, answer),
            Err(error) => self.silent(&error),
        }
    }

    fn answered(
        &self,
        link: Link,
        (status, headers, usable): (hyper::StatusCode, hyper::HeaderMap, bool),
    ) -> End {
        let now = Duration::from_micros(clock::now().to_unix_micros().max(0).unsigned_abs());
        let now: SystemTime = UNIX_EPOCH + now;
        match judge(status, &headers, &self.place.host, now) {
            Ok(outcome) => End::Answer(outcome, usable.then_some(link)),
            Err(Outage { cause, .. }) => End::Away(cause),
        }
    }

    fn silent(&self, error: &hyper::Error) -> End {
        let host = &self.place.host;
        End::Silence(Cause::new(match error.is_parse() {
            true => format!("what {host} answers is no HTTP: {error}"),
            false => format!("{host} has ended the connection without an answer: {error}"),
        }))
    }
}

/// Posts tasks to a URL.
pub struct Webhook {
    pub(super) endpoint: Endpoint,
    pub(super) shape: Shape,
    /// Requests that are under way at a time, at most.
    pub(super) concurrency: usize,
    /// Tasks in a request, at most.
    pub(super) batch: usize,
    /// Connections that rest.
    pub(super) idle: Vec<Link>,
    pub(super) silence: Silence,
    /// Of arrays.
    pub(super) pace: Pace,
}

impl Webhook {
    async fn post(&mut self, mut server: Server) -> Result<(), Cause> {
        let Webhook {
            endpoint,
            shape,
            concurrency,
            idle,
            silence,
            ..
        } = self;
        let endpoint = &*endpoint;
        let mut under_way = FuturesUnordered::new();
        // Whether the tasks or the receiver are to blame shows when another one is answered.
        let mut silent: Vec<(Tag, Cause)> = Vec::new();
        loop {
            if under_way.is_empty() && server.is_empty() {
                server.answer_silent(&mut silent);
            }
            let takes = under_way.len() < *concurrency;
            let (tag, end) = tokio::select! {
                biased;
                Some(end) = under_way.next() => end,
                Some((tag, task)) = server.next(), if takes => {
                    let message = shape
                        .message(&task)
                        .map_err(|unfit| Cause::new(unfit.into_words()));
                    match message.and_then(|message| endpoint.request(message)) {
                        Ok(request) => {
                            let link = idle.pop();
                            under_way.push(async move { (tag, endpoint.send(link, request).await) });
                        }
                        Err(cause) => server.answer(tag, Outcome::Reject(cause)),
                    }
                    continue;
                }
                else => return Ok(()),
            };
            match end {
                End::Answer(outcome, link) => {
                    silence.is_broken();
                    idle.extend(link);
                    server.answer_silent(&mut silent);
                    server.answer(tag, outcome);
                }
                End::Silence(cause) if silence.is_away() => return Err(cause),
                End::Silence(cause) => silent.push((tag, cause)),
                End::Away(cause) => return Err(cause),
            }
        }
    }

    async fn look(&mut self) -> Vec<Sight> {
        let place = &self.endpoint.place;
        let (host, port) = (&place.host, place.port);
        match place.connect().await {
            Ok(_) => {
                let mut sights = vec![Sight::Good(format!("{host}:{port} takes connections"))];
                if place.tls.is_none() && !place.is_loopback() {
                    sights.push(Sight::Risk(
                        "payloads go there unencrypted".to_owned(),
                        "use https:// where the way there is not your own".to_owned(),
                    ));
                }
                if self.endpoint.signer.is_none() {
                    sights.push(Sight::Risk(
                        "requests are not signed: the receiver cannot know who sends them"
                            .to_owned(),
                        "set secret or secret_file, and let it check webhook-signature".to_owned(),
                    ));
                }
                sights
            }
            Err(cause) => vec![Sight::Fault(
                cause.to_string(),
                "see to it that the receiver runs, and that url names it".to_owned(),
            )],
        }
    }
}

impl Serves for Webhook {
    fn side_by_side(&mut self) -> usize {
        // Of one that comes to its end without an answer it shows by the next what that means.
        self.concurrency.max(2)
    }

    fn serve(&mut self, server: Server) -> Service<'_> {
        Box::pin(self.post(server))
    }
}

impl Sink for Webhook {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            if self.batch == 1 {
                return served::deliver(self, batch).await;
            }
            let began = Instant::now();
            let outcomes = self.deliver_arrays(batch).await;
            match outcomes {
                Ok(_) => self.pace.took(batch.len(), began.elapsed()),
                Err(_) => self.pace.away(),
            }
            outcomes
        })
    }

    fn serves(&mut self) -> Option<&mut dyn Serves> {
        match self.batch {
            1 => Some(self),
            _ => None,
        }
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(self.look())
    }

    fn most(&self) -> usize {
        self.pace.most()
    }
}
