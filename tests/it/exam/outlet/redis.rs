//! The Redis of the exam: Celery's list, a stream, and a list.

use std::collections::HashMap;
use std::path::Path;

use super::{Found, Other, Place};
use crate::support::exam::{Exam, LIST};

/// Who may be let in, or not.
const USER: &str = "exam";
/// What is read at a time.
const AT_ONCE: usize = 5_000;

/// How tasks stand in Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Celery,
    Stream,
    List,
}

/// A key of the exam's Redis.
pub(super) struct OnRedis {
    kind: Kind,
    /// How many were read.
    read: usize,
    /// The last entry of the stream that was read.
    last: String,
}

impl OnRedis {
    pub(super) fn celery() -> OnRedis {
        OnRedis {
            kind: Kind::Celery,
            read: 0,
            last: String::new(),
        }
    }

    pub(super) fn stream() -> OnRedis {
        OnRedis {
            kind: Kind::Stream,
            ..OnRedis::celery()
        }
    }

    pub(super) fn list() -> OnRedis {
        OnRedis {
            kind: Kind::List,
            ..OnRedis::celery()
        }
    }

    fn add(&self, message: &[u8], found: &mut Found) {
        match self.kind {
            Kind::Celery => found.add_celery(message),
            Kind::Stream | Kind::List => found.add_object(message),
        }
    }

    /// Pushed to the left: what came after the messages that are known has the smallest indices.
    fn read_list(&mut self, exam: &Exam, found: &mut Found) {
        let mut redis = exam.redis.blocking(0);
        loop {
            let length: usize = redis::cmd("LLEN")
                .arg(LIST)
                .query(&mut redis)
                .expect("LLEN");
            if length <= self.read {
                return;
            }
            let most = AT_ONCE.min(length - self.read) as isize;
            let first = -(self.read as isize) - 1;
            let mut range = redis::cmd("LRANGE");
            range.arg(LIST).arg(first - most + 1).arg(first);
            let messages: Vec<Vec<u8>> = range.query(&mut redis).expect("LRANGE");
            for message in messages.iter().rev() {
                self.add(message, found);
            }
            self.read += messages.len();
        }
    }

    fn read_stream(&mut self, exam: &Exam, found: &mut Found) {
        let mut redis = exam.redis.blocking(0);
        loop {
            let start = match self.last.as_str() {
                "" => "-".to_owned(),
                last => format!("({last}"),
            };
            let mut range = redis::cmd("XRANGE");
            range
                .arg(LIST)
                .arg(start)
                .arg("+")
                .arg("COUNT")
                .arg(AT_ONCE);
            let entries: Vec<(String, HashMap<String, String>)> =
                range.query(&mut redis).expect("XRANGE");
            let Some((last, _)) = entries.last() else {
                return;
            };
            self.last = last.clone();
            for (_, fields) in &entries {
                self.add(fields["data"].as_bytes(), found);
            }
        }
    }
}

impl Place for OnRedis {
    fn port(&self, exam: &Exam) -> u16 {
        exam.redis.port()
    }

    fn sink(&self, exam: &Exam, port: u16) -> String {
        let url = exam.redis.url_through(port, 0);
        match self.kind {
            Kind::Celery => {
                format!("[sink.celery.workers]\nbroker_url = \"{url}\"\nqueue = \"{LIST}\"\n")
            }
            Kind::Stream => format!("[sink.redis.workers]\nurl = \"{url}\"\nstream = \"{LIST}\"\n"),
            Kind::List => format!("[sink.redis.workers]\nurl = \"{url}\"\nlist = \"{LIST}\"\n"),
        }
    }

    fn read(&mut self, exam: &Exam, found: &mut Found) {
        match self.kind {
            Kind::Stream => self.read_stream(exam, found),
            Kind::Celery | Kind::List => self.read_list(exam, found),
        }
    }

    /// All other keys but our own.
    fn elsewhere(&self, exam: &Exam) -> Vec<Other> {
        let mut redis = exam.redis.blocking(0);
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut redis).expect("KEYS");
        let ours = |key: &[u8]| key == LIST.as_bytes() || key.starts_with(b"aftercommit:");
        let mut found = Found::default();
        for key in keys.iter().filter(|key| !ours(key)) {
            let messages: Vec<Vec<u8>> = match self.kind {
                Kind::Stream => {
                    let entries = redis::cmd("XRANGE").arg(key).arg("-").arg("+").clone();
                    let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
                        entries.query(&mut redis).expect("streams and nothing else");
                    let data = |(_, mut fields): (String, HashMap<String, Vec<u8>>)| {
                        fields.remove("data").expect("data")
                    };
                    entries.into_iter().map(data).collect()
                }
                Kind::Celery | Kind::List => {
                    let range = redis::cmd("LRANGE").arg(key).arg(0).arg(-1).clone();
                    range.query(&mut redis).expect("lists and nothing else")
                }
            };
            for message in &messages {
                self.add(message, &mut found);
            }
        }
        found.others
    }

    fn rewind(&mut self) {
        self.read = 0;
        self.last.clear();
    }

    fn stop(&mut self, exam: &Exam) {
        exam.redis.stop();
    }

    fn cont(&mut self, exam: &Exam) {
        exam.redis.cont();
    }

    fn kill9(&mut self, exam: &mut Exam) {
        exam.redis.kill9();
    }

    fn restart(&mut self, exam: &mut Exam) {
        exam.redis.restart();
    }

    fn fill(&mut self, exam: &Exam) {
        let memory: String = exam.redis.ask(&["INFO", "memory"]);
        let used = memory
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        let set = |name, value| exam.redis.run(&["CONFIG", "SET", name, value]);
        set("maxmemory-policy", "noeviction");
        set("maxmemory", used.expect("what it uses"));
    }

    fn make_room(&mut self, exam: &Exam) {
        exam.redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    }

    fn admit(&mut self, exam: &Exam, password: Option<&str>) {
        let set = |rule: &str| exam.redis.run(&["ACL", "SETUSER", USER, rule]);
        set("reset");
        if let Some(password) = password {
            for rule in ["on", "~*", "&*", "+@all", &format!(">{password}")] {
                set(rule);
            }
        }
        exam.redis.run(&["CLIENT", "KILL", "USER", USER]);
    }

    fn secret(&self, exam: &Exam, password: &str) -> String {
        format!(
            "redis://{USER}:{password}@127.0.0.1:{}/0",
            exam.redis.port()
        )
    }

    fn sink_from(&self, file: &Path) -> String {
        let file = file.display();
        match self.kind {
            Kind::Celery => {
                format!("[sink.celery.workers]\nbroker_url_file = \"{file}\"\nqueue = \"{LIST}\"\n")
            }
            Kind::Stream => {
                format!("[sink.redis.workers]\nurl_file = \"{file}\"\nstream = \"{LIST}\"\n")
            }
            Kind::List => {
                format!("[sink.redis.workers]\nurl_file = \"{file}\"\nlist = \"{LIST}\"\n")
            }
        }
    }
}
