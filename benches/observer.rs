//! Takes Celery messages from Redis as a worker does (BRPOP), and writes down when each came.
//!
//!     rustc -O --edition 2024 observer.rs && ./observer list=celery count=N seconds=S file=FILE
//!
//! The task's id is the time at which the application sent it, in microseconds: a line is `id` and time of receipt. Ends after N
//! messages, or after S seconds in which none came.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let argument = |name: &str| {
        std::env::args()
            .find_map(|argument| {
                argument
                    .strip_prefix(name)?
                    .strip_prefix('=')
                    .map(str::to_owned)
            })
            .unwrap_or_else(|| panic!("{name}="))
    };
    let (list, seconds) = (argument("list"), argument("seconds"));
    let count: usize = argument("count").parse().unwrap();
    let port = std::env::var("REDIS_PORT").unwrap_or_else(|_| "6379".to_owned());
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    socket.set_nodelay(true).unwrap();
    let ask = format!(
        "*3\r\n$5\r\nBRPOP\r\n${}\r\n{list}\r\n${}\r\n{seconds}\r\n",
        list.len(),
        seconds.len()
    );
    let mut lines = String::new();
    for _ in 0..count {
        socket.write_all(ask.as_bytes()).unwrap();
        let Some(message) = read_reply(&mut socket) else {
            break;
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_micros();
        let id = id(&message).expect("a task's id");
        lines += &format!("{id} {now}\n");
    }
    std::fs::write(argument("file"), lines).unwrap();
}

/// The header `id`, with or without a space behind the colon.
fn id(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("\"id\":")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

/// An answer is an array of list and message, or nothing (`*-1`) when none came in time.
fn read_reply(socket: &mut TcpStream) -> Option<String> {
    let (mut reply, mut buffer) = (Vec::new(), vec![0; 65536]);
    loop {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "Redis has closed the connection");
        reply.extend_from_slice(&buffer[..read]);
        if reply.starts_with(b"*-1\r\n") {
            return None;
        }
        let text = String::from_utf8_lossy(&reply);
        assert!(!text.starts_with('-'), "{text}");
        // *2 $n list $n message
        let lines: Vec<&str> = text.split("\r\n").collect();
        if let [_, _, _, length, message, _] = lines[..]
            && length[1..] == message.len().to_string()
        {
            return Some(message.to_owned());
        }
    }
}
