//! Private RabbitMQ servers, and what their management interface does and shows: it is written by others, and decodes what
//! we send on its own.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::port::free_port;
use super::process::{Process, scratch};
use super::tls::Certificates;
use super::wait::{PATIENCE, within};

/// Debian's scripts that start what is in the package as whoever calls them.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";

/// What nodes of a cluster have in common; the first one makes it.
const COOKIE: &str = ".erlang.cookie";

/// How to start a server.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options<'a> {
    /// Serve TLS, on a second port, with this certificate.
    pub(crate) tls: Option<&'a Certificates>,
    /// Ask clients for a certificate: with one, its common name may log in; without, they are sent away.
    pub(crate) client_certificates: bool,
    /// Lines of `rabbitmq.conf` beside those of the harness.
    pub(crate) settings: &'a str,
    /// A node of the cluster that it becomes a part of.
    pub(crate) joins: Option<&'a RabbitMq>,
}

/// A private server of one node, or a node of a cluster, stopped when dropped. It keeps durable queues on disk.
pub(crate) struct RabbitMq {
    process: Process,
    /// The first node's of a cluster.
    _names: Option<Process>,
    ports: Ports,
    directory: TempDir,
}

#[derive(Clone, Copy)]
struct Ports {
    names: u16,
    nodes: u16,
    amqp: u16,
    tls: u16,
    management: u16,
}

/// Whether there is a RabbitMQ on this machine; says so, if not.
pub(crate) fn is_installed() -> bool {
    let there = Path::new(PROGRAMS).join("rabbitmq-server").exists();
    if !there {
        eprintln!("SKIP: no RabbitMQ here; scripts/apt-install.sh rabbitmq-server");
    }
    there
}

impl RabbitMq {
    /// Starts a server on free ports of 127.0.0.1.
    pub(crate) fn start() -> RabbitMq {
        RabbitMq::start_with(Options::default())
    }

    /// As [`start`](RabbitMq::start), with options.
    pub(crate) fn start_with(options: Options) -> RabbitMq {
        let directory = scratch("rabbitmq");
        for _ in 0..5 {
            let ports = Ports {
                names: options
                    .joins
                    .map_or_else(free_port, |other| other.ports.names),
                nodes: free_port(),
                amqp: free_port(),
                tls: free_port(),
                management: free_port(),
            };
            configure(directory.path(), &ports, &options);
            let names = match options.joins {
                Some(other) => {
                    // Nodes know each other by it; RabbitMQ asks that nobody else can read it.
                    let [from, to] =
                        [&other.directory, &directory].map(|at| at.path().join(COOKIE));
                    if !to.exists() {
                        fs::copy(from, to).expect("the cookie");
                    }
                    None
                }
                None => Some(name_server(directory.path(), &ports)),
            };
            // Another process may take a free port before the server does.
            if let Some(process) = launch(directory.path(), &ports) {
                return RabbitMq {
                    process,
                    _names: names,
                    ports,
                    directory,
                };
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("rabbitmq-server does not start:\n{log}");
    }

    /// The server that tests share; each takes a virtual host of its own.
    pub(crate) fn shared() -> &'static RabbitMq {
        static SERVER: LazyLock<RabbitMq> = LazyLock::new(RabbitMq::start);
        &SERVER
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// URL of a virtual host.
    pub(crate) fn url(&self, vhost: &str) -> String {
        self.url_through(self.ports.amqp, vhost)
    }

    /// As [`url`](RabbitMq::url), by way of another port: a proxy's.
    pub(crate) fn url_through(&self, port: u16, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/{}", encoded(vhost))
    }

    /// URL of a virtual host on the TLS port.
    pub(crate) fn tls_url(&self, vhost: &str) -> String {
        let port = self.ports.tls;
        format!("amqps://guest:guest@localhost:{port}/{}", encoded(vhost))
    }

    /// The port for TLS on 127.0.0.1.
    pub(crate) fn tls_port(&self) -> u16 {
        self.ports.tls
    }

    /// Makes a user who may do everything in a virtual host.
    pub(crate) fn user(&self, name: &str, password: &str, vhost: &Vhost<'_>) {
        let user = json!({"password": password, "tags": ""});
        self.ask("PUT", &format!("users/{name}"), Some(&user));
        let rights = json!({"configure": ".*", "write": ".*", "read": ".*"});
        let path = format!("permissions/{}/{name}", encoded(&vhost.name));
        self.ask("PUT", &path, Some(&rights));
    }

    /// A new virtual host.
    pub(crate) fn vhost(&self) -> Vhost<'_> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.ask("PUT", &format!("vhosts/{name}"), Some(&json!({})));
        let rights = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.ask("PUT", &format!("permissions/{name}/guest"), Some(&rights));
        Vhost { server: self, name }
    }

    /// The virtual host that is always there.
    pub(crate) fn default_vhost(&self) -> Vhost<'_> {
        self.vhost_of("/")
    }

