//! What Redis's refusals mean here, in the words of Celery's settings.

use crate::sink::Outage;
use crate::sink::redis_client::connection::Trouble;
use crate::sink::redis_client::outcome::{self, Verdict, Wording, worded};
use crate::sink::redis_client::resp::Refusal;
use crate::sink::redis_client::url::Address;

pub(super) const WORDING: Wording = Wording {
    url: "broker_url",
    kind: "list",
    rights: "+multi +exec +lpush +smembers +select",
    keys: "~<queue>*",
    cluster: ", where neither Celery nor we can use lists: name a single Redis",
};

/// Judges the refusal of a push to `list`.
pub(super) fn judge(refusal: &Refusal, list: &[u8]) -> Verdict {
    outcome::judge(refusal, list, &WORDING)
}

/// The outage that a broken or refused connection is.
pub(super) fn outage(trouble: Trouble, address: &Address) -> Outage {
    outcome::outage(trouble, address, &WORDING)
}

/// Why our marks are refused, in words.
pub(super) fn refused(refusal: &Refusal) -> String {
    match refusal.code.as_str() {
        "NOPERM" => "broker_url's user lacks rights: ACL SETUSER ... ~aftercommit:* +watch +unwatch +eval +hset +hget +hmget \
             +hkeys +hdel +expire +type, and to read the queues' keys"
            .to_owned(),
        "WRONGTYPE" => "a key that begins with aftercommit:marks: is not ours: delete it".to_owned(),
        code => worded(code, &refusal.text),
    }
}
