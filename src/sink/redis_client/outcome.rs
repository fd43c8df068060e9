//! What Redis's refusals mean for a batch: one table.

use super::connection::Trouble;
use super::resp::Refusal;
use super::url::Address;
use crate::sink::{Cause, Outage};

/// Whom a refusal is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::sink) enum Verdict {
    /// The broker as a whole: nothing can be delivered now.
    Outage(Cause),
    /// This list only, and the operator can mend it without a change to the row: its tasks are retried.
    ListRetry(Cause),
    /// This list only, and these tasks cannot go there: they are rejected.
    ListReject(Cause),
}

/// Judges the refusal of a push to `list`.
pub(in crate::sink) fn judge(refusal: &Refusal, list: &[u8]) -> Verdict {
    let outage = |words: &'static str| Verdict::Outage(Cause::new(words));
    match refusal.code.as_str() {
        "OOM" => outage(
            "Redis is out of memory and takes no more: raise its maxmemory, or let workers catch up",
        ),
        "READONLY" => outage(
            "this Redis is a replica: broker_url must name the primary (or a failover is under way)",
        ),
        "LOADING" => outage("Redis is loading its data after a start"),
        "BUSY" => outage("Redis is busy with a script: wait, or run SCRIPT KILL"),
        "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => {
            outage("Redis has lost its primary for the moment")
        }
        "MISCONF" => outage("Redis cannot save to its disk and refuses writes: see its log"),
        "NOREPLICAS" => {
            outage("Redis has fewer replicas than min-replicas-to-write, and refuses writes")
        }
        "NOAUTH" => outage("Redis asks for a password: put it into broker_url"),
        "WRONGPASS" => outage("Redis refuses user or password of broker_url"),
        "DENIED" => {
            outage("Redis is in protected mode: set a password, or bind it to a private address")
        }
        "MOVED" | "ASK" | "CROSSSLOT" => outage(
            "broker_url names a Redis Cluster, where neither Celery nor we can use lists: name a single Redis",
        ),
        "NOPERM" if refusal.text.contains(" key") => Verdict::ListReject(Cause::new(format!(
            "broker_url's user may not use the key {}: ACL SETUSER ... ~<queue>*",
            shown(list)
        ))),
        "NOPERM" => outage(
            "broker_url's user lacks rights: ACL SETUSER ... +multi +exec +lpush +smembers +select",
        ),
        "WRONGTYPE" => Verdict::ListRetry(Cause::new(format!(
            "the Redis key {} is not a list: another program uses it, delete or rename it",
            shown(list)
        ))),
        code => Verdict::Outage(Cause::new(format!(
            "Redis refuses: {}",
            worded(code, &refusal.text)
        ))),
    }
}

/// The outage that a broken or refused connection is.
pub(in crate::sink) fn outage(trouble: Trouble, address: &Address) -> Outage {
    let words = match trouble {
        Trouble::Unreachable(e) => format!("{address} cannot be reached: {e}"),
        Trouble::Lost(e) => format!("{address} has closed the connection: {e}"),
        Trouble::NotRedis => format!("what answers at {address} is no Redis"),
        Trouble::Refused(refusal) => match judge(&refusal, b"") {
            Verdict::Outage(cause) => format!("{address}: {cause}"),
            Verdict::ListRetry(_) | Verdict::ListReject(_) => {
                format!(
                    "{address} refuses the login: {}",
                    worded(&refusal.code, &refusal.text)
                )
            }
        },
    };
    Outage(Cause::new(words))
}

/// Why our marks are refused, in words.
pub(in crate::sink) fn refused(refusal: &Refusal) -> String {
    match refusal.code.as_str() {
        "NOPERM" => "broker_url's user lacks rights: ACL SETUSER ... ~aftercommit:* +watch +unwatch +eval +hset +hget +hmget \
             +hkeys +hdel +expire +type, and to read the queues' keys"
            .to_owned(),
        "WRONGTYPE" => "a key that begins with aftercommit:marks: is not ours: delete it".to_owned(),
        code => worded(code, &refusal.text),
    }
}

/// A refusal that we have no words for. Redis repeats the arguments of a command that it does not know: not for a log.
fn worded(code: &str, text: &str) -> String {
    let text = text.split(", with args").next().unwrap_or_default();
    let (code, text): (String, String) = (
        code.chars().take(32).collect(),
        text.chars().take(120).collect(),
    );
    format!("{code} {text}")
}

/// A list's key, with the bytes before its priority step made visible.
pub(in crate::sink) fn shown(list: &[u8]) -> String {
    list.escape_ascii().to_string().chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str) -> Refusal {
        let (code, text) = line.split_once(' ').unwrap_or((line, ""));
        Refusal {
            code: code.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_refusal_has_one_meaning() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script.",
            "MASTERDOWN Link with MASTER is down",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOREPLICAS Not enough good replicas to write.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "DENIED Redis is running in protected mode",
            "MOVED 3999 127.0.0.1:6381",
            "NOPERM User x has no permissions to run the 'lpush' command",
            "NOPERM this user has no permissions to run the 'lpush' command or its subcommand",
            "ERR max number of clients reached",
            "SOMETHING new",
        ] {
            assert!(
                matches!(judge(&refusal(line), b"celery"), Verdict::Outage(_)),
                "{line}"
            );
        }
        for line in [
            "NOPERM No permissions to access a key",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
        ] {
            assert!(
                matches!(judge(&refusal(line), b"celery"), Verdict::ListReject(_)),
                "{line}"
            );
        }
        let wrong = judge(
            &refusal("WRONGTYPE Operation against a key"),
            b"high\x06\x163",
        );
        let Verdict::ListRetry(cause) = wrong else {
            panic!("{wrong:?}");
        };
        assert!(cause.to_string().contains("high\\x06\\x163"), "{cause}");
    }

    #[test]
    fn a_refusal_does_not_repeat_a_payload() {
        let line = "ERR unknown command 'LPUSH', with args beginning with: 'celery' 's3cret'";
        let Verdict::Outage(cause) = judge(&refusal(line), b"celery") else {
            panic!("no outage");
        };
        assert_eq!(
            cause.to_string(),
            "Redis refuses: ERR unknown command 'LPUSH'"
        );
    }
}
