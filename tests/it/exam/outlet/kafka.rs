//! Kafka: the cluster that librdkafka plays, with one broker, behind a door of our own.
//!
//! It keeps what it has acknowledged as long as this process lives, and is "killed" by closing all its sockets: that it loses
//! its memory cannot be tried. It does not look at sequence numbers, by which Kafka drops what a producer sends again: here
//! that comes twice. It lets everyone in: TLS and logins are those of a front of ours, in builds with the feature kafka-tls,
//! and row 25 is sat in these. Where connections are cut, librdkafka reads and writes the frames, and mends the connection by
//! itself: of row 12 that part is sat which cuts at random.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
#[cfg(feature = "kafka-tls")]
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaApiKey::Produce;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;

use super::{Found, Place};
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::kafka::{Kafka, PARTITIONS, TOPIC, show};
#[cfg(feature = "kafka-tls")]
use crate::support::{
    kafka_front::{Admission, KafkaFront, USER},
    scram::Mechanism,
    tls::Certificates,
};

/// The topic that is not there at first.
const LATE: &str = "late";
/// So many requests are refused, if need be: more than there are.
const REFUSALS: usize = 1_000_000;

/// A topic, and what has come to it.
pub(super) struct OnKafka {
    cluster: Cluster,
    door: Door,
    topic: &'static str,
    reader: Reader,
    read: usize,
    #[cfg(feature = "kafka-tls")]
    guard: Option<Guard>,
}

/// Who asks for a login, in front of the door.
#[cfg(feature = "kafka-tls")]
struct Guard {
    front: KafkaFront,
    certificates: Certificates,
}

impl OnKafka {
    pub(super) fn start() -> OnKafka {
        let cluster = Cluster::start();
        let brokers = cluster.ask(Kafka::brokers);
        let (_, port) = brokers.rsplit_once(':').expect("a port");
        OnKafka {
            door: Door::open(port.parse().expect("a port")),
            reader: Reader::start(&brokers, TOPIC),
            cluster,
            topic: TOPIC,
            read: 0,
            #[cfg(feature = "kafka-tls")]
            guard: None,
        }
    }
}

/// How [`Guard`] asks.
#[cfg(feature = "kafka-tls")]
const MECHANISM: Mechanism = Mechanism::ScramSha512;

impl Place for OnKafka {
    fn port(&self, _: &Exam) -> u16 {
        self.door.port
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        self.door.shown.store(port, Ordering::SeqCst);
        format!(
            "[sink.kafka.workers]\nbrokers = \"127.0.0.1:{port}\"\ntopic = \"{}\"\npassword = \"{CANARY_SECRET}\"\n",
            self.topic
        )
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        let values = lock(&self.reader.values)[self.read..].to_vec();
        self.read += values.len();
        values.iter().for_each(|value| found.add_object(value));
    }

    /// The cluster drops the oldest beyond 5 MiB in a partition: what was read is kept here.
    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.door.hangs.store(true, Ordering::SeqCst);
    }

    fn cont(&mut self, _: &Exam) {
        self.door.hangs.store(false, Ordering::SeqCst);
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.cluster.ask(|kafka| kafka.set_away(true));
    }

    fn restart(&mut self, _: &mut Exam) {
        self.cluster.ask(|kafka| kafka.set_away(false));
    }

    /// Too few replicas are in sync.
    fn fill(&mut self, _: &Exam) {
        self.cluster.ask(|kafka| {
            let errors = vec![RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; REFUSALS];
            kafka.cluster.request_errors(Produce, &errors);
        });
    }

    fn make_room(&mut self, _: &Exam) {
        self.cluster
            .ask(|kafka| kafka.cluster.clear_request_errors(Produce));
    }

    fn vanish(&mut self, _: &Exam) {
        self.topic = LATE;
    }

    fn appear(&mut self, _: &Exam) {
        let brokers = self.cluster.ask(|kafka| {
            kafka.create(LATE);
            kafka.brokers()
        });
        self.reader = Reader::start(&brokers, LATE);
    }

    #[cfg(feature = "kafka-tls")]
    fn admit(&mut self, _: &Exam, password: Option<&str>) {
        let guard = self.guard.get_or_insert_with(|| {
            let certificates = Certificates::new();
            let broker = format!("127.0.0.1:{}", self.door.port);
            let front = KafkaFront::start(&broker, &certificates, Admission::Login(MECHANISM));
            Guard {
                front,
                certificates,
            }
        });
        guard.front.admit(password);
    }

    #[cfg(feature = "kafka-tls")]
    fn secret(&self, _: &Exam, password: &str) -> String {
        password.to_owned()
    }

    #[cfg(feature = "kafka-tls")]
    fn sink_from(&self, file: &Path) -> String {
        let guard = self.guard.as_ref().expect("a guard");
        format!(
            "[sink.kafka.workers]\nbrokers = \"{}\"\ntopic = \"{}\"\ntimeout = \"2s\"\npassword_file = \"{}\"\nproperties = {{ \"security.protocol\" = \"sasl_ssl\", \"sasl.mechanism\" = \"{}\", \"sasl.username\" = \"{USER}\", \"ssl.ca.location\" = \"{}\" }}\n",
            guard.front.brokers(),
            self.topic,
            file.display(),
            MECHANISM.name(),
            guard.certificates.authority().display()
        )
    }
}