    /// A virtual host that is there.
    pub(crate) fn vhost_of(&self, name: &str) -> Vhost<'_> {
        Vhost {
            server: self,
            name: name.to_owned(),
        }
    }

    /// Makes a user, or gives it another password.
    pub(crate) fn set_user(&self, name: &str, password: &str) {
        let user = json!({"password": password, "tags": ""});
        self.ask("PUT", &format!("users/{name}"), Some(&user));
    }

    /// Runs `rabbitmqctl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) {
        let mut command = program("rabbitmqctl", self.directory.path(), &self.ports);
        let output = command.args(arguments).output().expect("rabbitmqctl");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGSTOP: the server hangs.
    pub(crate) fn stop(&self) {
        self.process.signal_family(Signal::STOP);
    }

    /// SIGCONT, after [`stop`](RabbitMq::stop).
    pub(crate) fn cont(&self) {
        self.process.signal_family(Signal::CONT);
    }

    /// Starts it again on the same ports; kills it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.process.kill9();
        let process = within(PATIENCE, || launch(self.directory.path(), &self.ports));
        self.process = process.expect("rabbitmq-server starts again");
    }

    /// Asks the management interface; panics unless it does what it is asked for.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.try_to_ask(method, path, body);
        let (status, text) = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {text}"
        );
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Removes a user, with its connections; it may be gone already.
    pub(crate) fn remove_user(&self, name: &str) {
        let answer = self.try_to_ask("DELETE", &format!("users/{name}"), None);
        let (status, text) = answer.expect("an answer");
        assert!(matches!(status, 204 | 404), "{status} {text}");
    }

    fn try_to_ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.management))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        // HTTP/1.0: the answer comes in one piece.
        let request = format!(
            "{method} /api/{path} HTTP/1.0\r\nauthorization: basic {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            STANDARD.encode("guest:guest"),
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.unwrap_or_default(), body.to_owned()))
    }
}

/// A virtual host of a server.
pub(crate) struct Vhost<'a> {
    server: &'a RabbitMq,
    pub(crate) name: String,
}

impl Vhost<'_> {
    /// Its URL.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// As [`url`](Vhost::url), by way of another port.
    pub(crate) fn url_through(&self, port: u16) -> String {
        self.server.url_through(port, &self.name)
    }

    /// A user may do everything in it from now on, or nothing.
    pub(crate) fn permit(&self, user: &str, everything: bool) {
        let right = if everything { ".*" } else { "^$" };
        let rights = json!({"configure": right, "write": right, "read": right});
        self.server
            .ask("PUT", &self.path("permissions", user), Some(&rights));
    }

    fn path(&self, kind: &str, name: &str) -> String {
        format!("{kind}/{}/{}", encoded(&self.name), encoded(name))
    }

    /// Declares a durable queue with these arguments.
    pub(crate) fn queue(&self, name: &str, arguments: Value) {
        self.queue_as(name, json!({"durable": true, "arguments": arguments}));
    }

    /// Declares a queue.
    pub(crate) fn queue_as(&self, name: &str, settings: Value) {
        self.server
            .ask("PUT", &self.path("queues", name), Some(&settings));
    }

    /// Deletes a queue with its messages.
    pub(crate) fn delete_queue(&self, name: &str) {
        self.server.ask("DELETE", &self.path("queues", name), None);
    }

    /// Declares a durable exchange.
    pub(crate) fn exchange(&self, name: &str, kind: &str) {
        let settings = json!({"type": kind, "durable": true});
        self.server
            .ask("PUT", &self.path("exchanges", name), Some(&settings));
    }

    /// Deletes an exchange.
    pub(crate) fn delete_exchange(&self, name: &str) {
        self.server
            .ask("DELETE", &self.path("exchanges", name), None);
    }

    /// Binds a queue to an exchange.
    pub(crate) fn bind(&self, exchange: &str, queue: &str, routing_key: &str) {
        let vhost = encoded(&self.name);
        let path = format!("bindings/{vhost}/e/{exchange}/q/{queue}");
        let binding = json!({"routing_key": routing_key});
        self.server.ask("POST", &path, Some(&binding));
    }

    /// Takes all messages out of a queue, the oldest first.
    pub(crate) fn take(&self, queue: &str) -> Vec<Value> {
        self.get(queue, "ack_requeue_false")
    }

    /// All messages of a queue, the oldest first; they stay.
    pub(crate) fn peek(&self, queue: &str) -> Vec<Value> {
        self.get(queue, "ack_requeue_true")
    }

    fn get(&self, queue: &str, mode: &str) -> Vec<Value> {
        let path = format!("{}/get", self.path("queues", queue));
        let how = json!({"count": 100_000, "ackmode": mode, "encoding": "auto"});
        let messages = self.server.ask("POST", &path, Some(&how));
        messages.as_array().expect("a list of messages").clone()
    }
}

