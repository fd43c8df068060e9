//! A private redis-server: free port, a folder of its own, stopped when it goes out of scope.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) struct RedisServer {
    pub(crate) port: u16,
    folder: TempDir,
    options: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Keeps what it has acknowledged over a restart.
    pub(crate) fn start(options: &[&str]) -> RedisServer {
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
        let mut server = RedisServer {
            port: port.expect("a free port").port(),
            folder: tempfile::tempdir().expect("a folder"),
            options: options.iter().map(ToString::to_string).collect(),
            child: None,
        };
        server.resume();
        server
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Starts it again after [`RedisServer::kill`], with what it has kept.
    pub(crate) fn resume(&mut self) {
        let child = Command::new("redis-server")
            .current_dir(self.folder.path())
            .args(["--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--port", &self.port.to_string()])
            .args(&self.options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while redis::Client::open(("127.0.0.1", self.port))
            .and_then(|client| client.get_connection())
            .and_then(|mut connection| redis::cmd("PING").exec(&mut connection))
            .is_err_and(|e| !matches!(e.code(), Some("NOAUTH")))
        {
            assert!(Instant::now() < deadline, "redis-server does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(("127.0.0.1", self.port)).expect("an address");
        client.get_connection().expect("it runs")
    }

    /// All messages of a list, the oldest first.
    pub(crate) fn list(&self, key: &str) -> Vec<String> {
        let mut messages: Vec<String> = redis::cmd("LRANGE")
            .arg(key)
            .arg(0)
            .arg(-1)
            .query(&mut self.connect())
            .expect("a list");
        messages.reverse();
        messages
    }

    /// The ids of the messages of a list, the oldest first.
    pub(crate) fn ids(&self, key: &str) -> Vec<String> {
        let id = |message: String| {
            let message: serde_json::Value = serde_json::from_str(&message).expect("JSON");
            message["headers"]["id"].as_str().expect("an id").to_owned()
        };
        self.list(key).into_iter().map(id).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
