//! The Redis of the exam: Celery's list, a stream, a list, and the queues of Sidekiq, Dramatiq and BullMQ.

use std::collections::HashMap;
use std::path::Path;

use super::{Found, Other, Place, queues};
use crate::support::exam::{Exam, LIST};

/// Who may be let in, or not.
const USER: &str = "exam";
/// What is read at a time.
const AT_ONCE: usize = 5_000;

/// How tasks stand in Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Celery,
    Stream,
    List,
    Sidekiq,
    Dramatiq,
    BullMq,
}

impl Kind {
    /// The sink's type, what it calls the URL, and where it writes to.
    fn settings(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Celery => ("celery", "broker_url", "queue"),
            Kind::Stream => ("redis", "url", "stream"),
            Kind::List => ("redis", "url", "list"),
            Kind::Sidekiq => ("sidekiq", "url", "queue"),
            Kind::Dramatiq => ("dramatiq", "url", "queue"),
            Kind::BullMq => ("bullmq", "url", "queue"),
        }
    }

    /// `[sink.<type>.workers]`, with a URL, or with a file of one.
    fn sink(self, from: &str, value: &str) -> String {
        let (kind, url, target) = self.settings();
        format!("[sink.{kind}.workers]\n{url}{from} = \"{value}\"\n{target} = \"{LIST}\"\n")
    }

    /// The list that the checker's rows are in.
    fn list(self) -> String {
        match self {
            Kind::Sidekiq => format!("queue:{LIST}"),
            Kind::Dramatiq => format!("dramatiq:{LIST}"),
            Kind::BullMq => format!("bull:{LIST}:wait"),
            Kind::Celery | Kind::Stream | Kind::List => LIST.to_owned(),
        }
    }

    /// Takes down a list's messages, or those whose ids it has.
    fn add(
        self,
        redis: &mut redis::Connection,
        list: &str,
        messages: &[Vec<u8>],
        found: &mut Found,
    ) {
        match self {
            Kind::Celery => messages.iter().for_each(|it| found.add_celery(it)),
            Kind::Stream | Kind::List => messages.iter().for_each(|it| found.add_object(it)),
            Kind::Sidekiq => messages
                .iter()
                .for_each(|it| queues::add_sidekiq(it, found)),
            Kind::Dramatiq => queues::add_dramatiq(redis, list, messages, found),
            Kind::BullMq => queues::add_bullmq(redis, list, messages, found),
        }
    }
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
    pub(super) fn new(kind: Kind) -> OnRedis {
        OnRedis {
            kind,
            read: 0,
            last: String::new(),
        }
    }

    /// Pushed to the left: what came after the messages that are known has the smallest indices. Dramatiq pushes to the right.
    fn read_list(&mut self, exam: &Exam, found: &mut Found) {
        let mut redis = exam.redis.blocking(0);
        let list = self.kind.list();
        loop {
            let length: usize = redis::cmd("LLEN")
                .arg(&list)
                .query(&mut redis)
                .expect("LLEN");
            if length <= self.read {
                return;
            }
            let most = AT_ONCE.min(length - self.read) as isize;
            let read = self.read as isize;
            let is_right = self.kind == Kind::Dramatiq;
            let (first, last) = match is_right {
                true => (read, read + most - 1),
                false => (-read - most, -read - 1),
            };
            let mut range = redis::cmd("LRANGE");
            range.arg(&list).arg(first).arg(last);
            let mut messages: Vec<Vec<u8>> = range.query(&mut redis).expect("LRANGE");
            if !is_right {
                messages.reverse();
            }
            self.kind.add(&mut redis, &list, &messages, found);
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
                found.add_object(fields["data"].as_bytes());
            }
        }
    }
}

impl Place for OnRedis {
    fn port(&self, exam: &Exam) -> u16 {
        exam.redis.port()
    }

    fn sink(&self, exam: &Exam, port: u16) -> String {
        self.kind.sink("", &exam.redis.url_through(port, 0))
    }

    fn read(&mut self, exam: &Exam, found: &mut Found) {
        match self.kind {
            Kind::Stream => self.read_stream(exam, found),
            _ => self.read_list(exam, found),
        }
    }

    /// All other keys but our own.
    fn elsewhere(&self, exam: &Exam) -> Vec<Other> {
        let mut redis = exam.redis.blocking(0);
        let list = self.kind.list();
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut redis).expect("KEYS");
        let ours = |key: &[u8]| key == list.as_bytes() || key.starts_with(b"aftercommit:");
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
                _ => queues::messages(&mut redis, key),
            };
            let key = String::from_utf8_lossy(key);
            self.kind.add(&mut redis, &key, &messages, &mut found);
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
        self.kind.sink("_file", &file.display().to_string())
    }
}