/// The `message_id` of a message.
pub(crate) fn id(message: &Value) -> String {
    let id = message["properties"]["message_id"].as_str();
    id.unwrap_or_else(|| panic!("no id: {message}")).to_owned()
}

fn encoded(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn configure(directory: &Path, ports: &Ports, options: &Options) {
    let mut settings = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n\
         log.console = true\nlog.file = false\ndisk_free_limit.absolute = 1MB\n\
         consumer_timeout = 36000000\n{}\n",
        ports.amqp, ports.management, options.settings
    );
    if let Some(other) = options.joins {
        settings.push_str(&format!(
            "cluster_formation.peer_discovery_backend = classic_config\n\
             cluster_formation.classic_config.nodes.1 = {}\n",
            node_name(&other.ports)
        ));
    }
    if let Some(certificates) = options.tls {
        let file = |path: PathBuf| path.display().to_string();
        settings.push_str(&format!(
            "listeners.ssl.1 = 127.0.0.1:{}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n",
            ports.tls,
            file(certificates.authority()),
            file(certificates.certificate()),
            file(certificates.key()),
        ));
        settings.push_str(match options.client_certificates {
            true => {
                "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
                 ssl_cert_login_from = common_name\nauth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n"
            }
            false => "ssl_options.verify = verify_none\n",
        });
    }
    for (name, content) in [
        ("rabbitmq.conf", settings.as_str()),
        ("advanced.config", "[]."),
        (
            "plugins",
            "[rabbitmq_management,rabbitmq_auth_mechanism_ssl].",
        ),
        // What the machine has in /etc/rabbitmq is not ours.
        ("env.conf", ""),
    ] {
        fs::write(directory.join(name), content).expect(name);
    }
}

fn node_name(ports: &Ports) -> String {
    format!("rabbit-{}@localhost", ports.amqp)
}

/// One of RabbitMQ's programs, with all that it finds and writes in a folder of its own.
fn program(name: &str, directory: &Path, ports: &Ports) -> Command {
    let mut command = Command::new(Path::new(PROGRAMS).join(name));
    let file = |name: &str| directory.join(name);
    command
        .current_dir(directory)
        .env("HOME", directory)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", ports.names.to_string())
        .env("RABBITMQ_NODENAME", node_name(ports))
        .env("RABBITMQ_DIST_PORT", ports.nodes.to_string())
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-kernel inet_dist_use_interface {127,0,0,1}",
        )
        .env("RABBITMQ_MNESIA_BASE", file("data"))
        .env("RABBITMQ_LOG_BASE", directory)
        .env("RABBITMQ_LOGS", "-")
        .env("RABBITMQ_CONF_ENV_FILE", file("env.conf"))
        .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("plugins"));
    command
}

/// Erlang's name server: nodes would start one that outlives them.
fn name_server(directory: &Path, ports: &Ports) -> Process {
    let mut command = Command::new("epmd");
    command.args(["-address", "127.0.0.1", "-port", &ports.names.to_string()]);
    let mut names = Process::spawn(
        "epmd",
        &mut command,
        Signal::KILL,
        &directory.join("epmd.log"),
    );
    let up = within(PATIENCE, || {
        let there = TcpStream::connect((Ipv4Addr::LOCALHOST, ports.names)).is_ok();
        (there || !names.running()).then_some(there)
    });
    assert_eq!(up, Some(true), "epmd: {}", names.tail());
    names
}

/// Starts the server and waits until it takes connections; `None` when it ends before.
fn launch(directory: &Path, ports: &Ports) -> Option<Process> {
    const READY: &str = "Server startup complete";
    let log = directory.join("log");
    let starts = || {
        let text = fs::read(&log).unwrap_or_default();
        String::from_utf8_lossy(&text).matches(READY).count()
    };
    let before = starts();
    let output = fs::File::options().create(true).append(true).open(&log);
    let mut command = program("rabbitmq-server", directory, ports);
    command.stdout(output.expect("a log file"));
    let mut process = Process::spawn("rabbitmq-server", &mut command, Signal::KILL, &log);
    let ready = within(2 * PATIENCE, || {
        if starts() > before {
            return Some(true);
        }
        (!process.running()).then_some(false)
    });
    (ready == Some(true)).then_some(process)
}
