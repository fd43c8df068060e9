//! What a Redis says of itself that concerns its keys: whether it takes them, and whether it keeps them.

use crate::sink::Sight;

/// A line of what INFO answers.
pub(in crate::sink) fn value<'i>(info: &'i str, key: &str) -> Option<&'i str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(known, _)| *known == key)
        .map(|(_, value)| value.trim())
}

/// What INFO's answer tells; empty, where it was refused.
pub(in crate::sink) fn settings(info: &str) -> Vec<Sight> {
    let value = |key: &str| value(info, key);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(info: &str) -> Vec<&'static str> {
        let kind = |sight: &Sight| match sight {
            Sight::Good(_) => "good",
            Sight::Risk(..) => "risk",
            Sight::Fault(..) => "fault",
        };
        settings(info).iter().map(kind).collect()
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
    }
}
