//! Several private Redis servers that know of each other: a cluster, and a primary with a replica and sentinels.

use std::process::Command;

use redis::FromRedisValue;
use rustix::process::Signal;
use tempfile::TempDir;

use super::port::free_port;
use super::process::{Process, scratch};
use super::redis::{Options, Redis};
use super::tls::Certificates;
use super::wait::{PATIENCE, until, within};

/// A cluster of three primaries.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
    password: Option<String>,
    /// Whether the nodes name each other by their ports of TLS.
    tls: bool,
}

impl Cluster {
    /// Starts it; what it has is kept when nodes are killed.
    pub(crate) fn start() -> Cluster {
        Cluster::start_with(Options::default())
    }

    /// As [`start`](Cluster::start), with options for each node. With TLS the nodes, too, speak it with each other.
    pub(crate) fn start_with(options: Options<'_>) -> Cluster {
        let tls = options.tls.is_some();
        let node = |_| {
            let bus = free_port().to_string();
            let mut settings = vec![
                ("cluster-enabled", "yes"),
                ("cluster-port", bus.as_str()),
                ("cluster-node-timeout", "2000"),
                ("tls-cluster", if tls { "yes" } else { "no" }),
            ];
            settings.extend(options.settings);
            Redis::start_with(Options {
                durable: true,
                settings: &settings,
                ..options
            })
        };
        let nodes: Vec<Redis> = (0..3).map(node).collect();
        let bounds = ["0", "5460", "5461", "10922", "10923", "16383"];
        for (node, bounds) in nodes.iter().zip(bounds.chunks(2)) {
            node.run(&["CLUSTER", "ADDSLOTSRANGE", bounds[0], bounds[1]]);
        }
        for (epoch, node) in (1..).zip(&nodes) {
            node.run(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]);
        }
        let cluster = Cluster {
            nodes,
            password: options.password.map(str::to_owned),
            tls,
        };
        let first = &cluster.nodes[0];
        for node in &cluster.nodes[1..] {
            let port = cluster.port(node).to_string();
            let settings: Vec<String> = node.ask(&["CONFIG", "GET", "cluster-port"]);
            first.run(&["CLUSTER", "MEET", "127.0.0.1", &port, &settings[1]]);
        }
        cluster.wait_until_ok();
        cluster
    }

    /// The port by which the others know a node.
    pub(crate) fn port(&self, node: &Redis) -> u16 {
        if self.tls {
            node.tls_port()
        } else {
            node.port()
        }
    }

    /// Moves a key of a slot that is on its way.
    pub(crate) fn migrate(&self, from: usize, to: usize, key: &str) {
        let port = self.port(&self.nodes[to]).to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, key, "0", "5000"];
        if let Some(password) = &self.password {
            command.extend(["AUTH", password]);
        }
        self.nodes[from].run(&command);
    }

    /// Waits until all nodes agree that all is well.
    pub(crate) fn wait_until_ok(&self) {
        until(PATIENCE, "a cluster that is well", || {
            let is_ok = |node: &Redis| {
                let info: String = node.ask(&["CLUSTER", "INFO"]);
                // Where full coverage is not required, the state is good before all slots are known.
                let is_so = |line: &str| info.lines().any(|it| it == line);
                is_so("cluster_state:ok")
                    && is_so("cluster_known_nodes:3")
                    && is_so("cluster_slots_ok:16384")
            };
            self.nodes.iter().all(is_ok).then_some(())
        });
    }

    /// The URL, by one of the nodes.
    pub(crate) fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{}", self.nodes[2].port())
    }

    /// The URL with TLS, by one of the nodes under this name; user and password come with their `@`.
    pub(crate) fn tls_url(&self, login: &str, host: &str, options: &str) -> String {
        let port = self.nodes[2].tls_port();
        format!("rediss+cluster://{login}{host}:{port}?{options}")
    }

    /// The index of the node that has a key.
    pub(crate) fn node_of(&self, key: &str) -> usize {
        let slot: u32 = self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key]);
        let has = |node: &Redis| {
            let text: String = node.ask(&["CLUSTER", "NODES"]);
            let mine = text
                .lines()
                .find(|line| line.contains("myself"))
                .expect("itself");
            mine.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let number = |text: &str| text.parse::<u32>();
                matches!((number(first), number(last)), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            })
        };
        self.nodes
            .iter()
            .position(has)
            .expect("a node that has the slot")
    }
}

/// A primary, a replica, and two sentinels.
pub(crate) struct Guarded {
    pub(crate) servers: Vec<Redis>,
    sentinels: Vec<Sentinel>,
    secrets: Option<Secrets>,
    /// Whether the sentinels know the servers by their ports of TLS.
    tls: bool,
}

/// What servers and sentinels ask for.
#[derive(Clone, Copy)]
pub(crate) struct Secrets {
    pub(crate) server: &'static str,
    pub(crate) sentinel: &'static str,
}

struct Sentinel {
    port: u16,
    /// Listens only where there are certificates.
    tls_port: u16,
    password: Option<&'static str>,
    _process: Process,
    _directory: TempDir,
}

/// What the sentinels call the primary.
pub(crate) const SERVICE: &str = "main";

impl Guarded {
    /// Starts all of them. The first server is the primary.
    pub(crate) fn start() -> Guarded {
        Guarded::start_with(None, None)
    }

