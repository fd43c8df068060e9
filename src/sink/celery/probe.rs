//! What a Redis says of itself that concerns its lists: whether it takes them, and whether it keeps them.

use std::io::IoSlice;

use super::redis::Redis;
use super::refusals::outage;
use crate::sink::redis_client::connection::Trouble;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::{Outage, Sight};

impl Redis {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.ask_about().await {
            Ok((info, kind)) => {
                let mut sights = self_description(&info);
                sights.extend(list(self.queue(), &kind));
                sights
            }
            Err(Outage(cause)) => vec![Sight::Fault(
                cause.to_string(),
                "see to it that Redis runs and that broker_url is the Celery application's"
                    .to_owned(),
            )],
        }
    }

    /// What INFO answers, and what is under the queue's key.
    async fn ask_about(&mut self) -> Result<(String, String), Outage> {
        let mut link = self.connect().await?;
        let mut request = Vec::new();
        resp::write_command(&mut request, &[b"INFO"]);
        resp::write_command(&mut request, &[b"TYPE", &self.queue_key()]);
        let asked = link.connection.ask(&[IoSlice::new(&request)], 2).await;
        let mut replies = asked.map_err(|trouble| outage(trouble, self.address()))?;
        let kind = match replies.pop() {
            Some(Reply::Simple(kind)) => kind,
            _ => String::new(),
        };
        let info = match replies.pop() {
            Some(Reply::Bulk(Some(info))) => String::from_utf8_lossy(&info).into_owned(),
            Some(Reply::Error(_)) => String::new(),
            _ => return Err(outage(Trouble::NotRedis, self.address())),
        };
        Ok((info, kind))
    }
}

fn self_description(info: &str) -> Vec<Sight> {
    let value = |key: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value.trim())
    };
    let Some(version) = value("redis_version") else {
        let words = "Redis does not tell its settings: its user may not use INFO";
        let remedy = "ACL SETUSER ... +info, or look at appendonly and maxmemory-policy yourself";
        return vec![Sight::Risk(words.to_owned(), remedy.to_owned())];
    };
    let mut sights = vec![Sight::Good(format!("Redis {version} takes tasks"))];
    if value("role").is_some_and(|role| role != "master") {
        let words = "this Redis is a replica, and takes no tasks";
        sights.push(Sight::Fault(
            words.to_owned(),
            "name the primary".to_owned(),
        ));
    }
    if value("aof_enabled") == Some("0") {
        let words = "appendonly is off: a crash of Redis loses what was pushed since its last save";
        let remedy =
            "CONFIG SET appendonly yes, and appendfsync always where not even a second may be lost";
        sights.push(Sight::Risk(words.to_owned(), remedy.to_owned()));
    }
    if let Some(policy) = value("maxmemory_policy").filter(|policy| policy.starts_with("allkeys")) {
        let words = format!(
            "maxmemory-policy is {policy}: Redis drops whole queues when its memory is full"
        );
        sights.push(Sight::Risk(
            words,
            "CONFIG SET maxmemory-policy noeviction".to_owned(),
        ));
    }
    sights
}

fn list(queue: &str, kind: &str) -> Option<Sight> {
    match kind {
        "list" | "none" | "" => None,
        other => Some(Sight::Fault(
            format!("the key {queue:?} is a {other} and no list"),
            "another program uses it: delete or rename it, or take another queue".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(info: &str) -> Vec<&'static str> {
        let kind = |sight: &Sight| match sight {
            Sight::Good(_) => "good",
            Sight::Risk(..) => "risk",
            Sight::Fault(..) => "fault",
        };
        self_description(info).iter().map(kind).collect()
    }

    #[test]
    fn settings_that_lose_messages_are_told() {
        for (info, expected) in [
            ("", &["risk"][..]),
            (
                "redis_version:7.0.15\r\nrole:master\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\n",
                &["good"],
            ),
            (
                "redis_version:7\r\nrole:slave\r\naof_enabled:1\r\n",
                &["good", "fault"],
            ),
            ("redis_version:7\r\naof_enabled:0\r\n", &["good", "risk"]),
            (
                "redis_version:7\r\nmaxmemory_policy:allkeys-lru\r\n",
                &["good", "risk"],
            ),
            (
                "redis_version:7\r\nmaxmemory_policy:volatile-lru\r\n",
                &["good"],
            ),
        ] {
            assert_eq!(words(info), expected, "{info}");
        }
        assert_eq!(list("q", "none"), None);
        assert!(matches!(list("q", "set"), Some(Sight::Fault(..))));
    }
}