type Errand = Box<dyn FnOnce(&Kafka) + Send>;

/// The cluster, which stays on one thread.
struct Cluster(Mutex<mpsc::Sender<Errand>>);

impl Cluster {
    fn start() -> Cluster {
        let (sender, errands) = mpsc::channel::<Errand>();
        thread::spawn(move || {
            let kafka = Kafka::start(1);
            errands.into_iter().for_each(|errand| errand(&kafka));
        });
        Cluster(Mutex::new(sender))
    }

    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Kafka) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let errand: Errand = Box::new(move |kafka| drop(answer.send(question(kafka))));
        lock(&self.0).send(errand).expect("a cluster");
        answered.recv().expect("an answer")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a topic all the time, each partition in its order, from the cluster itself.
struct Reader {
    values: Arc<Mutex<Vec<Vec<u8>>>>,
    ended: Arc<AtomicBool>,
}

impl Reader {
    fn start(brokers: &str, topic: &str) -> Reader {
        let (values, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "exam")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.error.backoff.ms", "10")
            .set("reconnect.backoff.ms", "10")
            .set("reconnect.backoff.max.ms", "50")
            .set("auto.offset.reset", "earliest")
            .create()
            .expect("a consumer");
        let mut from = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            from.add_partition_offset(topic, partition, Offset::Offset(0))
                .expect("a partition");
        }
        consumer.assign(&from).expect("partitions");
        thread::spawn({
            let (values, ended) = (Arc::clone(&values), Arc::clone(&ended));
            move || read(&consumer, &values, &ended)
        });
        Reader { values, ended }
    }
}

fn read(consumer: &BaseConsumer, values: &Mutex<Vec<Vec<u8>>>, ended: &AtomicBool) {
    let mut next: HashMap<i32, i64> = HashMap::new();
    while !ended.load(Ordering::SeqCst) {
        // It may be away, and will be back.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else {
            continue;
        };
        let next = next.entry(message.partition()).or_default();
        assert!(message.offset() <= *next, "some were dropped unread");
        // After an outage the client may begin anew.
        if message.offset() == *next {
            *next += 1;
            lock(values).push(message.payload().unwrap_or_default().to_vec());
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Nobody waits for its thread: it takes leave of a cluster that may be away.
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// A port before the broker's. A broker tells its clients where it is: the door puts the port in there by which they have come,
/// so that they do not pass by a proxy.
struct Door {
    port: u16,
    shown: Arc<AtomicU16>,
    /// Nothing passes.
    hangs: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Door {
    fn open(broker: u16) -> Door {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let door = Door {
            port,
            shown: Arc::new(AtomicU16::new(port)),
            hangs: Arc::default(),
            ended: Arc::default(),
        };
        let (shown, hangs) = (Arc::clone(&door.shown), Arc::clone(&door.hangs));
        let ended = Arc::clone(&door.ended);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else {
                    continue;
                };
                let both = client
                    .try_clone()
                    .and_then(|it| Ok((it, server.try_clone()?)));
                let (to_client, from_server) = both.expect("descriptors");
                let up = Arc::clone(&hangs);
                thread::spawn(move || carry(client, server, &up, |_| {}));
                let (down, shown) = (Arc::clone(&hangs), Arc::clone(&shown));
                thread::spawn(move || {
                    carry(from_server, to_client, &down, |piece| {
                        show(piece, broker, shown.load(Ordering::SeqCst));
                    });
                });
            }
        });
        door
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.hangs.store(false, Ordering::SeqCst);
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

/// Carries what comes, until one side ends.
fn carry(mut from: TcpStream, mut to: TcpStream, hangs: &AtomicBool, change: impl Fn(&mut [u8])) {
    let _ = to.set_nodelay(true);
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while hangs.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        change(&mut buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
