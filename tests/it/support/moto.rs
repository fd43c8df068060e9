//! moto: Amazon's services played by a server in Python. It keeps things in memory, and checks neither sizes nor characters.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::port::free_port;
use super::process::{Process, scratch};
use super::wait::{PATIENCE, within};

/// A private server, stopped when the tests are over.
pub(crate) struct Moto {
    process: Process,
    _directory: TempDir,
    port: u16,
    /// Where it shows what its queues have, if it does.
    second: u16,
}

impl Moto {
    /// The one that all tests share: each has queues of its own.
    pub(crate) fn shared() -> &'static Moto {
        static SERVER: LazyLock<Moto> = LazyLock::new(Moto::start);
        &SERVER
    }

    fn start() -> Moto {
        let port = free_port();
        let mut command = Command::new(environment().join("bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        Moto::run(command, port, port)
    }

    /// One for a test alone, that shows what its queues have.
    pub(crate) fn start_open() -> Moto {
        let (port, second) = (free_port(), free_port());
        let mut command = Command::new(environment().join("bin/python"));
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/moto/server.py"))
            .args([port.to_string(), second.to_string()]);
        Moto::run(command, port, second)
    }

    fn run(mut command: Command, port: u16, second: u16) -> Moto {
        let directory = scratch("moto");
        let log = directory.path().join("log");
        command.current_dir(directory.path()).stdout(Stdio::null());
        let mut process = Process::spawn("moto_server", &mut command, Signal::KILL, &log);
        let up = within(2 * PATIENCE, || {
            let is_there = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            let there = is_there(port) && is_there(second);
            (there || !process.running()).then_some(there)
        });
        assert_eq!(up, Some(true), "moto_server: {}", process.tail());
        Moto {
            process,
            _directory: directory,
            port,
            second,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT, after [`stop`](Moto::stop).
    pub(crate) fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// The bodies of a queue's messages, in their order, without so many of the first; of a server that shows them.
    pub(crate) fn bodies(&self, queue: &str, first: usize) -> io::Result<Vec<String>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.second))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /{queue}/{first} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok(serde_json::from_str(body)?)
    }

    /// Makes a queue of a name that no other test has, `.fifo` at its end if it is to be one.
    pub(crate) fn queue(&self, fifo: bool, attributes: Value) -> Queue<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut attributes = attributes;
        let ending = if fifo { ".fifo" } else { "" };
        if fifo {
            attributes["FifoQueue"] = "true".into();
        }
        let name = format!("tasks-{number}{ending}");
        let made = self.ask(
            "CreateQueue",
            &json!({"QueueName": name, "Attributes": attributes}),
        );
        let url = made["QueueUrl"].as_str().expect("a URL").to_owned();
        Queue {
            server: self,
            name,
            url,
        }
    }

    /// One of its queues.
    pub(crate) fn queue_of(&self, name: &str) -> Queue<'_> {
        Queue {
            server: self,
            name: name.to_owned(),
            url: format!("http://127.0.0.1:{}/123456789012/{name}", self.port),
        }
    }

    fn ask(&self, action: &str, request: &Value) -> Value {
        let answer = self.try_to_ask(action, request);
        answer.unwrap_or_else(|error| panic!("{action}: {error}"))
    }

    fn try_to_ask(&self, action: &str, request: &Value) -> io::Result<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = request.to_string();
        // HTTP/1.0: the answer comes in one piece.
        let request = format!(
            "POST / HTTP/1.0\r\nhost: 127.0.0.1:{}\r\nx-amz-target: AmazonSQS.{action}\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0\r\n\
             content-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.contains(" 200 "), "{action}: {head}\n{body}");
        Ok(serde_json::from_str(body).unwrap_or_default())
    }
}

/// A queue of a server.
pub(crate) struct Queue<'a> {
    server: &'a Moto,
    pub(crate) name: String,
    pub(crate) url: String,
}

impl Queue<'_> {
    /// Takes out all messages that may be had now, in their order.
    pub(crate) fn take(&self) -> Vec<Value> {
        let mut taken = Vec::new();
        loop {
            let request = json!({
                "QueueUrl": self.url,
                "MaxNumberOfMessages": 10,
                "AttributeNames": ["All"],
                "MessageAttributeNames": ["All"],
            });
            let answer = self.server.ask("ReceiveMessage", &request);
            let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
            if messages.is_empty() {
                return taken;
            }
            let entries: Vec<Value> = messages
                .iter()
                .enumerate()
                .map(|(n, message)| json!({"Id": n.to_string(), "ReceiptHandle": message["ReceiptHandle"]}))
                .collect();
            let request = json!({"QueueUrl": self.url, "Entries": entries});
            self.server.ask("DeleteMessageBatch", &request);
            taken.extend(messages);
        }
    }

    /// It is no more.
    pub(crate) fn delete(&self) {
        let request = json!({"QueueUrl": self.url});
        self.server.ask("DeleteQueue", &request);
    }

    /// It is there again.
    pub(crate) fn make(&self) {
        let request = json!({"QueueName": self.name});
        self.server.ask("CreateQueue", &request);
    }

    /// One of its attributes, as text.
    pub(crate) fn attribute(&self, name: &str) -> String {
        let request = json!({"QueueUrl": self.url, "AttributeNames": [name]});
        let answer = self.server.ask("GetQueueAttributes", &request);
        let value = answer["Attributes"][name].as_str();
        value.unwrap_or_default().to_owned()
    }
}

/// An attribute of a message.
pub(crate) fn attribute<'m>(message: &'m Value, name: &str) -> Option<&'m str> {
    message["MessageAttributes"][name]["StringValue"].as_str()
}

/// The task's id.
pub(crate) fn id(message: &Value) -> String {
    let id = attribute(message, "aftercommit-id");
    id.unwrap_or_else(|| panic!("no id: {message}")).to_owned()
}

/// The virtual environment; made by its script when it is missing or older than its requirements.
fn environment() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = super::postgres::programs::target().join("moto");
    let status = Command::new(here.join("scripts/python-env.sh"))
        .arg(&directory)
        .arg(here.join("tests/fixtures/moto/requirements.txt"))
        .stdin(Stdio::null())
        .status();
    let made = status.is_ok_and(|status| status.success());
    assert!(made, "scripts/python-env.sh failed");
    directory
}