    /// As [`start`](Guarded::start), where they ask for passwords, and where all speak TLS with each other: then they listen on
    /// two ports, and know each other by those of TLS.
    pub(crate) fn start_with(secrets: Option<Secrets>, tls: Option<&Certificates>) -> Guarded {
        let password = secrets.map(|secrets| secrets.server);
        let auth = ("masterauth", password.unwrap_or_default());
        let replication = ("tls-replication", if tls.is_some() { "yes" } else { "no" });
        let options = Options {
            durable: true,
            password,
            tls,
            settings: &[auth, replication],
        };
        let primary = Redis::start_with(options);
        let port = match tls {
            Some(_) => primary.tls_port().to_string(),
            None => primary.port().to_string(),
        };
        let settings = format!("127.0.0.1 {port}");
        let replica = Redis::start_with(Options {
            settings: &[auth, replication, ("replicaof", &settings)],
            ..options
        });
        until(PATIENCE, "a replica that is connected", || {
            let info: String = replica.ask(&["INFO", "replication"]);
            info.contains("master_link_status:up").then_some(())
        });
        let start = |_| Sentinel::start(&port, secrets, tls);
        let sentinels: Vec<Sentinel> = (0..2).map(start).collect();
        let guarded = Guarded {
            servers: vec![primary, replica],
            sentinels,
            secrets,
            tls: tls.is_some(),
        };
        until(
            PATIENCE,
            "sentinels that know each other and the replica",
            || {
                let knows = |sentinel: &Sentinel| {
                    let count = |what: &str| sentinel.count(what).unwrap_or(0);
                    count("SENTINELS") == 1 && count("REPLICAS") == 1
                };
                guarded.sentinels.iter().all(knows).then_some(())
            },
        );
        guarded
    }

    /// The URL: one sentinel that is not there, and those that are.
    pub(crate) fn url(&self) -> String {
        let login = self.secrets.map(|secrets| format!(":{}@", secrets.server));
        let query = self
            .secrets
            .map(|secrets| format!("?sentinel_password={}", secrets.sentinel));
        format!(
            "redis+sentinel://{}{}/{SERVICE}{}",
            login.unwrap_or_default(),
            self.places().join(","),
            query.unwrap_or_default()
        )
    }

    /// The URL as Celery writes it, for the database 2.
    pub(crate) fn celery_url(&self) -> String {
        let login = self.secrets.map(|secrets| format!(":{}@", secrets.server));
        let login = login.unwrap_or_default();
        let one = |place: &String| format!("sentinel://{login}{place}/2");
        self.places().iter().map(one).collect::<Vec<_>>().join(";")
    }

    fn places(&self) -> Vec<String> {
        let ports = std::iter::once(1).chain(self.sentinel_ports(false));
        ports.map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Where the sentinels listen, without or with TLS.
    pub(crate) fn sentinel_ports(&self, tls: bool) -> Vec<u16> {
        let port = |sentinel: &Sentinel| {
            if tls {
                sentinel.tls_port
            } else {
                sentinel.port
            }
        };
        self.sentinels.iter().map(port).collect()
    }

    /// The port by which the sentinels know a server.
    pub(crate) fn port(&self, server: usize) -> u16 {
        let server = &self.servers[server];
        if self.tls {
            server.tls_port()
        } else {
            server.port()
        }
    }

    /// Waits until the sentinels name another primary than this port's; its index.
    pub(crate) fn wait_for_failover(&self, from: u16) -> usize {
        let port = until(PATIENCE, "another primary", || {
            let sentinel = self.sentinels.first()?;
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
            let address: Vec<String> = sentinel.ask(&question)?;
            address[1].parse::<u16>().ok().filter(|port| *port != from)
        });
        (0..self.servers.len())
            .find(|server| self.port(*server) == port)
            .expect("one of ours")
    }
}

impl Sentinel {
    fn start(primary: &str, secrets: Option<Secrets>, tls: Option<&Certificates>) -> Sentinel {
        for _ in 0..5 {
            let directory = scratch("sentinel");
            let (port, tls_port) = (free_port(), free_port());
            let file = directory.path().join("sentinel.conf");
            let mut text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 1\n\
                 sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 4000\n",
                directory.path().display()
            );
            if let Some(Secrets { server, sentinel }) = secrets {
                text.push_str(&format!(
                    "sentinel auth-pass {SERVICE} {server}\nrequirepass {sentinel}\nsentinel sentinel-pass {sentinel}\n"
                ));
            }
            if let Some(certificates) = tls {
                text.push_str(&format!(
                    "tls-port {tls_port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
                     tls-auth-clients no\ntls-replication yes\n",
                    certificates.certificate().display(),
                    certificates.key().display(),
                    certificates.authority().display()
                ));
            }
            std::fs::write(&file, text).expect("a file");
            let log = directory.path().join("log");
            let output = std::fs::File::create(&log).expect("a log file");
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdout(output);
            let mut process = Process::spawn("redis-sentinel", &mut command, Signal::KILL, &log);
            let ready = within(PATIENCE, || match process.running() {
                true => process.output().contains("+monitor master").then_some(true),
                false => Some(false),
            });
            if ready == Some(true) {
                return Sentinel {
                    port,
                    tls_port,
                    password: secrets.map(|secrets| secrets.sentinel),
                    _process: process,
                    _directory: directory,
                };
            }
        }
        panic!("a sentinel does not start");
    }

    fn ask<T: FromRedisValue>(&self, command: &[&str]) -> Option<T> {
        let login = self.password.map(|password| format!(":{password}@"));
        let url = format!(
            "redis://{}127.0.0.1:{}",
            login.unwrap_or_default(),
            self.port
        );
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_connection().ok()?;
        let (name, arguments) = command.split_first().expect("a command");
        redis::cmd(name).arg(arguments).query(&mut connection).ok()
    }

    fn count(&self, what: &str) -> Option<usize> {
        let found: Vec<redis::Value> = self.ask(&["SENTINEL", what, SERVICE])?;
        Some(found.len())
    }
}
