//! What a NATS server and a stream say of themselves that concerns our messages: whether they take them, and keep them.

use std::time::Duration;

use super::publisher::Publisher;
use super::stream::{Look, Stream};
use crate::sink::{Outage, Sight};

/// The server's default. A repeat comes after a lost answer and a reconnection, or after a restart of the daemon.
const WINDOW: Duration = Duration::from_secs(120);

impl Publisher {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.ask().await {
            Ok(sights) => sights,
            Err(Outage { cause, .. }) => vec![Sight::Fault(
                cause.to_string(),
                "see to it that the server runs, and that url, login and TLS settings are right"
                    .to_owned(),
            )],
        }
    }

    async fn ask(&mut self) -> Result<Vec<Sight>, Outage> {
        let mut link = self.connect().await?;
        let info = &link.connection.info;
        let good = format!(
            "nats-server {} lets us in; messages of up to {} bytes",
            info.version, info.max_payload
        );
        let mut sights = vec![Sight::Good(good)];
        if self.stream.is_none() {
            let words = "jetstream is false: what nobody is subscribed to at that moment is lost";
            let remedy = "make a stream, and name it here, where tasks must not be lost";
            sights.push(Sight::Risk(words.to_owned(), remedy.to_owned()));
            return Ok(sights);
        }
        match self.look_at_stream(&mut link).await? {
            Look::There(stream) => {
                let version = &link.connection.info.version;
                sights.extend(drops_when_full(&stream, version));
                sights.extend(self_description(&stream, &self.subject.filter()));
            }
            Look::Absent(words) => sights.push(Sight::Fault(
                format!("the stream: {words}"),
                "nats stream add, with storage file and subjects that fit".to_owned(),
            )),
            Look::Unknown(words) => sights.push(Sight::Risk(
                format!("the stream does not tell its settings: {words}"),
                "allow publishing to $JS.API.STREAM.INFO.<stream>: it also makes long runs of one key faster".to_owned(),
            )),
        }
        self.link = Some(link);
        Ok(sights)
    }
}

