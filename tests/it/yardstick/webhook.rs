//! The webhook sink, beside a bare loop of the same library, hyper, with the requests that the sink has sent, on as many
//! connections.

use std::net::Ipv4Addr;

use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::places::Hooks;
use super::replay::requests;
use super::tap::Recording;
use super::{Load, Place as _, Run, compare, of_sink, record, runtime};

const COUNT: usize = 9_000;
const KEYS: usize = 1_000;

/// Measures it, and prints a line of the table.
pub(super) fn measure() {
    let runtime = runtime();
    let load = Load::new(COUNT, KEYS);
    let mut place = Hooks::new();
    let recordings = runtime.block_on(record(&mut place, &load));
    compare("webhook, beside hyper alone", KEYS, &load, || {
        let ours = runtime.block_on(of_sink(&mut place, &load));
        place.reset();
        let bare = runtime.block_on(async {
            let each = recordings.iter().map(|it| Client::to(place.port(), it));
            let mut clients = join_all(each).await;
            Run::measure(&load, async |_| {
                join_all(clients.iter_mut().map(Client::next)).await;
            })
            .await
        });
        (ours, bare)
    });
}

/// A connection, and what goes over it in each batch, the last one first.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    batches: Vec<Vec<Request<Full<Bytes>>>>,
}

impl Client {
    async fn to(port: u16, recording: &Recording) -> Client {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.expect("a receiver");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let connected = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = connected.expect("a connection");
        tokio::spawn(connection);
        let batches = recording.up.iter().rev();
        let batches = batches.map(|sent| requests(sent).map(request).collect());
        Client {
            sender,
            batches: batches.collect(),
        }
    }

    async fn next(&mut self) {
        for request in self.batches.pop().unwrap_or_default() {
            self.sender.ready().await.expect("it is open");
            let answer = self.sender.send_request(request).await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
            answer.into_body().collect().await.expect("a whole one");
        }
    }
}

/// A request as it was sent.
fn request(sent: &[u8]) -> Request<Full<Bytes>> {
    let end = sent.windows(4).position(|it| it == b"\r\n\r\n");
    let (head, body) = sent.split_at(end.expect("a head") + 4);
    let mut lines = std::str::from_utf8(head).expect("a head").lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1));
    let mut request = Request::post(target.expect("a target"));
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let body = Full::new(Bytes::copy_from_slice(body));
    request.body(body).expect("a request")
}
