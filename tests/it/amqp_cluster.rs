//! RabbitMQ's nodes in one URL: whichever of them goes away, tasks go on at another; none is lost, and none overtakes another of
//! its key. Where it is about the way to a node only, proxies in front of one server stand for nodes.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::{Outcome, Settings as _, Sight, Sink, amqp, celery, dramatiq};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::daemon::Daemon;
use crate::support::exam::ledger::{Delivery, Receipt};
use crate::support::exam::{Exam, IN_FLIGHT, LIST, says};
use crate::support::handover::hand_over;
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::rabbitmq::{Options, RabbitMq, Vhost, id, is_installed};
use crate::support::rabbitmq_reader::{Message, Reader};
use crate::support::wait::{PATIENCE, eventually};

/// Three nodes, and a quorum queue.
fn cluster(queue: &str) -> [RabbitMq; 3] {
    let first = RabbitMq::start();
    let join = || {
        RabbitMq::start_with(Options {
            joins: Some(&first),
            ..Options::default()
        })
    };
    let (second, third) = thread::scope(|scope| {
        let [second, third] = [scope.spawn(join), scope.spawn(join)];
        let started = "a node of the cluster";
        (second.join().expect(started), third.join().expect(started))
    });
    let vhost = first.default_vhost();
    vhost.queue(queue, json!({"x-queue-type": "quorum"}));
    [first, second, third]
}

/// A daemon that fills the queue, under load.
struct Trial {
    exam: Exam,
    daemon: Daemon,
}

impl Trial {
    /// How many rows have been committed, and how many of them are delivered.
    fn progress(&self) -> (usize, usize) {
        let sql = "select count(*), count(*) filter (where o.id is null and h.id is null)
                   from exam.written w left join aftercommit.outbox o using (id)
                   left join aftercommit.hold h on h.id = w.id::text";
        let counts = self.exam.postgres.psql(sql);
        let (written, delivered) = counts.split_once('|').expect("two numbers");
        let number = |text: &str| text.parse().expect("a number");
        (number(written), number(delivered))
    }

    /// Waits until something is delivered that was committed later than now. Where the queue's leader is gone, RabbitMQ elects
    /// another one first.
    async fn goes_on(&self, what: &str) {
        let since = Instant::now();
        let (written, _) = self.progress();
        eventually(PATIENCE, what, || {
            let (_, delivered) = self.progress();
            async move { (delivered > written).then_some(()) }
        })
        .await;
        eprintln!("{what}: tasks go on after {:?}", since.elapsed());
    }