/// Servers before 2.10.5 take a message for smaller than it is on disk, and when one too many is stored, they drop the oldest
/// to get below `max_bytes`, although they should refuse new ones (nats-server's issues 4771 and 4775).
fn drops_when_full(stream: &Stream, version: &str) -> Option<Sight> {
    let config = &stream.config;
    let mut numbers = version.split('.').map(|it| it.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let is_old = (next(), next(), next()) < (2, 10, 5);
    (is_old && config.max_bytes > 0 && config.discard == "new").then(|| {
        Sight::Risk(
            format!(
                "nats-server {version} drops the oldest messages of stream {} when it meets max_bytes {}, although discard is new",
                config.name, config.max_bytes
            ),
            "update nats-server to 2.10.5 or newer, or limit by max_msgs".to_owned(),
        )
    })
}

fn self_description(stream: &Stream, subjects: &str) -> Vec<Sight> {
    let config = &stream.config;
    let name = &config.name;
    let mut sights = Vec::new();
    let mut risk = |words: String, remedy: &str| sights.push(Sight::Risk(words, remedy.to_owned()));
    if config.storage == "memory" {
        risk(
            format!("stream {name} is in memory: a restart of the server loses it"),
            "make it again with storage file",
        );
    }
    if config.retention == "interest" && stream.state.consumer_count == 0 {
        risk(
            format!("stream {name} keeps what consumers want, and has none: everything is dropped"),
            "make the consumers first, or take retention workqueue or limits",
        );
    }
    let limits = limits(stream);
    if !limits.is_empty() && config.discard != "new" {
        risk(
            format!("stream {name} drops its oldest messages, read or not, beyond {limits}"),
            "set discard new: then the tasks wait here instead; or make sure that the limits are never met",
        );
    }
    if !limits.is_empty() && config.discard == "new" && config.retention != "limits" {
        risk(
            format!(
                "stream {name} has discard new, {limits}, and retention {}: servers are known that acknowledge and do not store then",
                config.retention
            ),
            "take retention limits, or no limits",
        );
    }
    if config.max_age > 0 {
        risk(
            format!(
                "stream {name} drops what is older than {:?} (max_age), read or not",
                Duration::from_nanos(config.max_age)
            ),
            "make sure that consumers are never so late",
        );
    }
    let window = Duration::from_nanos(config.duplicate_window);
    if window < WINDOW {
        risk(
            format!(
                "stream {name} knows repeats for {window:?} only (duplicate_window): later ones come twice"
            ),
            "set duplicate_window to 2m or more; to as long as the daemon may be away",
        );
    }
    let mut fault =
        |words: String, remedy: &str| sights.push(Sight::Fault(words, remedy.to_owned()));
    if config.no_ack {
        fault(
            format!("stream {name} acknowledges nothing (no_ack)"),
            "set no_ack to false",
        );
    }
    if config.sealed || config.mirror.is_some() {
        fault(
            format!("stream {name} takes no messages: it is sealed, or a mirror"),
            "name another stream",
        );
    }
    if !config
        .subjects
        .iter()
        .any(|filter| overlap(filter, subjects))
    {
        fault(
            format!("stream {name} takes none of our subjects, {subjects}"),
            "add them to the stream, or change subject",
        );
    }
    if sights.is_empty() {
        let kept = format!(
            "stream {name} keeps messages on disk, {} times, and knows repeats for {window:?}",
            config.num_replicas
        );
        sights.push(Sight::Good(kept));
    }
    sights
}

/// Its limits that messages can meet, in words.
fn limits(stream: &Stream) -> String {
    let config = &stream.config;
    let limit = |name, value: i64| (value > 0).then(|| format!("{name} {value}"));
    let all = [
        limit("max_msgs", config.max_msgs),
        limit("max_bytes", config.max_bytes),
        limit("max_msgs_per_subject", config.max_msgs_per_subject),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    all.join(", ")
}

/// Whether there is a subject that both filters match.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A good stream with other settings.
    fn stream(settings: &serde_json::Value) -> Stream {
        let mut config = json!({
            "name": "S", "subjects": ["tasks.>"], "retention": "limits", "discard": "old", "storage": "file",
            "num_replicas": 1, "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_age": 0,
            "max_msg_size": -1, "duplicate_window": 120_000_000_000u64,
        });
        for (name, value) in settings.as_object().unwrap() {
            config[name] = value.clone();
        }
        let stream = json!({"config": config, "state": {"consumer_count": 0}});
        serde_json::from_value(stream).unwrap()
    }

    /// The kinds of what is seen.
    fn kinds(settings: &serde_json::Value) -> String {
        let kind = |sight: &Sight| match sight {
            Sight::Good(_) => "good",
            Sight::Risk(..) => "risk",
            Sight::Fault(..) => "fault",
        };
        let sights = self_description(&stream(settings), "tasks.>");
        sights.iter().map(kind).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn settings_that_lose_messages_are_told() {
        for (settings, expected) in [
            (json!({}), "good"),
            (json!({"storage": "memory"}), "risk"),
            (json!({"retention": "interest"}), "risk"),
            (json!({"retention": "workqueue"}), "good"),
            (json!({"max_msgs": 1000}), "risk"),
            (json!({"max_msgs": 1000, "discard": "new"}), "good"),
            (
                json!({"max_bytes": 1, "discard": "new", "retention": "workqueue"}),
                "risk",
            ),
            (json!({"max_age": 1_000_000_000}), "risk"),
            (json!({"duplicate_window": 5_000_000_000u64}), "risk"),
            (json!({"no_ack": true}), "fault"),
            (json!({"sealed": true}), "fault"),
            (json!({"mirror": {"name": "T"}}), "fault"),
            (json!({"subjects": ["other.>"]}), "fault"),
            (json!({"subjects": ["*.shop"]}), "good"),
            (
                json!({"storage": "memory", "max_msgs": 1, "no_ack": true}),
                "risk risk fault",
            ),
        ] {
            assert_eq!(kinds(&settings), expected, "{settings}");
        }
    }

    #[test]
    fn old_servers_that_meet_a_limit_of_bytes() {
        for (version, max_bytes, discard, expected) in [
            ("2.9.10", 1, "new", true),
            ("2.10.4", 1, "new", true),
            ("2.10.5", 1, "new", false),
            ("2.10.5-RC.1", 1, "new", true),
            ("2.12.0", 1, "new", false),
            ("3.0.0", 1, "new", false),
            ("2.9.10", -1, "new", false),
            ("2.9.10", 1, "old", false),
        ] {
            let stream = stream(&json!({"max_bytes": max_bytes, "discard": discard}));
            let told = drops_when_full(&stream, version);
            assert_eq!(told.is_some(), expected, "{version} {max_bytes} {discard}");
        }
    }

    #[test]
    fn filters_that_have_subjects_in_common() {
        for (a, b, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a.b", "a.b.c", false),
            ("a.*.c", "a.b.>", true),
            ("b.>", "a.>", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }
}
