//! The amqp sink that comes back to a RabbitMQ which it knows: it waits for nothing before it has said all that it takes to
//! publish, and what is refused is as clear as the first time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::amqp::Config;
use aftercommit::sink::{Outcome, Settings as _, Sink};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::proxy::Proxy;
use crate::support::rabbitmq::{RabbitMq, id, is_installed};
use crate::support::wait::PATIENCE;

/// `confirm.select`, the last that is said before messages.
const LAST: [u8; 4] = [0, 85, 0, 10];

/// Where a server listens, behind something that may want to hear all first.
struct Door {
    port: u16,
    hears_all_first: Arc<AtomicBool>,
}

impl Door {
    async fn open(to: u16) -> Door {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let hears_all_first = Arc::new(AtomicBool::new(false));
        let hears = Arc::clone(&hears_all_first);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, to, hears.load(Ordering::SeqCst)));
            }
        });
        Door {
            port,
            hears_all_first,
        }
    }

    fn hear_all_first(&self, all: bool) {
        self.hears_all_first.store(all, Ordering::SeqCst);
    }
}

async fn pass(mut client: TcpStream, to: u16, hears_all_first: bool) -> std::io::Result<()> {
    let mut said = Vec::new();
    while hears_all_first && !said.windows(LAST.len()).any(|it| it == LAST) {
        if client.read_buf(&mut said).await? == 0 {
            return Ok(());
        }
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
    server.write_all(&said).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

fn task(id: &str) -> Task {
    let fields = [(Field::Id, id), (Field::Task, "order.paid")];
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

fn open(url: &str) -> Box<dyn Sink> {
    let settings = json!({"url": url, "exchange": "", "routing_key": "orders", "timeout": "5s"});
    let config: Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

/// Hands a task over until it is delivered; how many outages there were.
async fn deliver(sink: &mut Box<dyn Sink>, id: &str) -> usize {
    let start = Instant::now();
    let mut outages = 0;
    loop {
        match sink.deliver(&[task(id)]).await {
            Ok(outcomes) => {
                assert_eq!(outcomes, [Outcome::Delivered]);
                return outages;
            }
            Err(outage) => assert!(start.elapsed() < PATIENCE, "{outage}"),
        }
        outages += 1;
    }
}

/// Hands a task over until the sink is away for this reason.
async fn wait_for_outage(sink: &mut Box<dyn Sink>, words: &str) {
    let start = Instant::now();
    loop {
        let told = match sink.deliver(&[task("refused")]).await {
            Ok(outcomes) => format!("{outcomes:?}"),
            Err(outage) => outage.to_string(),
        };
        if told.contains(words) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{told}");
    }
}

#[tokio::test]
async fn a_broker_that_is_known_is_told_all_at_once() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::start();
    let (vhost, gone) = (server.default_vhost(), server.vhost());
    vhost.queue("orders", json!({}));
    gone.queue("orders", json!({}));
    server.user("shop", "secret", &vhost);
    let proxy = Proxy::start(server.port());
    let door = Door::open(proxy.port()).await;
    let url = vhost.url_through(door.port);
    let mut sink = open(&url);
    let mut of_user = open(&url.replace("guest:guest", "shop:secret"));
    let mut of_vhost = open(&gone.url_through(door.port));
    for sink in [&mut sink, &mut of_user, &mut of_vhost] {
        assert_eq!(deliver(sink, "known").await, 0);
    }

    // From now on, whoever waits for an answer in between waits for ever.
    door.hear_all_first(true);
    proxy.reset();
    deliver(&mut sink, "again").await;
    server.ask("DELETE", "users/shop", None);
    wait_for_outage(&mut of_user, "refuses user or password of the URL").await;
    let path = format!("vhosts/{}", gone.name);
    server.ask("DELETE", &path, None);
    wait_for_outage(&mut of_vhost, "there is no such virtual host").await;
    door.hear_all_first(false);

    // It takes smaller frames than it did: it has to be asked.
    server.ctl(&["eval", "application:set_env(rabbit, frame_max, 8192)."]);
    proxy.reset();
    assert!(deliver(&mut sink, "smaller").await <= 2, "it is not asked");
    let arrived: Vec<String> = vhost.peek("orders").iter().map(id).collect();
    let arrived: Vec<&String> = arrived.iter().filter(|id| *id != "refused").collect();
    assert_eq!(arrived, ["known", "known", "again", "smaller"]);
}