    /// Waits until the daemon is connected there.
    async fn wait_until_used(&mut self, node: &RabbitMq) {
        let since = Instant::now();
        let place = format!("amqp://127.0.0.1:{}", node.port());
        let is_told = |record: &Value| {
            says(record, "this node of the cluster is used now") && record["node"] == place
        };
        self.daemon.wait_for_log(&place, is_told).await;
        eprintln!("connected to the next node after {:?}", since.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_killed_under_load_cost_nothing() {
    if !is_installed() {
        return;
    }
    let [mut first, mut second, third] = cluster(LIST);
    let exam = Exam::start();
    let urls = [&first, &second, &third]
        .map(|node| node.url("/"))
        .join(";");
    let config = exam.config_through(&exam.postgres_url(), &urls);
    // RabbitMQ refuses messages to a queue until that has a new leader.
    let (retry, patient) = ("retry = { ", "retry = { attempts = 1000, ");
    assert!(config.contains(retry), "{config}");
    let config = config.replace(retry, patient);
    let load = exam.load(2, Duration::from_millis(100));
    let daemon = Daemon::start(&config);
    let mut trial = Trial { exam, daemon };
    trial.goes_on("the first node is up").await;
    trial.goes_on("the first node is up").await;

    first.kill9();
    trial.wait_until_used(&second).await;
    trial.goes_on("the first node is killed").await;
    first.restart();
    second.kill9();
    trial.wait_until_used(&third).await;
    trial.goes_on("the second node is killed").await;
    load.stop().await;
    trial.exam.nothing_left().await;
    assert_eq!(trial.daemon.terminate().await.code(), Some(0));

    let written = trial.exam.written().await;
    let ids: HashSet<&str> = written.iter().map(|row| row.id.as_str()).collect();
    let reader = Reader::start_taking(third.port(), "/", LIST);
    let messages = eventually(PATIENCE, "all messages", || {
        let messages = reader.messages_from(0);
        let come: HashSet<&str> = messages.iter().map(|it| it.id.as_str()).collect();
        let all = ids.is_subset(&come);
        async move { all.then_some(messages) }
    })
    .await;
    let delivery = |it: &Message| Delivery::of_call(&it.id, &it.lsn, &it.body);
    let deliveries: Vec<Delivery> = messages.iter().map(delivery).collect();
    let receipt = Receipt::new(&written, &deliveries, &HashSet::new());
    eprintln!(
        "{} committed, {} messages, {} of them repeats",
        receipt.committed, receipt.delivered, receipt.duplicates
    );
    receipt.assert_sound("nodes of a cluster killed under load", 2 * IN_FLIGHT);

    // Two clusters in one URL are seen, and a node that is away is no more than a risk.
    let stranger = RabbitMq::shared().vhost();
    let urls = [third.url("/"), stranger.url()].join(";");
    let told = probe(&mut open_amqp(&urls)).await;
    assert!(told.contains("Good") && !told.contains("Fault"), "{told}");
    assert!(
        told.contains("messages would wait in two brokers"),
        "{told}"
    );
    let urls = [&first, &second].map(|node| node.url("/")).join(";");
    let told = probe(&mut open_amqp(&urls)).await;
    assert!(told.contains("Good") && !told.contains("Fault"), "{told}");
    assert!(!told.contains("two brokers"), "{told}");
    let away = format!("Risk(\"amqp://127.0.0.1:{} ", second.port());
    assert!(told.contains(&away), "{told}");
}

fn task(id: &str, key: Option<&str>) -> Task {
    let fields = [(Field::Id, id), (Field::Task, "order.paid")];
    let key = key.map(|key| (Field::Key, key));
    Task::from_fields(
        fields.into_iter().chain(key),
        Position::default(),
        Timestamp(0),
    )
}

/// A sink whose messages go to the queue `orders`.
fn open_amqp(urls: &str) -> Box<dyn Sink> {
    let settings = json!({"url": urls, "exchange": "", "routing_key": "orders", "timeout": "1s"});
    let config: amqp::Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

fn open_celery(urls: &str) -> Box<dyn Sink> {
    let settings = json!({"broker_url": urls, "queue": "orders"});
    let config: celery::Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

fn open_dramatiq(urls: &str) -> Box<dyn Sink> {
    let settings = json!({"url": urls, "queue": "orders"});
    let config: dramatiq::Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

async fn deliver(sink: &mut Box<dyn Sink>, id: &str) {
    let answer = sink.deliver(&[task(id, None)]).await;
    assert_eq!(answer, Ok(vec![Outcome::Delivered]), "{id}");
}

/// Why the sink is away.
async fn outage(sink: &mut Box<dyn Sink>) -> String {
    let answer = sink.deliver(&[task("refused", None)]).await;
    answer.expect_err("an outage").to_string()
}

/// What a look at the place shows, a line each.
async fn probe(sink: &mut Box<dyn Sink>) -> String {
    let sights = sink.probe().await;
    let lines: Vec<String> = sights.iter().map(|it: &Sight| format!("{it:?}")).collect();
    lines.join("\n")
}

fn ids(vhost: &Vhost<'_>) -> Vec<String> {
    vhost.peek("orders").iter().map(id).collect()
}

/// Two ways to the server that tests share, which stand for two nodes, and the URLs of a virtual host of its own there.
fn two_ways() -> (Vhost<'static>, [Proxy; 2], String) {
    let server = RabbitMq::shared();
    let vhost = server.vhost();
    vhost.queue("orders", json!({}));
    let proxies = [(); 2].map(|()| Proxy::start(server.port()));
    let urls = [&proxies[0], &proxies[1]].map(|proxy| vhost.url_through(proxy.port()));
    (vhost, proxies, urls.join(";"))
}

#[tokio::test]
async fn a_node_that_is_away_makes_way() {
    if !is_installed() {
        return;
    }
    let (vhost, [a, b], urls) = two_ways();
    a.set_away(true);
    let mut expected = Vec::new();
    for (name, open) in [
        ("dramatiq", open_dramatiq as fn(&str) -> Box<dyn Sink>),
        ("celery", open_celery),
        ("amqp", open_amqp),
    ] {
        deliver(&mut open(&urls), name).await;
        expected.push(name);
    }
    let mut sink = open_amqp(&urls);
    deliver(&mut sink, "at the second").await;

    // Nothing is to be sent when it breaks, and the next task notices.
    a.set_away(false);
    b.set_away(true);
    deliver(&mut sink, "at the first").await;
    // It stays there.
    b.set_away(false);
    deliver(&mut sink, "still there").await;
    let nobody = || async { (b.open() == 0).then_some(()) };
    eventually(PATIENCE, "nobody at the second", nobody).await;

    a.set_away(true);
    b.set_away(true);
    for _ in 0..2 {
        let words = outage(&mut sink).await;
        for port in [a.port(), b.port()] {
            let cause = format!("127.0.0.1:{port}/{} cannot be reached", vhost.name);
            assert!(words.contains(&cause), "{words}");
        }
        assert!(!words.contains("guest"), "{words}");
    }
    let told = probe(&mut sink).await;
    assert_eq!(told.matches("Fault").count(), 2, "{told}");
    b.set_away(false);
    deliver(&mut sink, "back").await;
    let told = probe(&mut sink).await;
    assert!(told.contains("Good") && told.contains("Risk"), "{told}");
    assert!(!told.contains("Fault"), "{told}");
    expected.extend(["at the second", "at the first", "still there", "back"]);
    assert_eq!(ids(&vhost), expected);
}

/// A port at which nobody answers: not even connections are taken.
struct Deaf {
    port: u16,
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl Deaf {
    fn new() -> Deaf {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = socket();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).expect("a free port");
        listener.listen(0).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let port = address.as_socket().expect("an address").port();
        // Once these have filled its queue, the kernel drops what else comes.
        let waiting = (0..4).map(|_| {
            let client = socket();
            client.set_nonblocking(true).expect("a socket");
            let _ = client.connect(&address);
            client
        });
        let deaf = Deaf {
            port,
            _waiting: waiting.collect(),
            _listener: listener,
        };
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let answer = TcpStream::connect_timeout(&target, Duration::from_millis(200));
        assert!(answer.is_err(), "it takes connections");
        deaf
    }
}

#[tokio::test]
async fn a_node_that_hangs_holds_up_the_others_for_a_moment() {
    if !is_installed() {
        return;
    }
    let (vhost, [a, b], urls) = two_ways();
    let deaf = Deaf::new();
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let mute_port = mute.local_addr().expect("an address").port();
    for (name, port) in [("deaf", deaf.port), ("mute", mute_port)] {
        let urls = format!("{};{urls}", vhost.url_through(port));
        let mut sink = open_amqp(&urls);
        let since = Instant::now();
        deliver(&mut sink, name).await;
        let took = since.elapsed();
        eprintln!("{name}: delivered after {took:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        // It is not asked again.
        a.reset();
        let since = Instant::now();
        deliver(&mut sink, name).await;
        eprintln!("{name}: delivered after {:?}", since.elapsed());
        // When nobody else answers, its silence ends, too.
        a.set_away(true);
        b.set_away(true);
        let since = Instant::now();
        let words = outage(&mut sink).await;
        let silence = format!("127.0.0.1:{port}/{} has not answered", vhost.name);
        assert!(words.contains(&silence), "{words}");
        assert!(since.elapsed() < Duration::from_secs(5), "{words}");
        a.set_away(false);
        b.set_away(false);
    }
    assert_eq!(ids(&vhost), ["deaf", "deaf", "mute", "mute"]);
}

#[tokio::test]
async fn a_connection_that_breaks_midway_goes_on_at_the_next_node() {
    if !is_installed() {
        return;
    }
    let (vhost, [a, b], urls) = two_ways();
    let mut sink = open_amqp(&urls);
    deliver(&mut sink, "first").await;
    assert_eq!((a.accepted(), b.accepted()), (1, 0));
    let names: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    let keys = ["x", "y", "z"];
    let key = |n: usize| keys.get(n % 6).copied();
    let tasks: Vec<Task> = names
        .iter()
        .enumerate()
        .map(|(n, id)| task(id, key(n)))
        .collect();
    a.set(Way::Up, Fault::CutAfter(30_000));
    let outcomes = hand_over(&mut sink, &tasks).await.expect("no outage");
    assert_eq!(outcomes, vec![Outcome::Delivered; tasks.len()]);
    assert_eq!((a.accepted(), b.accepted()), (1, 1));
    let arrived = ids(&vhost);
    let mut known = HashSet::new();
    let new: Vec<usize> = arrived
        .iter()
        .skip(1)
        .filter(|id| known.insert(*id))
        .map(|id| id.parse().expect("a number"))
        .collect();
    assert_eq!(new.len(), names.len(), "each has come");
    for key_of in keys {
        let of_key: Vec<usize> = new
            .iter()
            .copied()
            .filter(|n| key(*n) == Some(key_of))
            .collect();
        assert!(of_key.is_sorted(), "{key_of}: {of_key:?}");
    }
    let twice = arrived.len() - 1 - new.len();
    eprintln!("{twice} of {} came twice", names.len());
    assert!(twice < names.len() / 2, "{twice} came twice");
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left_for_the_next() {
    if !is_installed() {
        return;
    }
    let (vhost, [a, b], urls) = two_ways();
    let mut sink = open_amqp(&urls);
    deliver(&mut sink, "before").await;
    a.both(Fault::BlackHole);
    let words = outage(&mut sink).await;
    assert!(words.contains("has not answered within 1s"), "{words}");
    deliver(&mut sink, "after").await;
    assert_eq!((a.accepted(), b.accepted()), (1, 1));
    assert_eq!(ids(&vhost), ["before", "after"]);
}

#[tokio::test]
async fn a_login_that_one_node_refuses_is_tried_at_the_next() {
    if !is_installed() {
        return;
    }
    let (vhost, [a, b], _) = two_ways();
    let wrong = |proxy: &Proxy| {
        vhost
            .url_through(proxy.port())
            .replace("guest:guest", "guest:s3cret")
    };
    let right = vhost.url_through(b.port());
    deliver(&mut open_amqp(&[wrong(&a), right].join(";")), "right").await;
    let words = outage(&mut open_amqp(&[wrong(&a), wrong(&b)].join(";"))).await;
    assert_eq!(
        words.matches("refuses user or password").count(),
        2,
        "{words}"
    );
    assert!(!words.contains("s3cret"), "{words}");
    assert_eq!(ids(&vhost), ["right"]);
}
