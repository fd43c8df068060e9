//! A Celery message as kombu's virtual transports keep it, on Redis: one JSON object in a list.

use std::io::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use uuid::Uuid;

use super::celery::{Message, Properties};
use super::json;

/// Appends the message. `tag` is the delivery tag, fresh for every push: consumers keep unacknowledged messages by it.
/// `body` is scratch space.
pub fn write(out: &mut Vec<u8>, message: &Message<'_>, tag: Uuid, body: &mut Vec<u8>) {
    body.clear();
    message.write_body(body);
    out.extend_from_slice(b"{\"body\":\"");
    write_base64(out, body);
    out.extend_from_slice(b"\",\"content-encoding\":");
    json::write_string(out, message.content_encoding());
    out.extend_from_slice(b",\"content-type\":");
    json::write_string(out, message.content_type());
    out.extend_from_slice(b",\"headers\":");
    message.write_headers(out);
    out.extend_from_slice(b",\"properties\":");
    write_properties(out, message, tag);
    out.push(b'}');
}

fn write_properties(out: &mut Vec<u8>, message: &Message<'_>, tag: Uuid) {
    let Properties {
        correlation_id,
        reply_to,
        delivery_mode,
        expiration,
        others,
    } = &message.properties;
    out.extend_from_slice(b"{\"correlation_id\":");
    match correlation_id {
        Some(given) => out.extend_from_slice(given),
        None => json::write_string(out, message.id()),
    }
    out.extend_from_slice(b",\"reply_to\":");
    out.extend_from_slice(reply_to.unwrap_or(b"\"\""));
    out.extend_from_slice(b",\"delivery_mode\":");
    out.extend_from_slice(delivery_mode.unwrap_or(b"2"));
    out.extend_from_slice(b",\"delivery_info\":{\"exchange\":");
    json::write_string(out, &message.exchange);
    out.extend_from_slice(b",\"routing_key\":");
    json::write_string(out, &message.routing_key);
    out.extend_from_slice(b"},\"priority\":");
    out.push(b'0' + message.priority);
    out.extend_from_slice(b",\"body_encoding\":\"base64\",\"delivery_tag\":\"");
    let mut hyphenated = Uuid::encode_buffer();
    out.extend_from_slice(tag.hyphenated().encode_lower(&mut hyphenated).as_bytes());
    out.push(b'"');
    if let Some(ms) = expiration {
        // Writing to a Vec cannot fail.
        let _ = write!(out, ",\"expiration\":\"{ms}\"");
    }
    for (name, value) in others {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name);
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value);
    }
    out.push(b'}');
}

/// With vector instructions, where the processor has them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static BASE64: LazyLock<base64::engine::Simd> =
    LazyLock::new(|| base64::engine::Simd::standard(base64::engine::general_purpose::PAD));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

/// Appends `bytes` in base64.
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let encoded = bytes.len().div_ceil(3) * 4;
    out.resize(start + encoded, 0);
    let written = out
        .get_mut(start..)
        .and_then(|space| BASE64.encode_slice(bytes, space).ok());
    debug_assert_eq!(written, Some(encoded), "the space was measured for it");
}

/// How kombu names the lists of a queue: one per priority step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lists {
    /// `global_keyprefix`
    pub prefix: String,
    /// `sep`
    pub separator: String,
    /// `priority_steps`: ascending, beginning with 0.
    pub steps: Vec<u8>,
}

impl Lists {
    /// Appends the key of the list for `queue` and `priority`: the plain queue for the lowest step.
    pub fn write_key(&self, out: &mut Vec<u8>, queue: &str, priority: u8) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(queue.as_bytes());
        let step = self.steps.iter().rev().find(|step| **step <= priority);
        if let Some(step @ 1..) = step {
            out.extend_from_slice(self.separator.as_bytes());
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{step}");
        }
    }

    /// The key of the set that holds the bindings of `exchange`.
    pub fn bindings_key(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.prefix)
    }

    /// The queue of one binding, as kombu stores it (routing key, pattern, queue), if `routing_key` takes it there.
    ///
    /// A binding with a pattern is a topic exchange's, one without a direct exchange's.
    pub fn bound_queue<'b>(&self, binding: &'b str, routing_key: &str) -> Option<&'b str> {
        let mut parts = binding.split(self.separator.as_str());
        let (bound, pattern, queue) = (parts.next()?, parts.next()?, parts.next()?);
        let taken = if pattern.is_empty() {
            bound == routing_key
        } else {
            topic_matches(bound, routing_key)
        };
        (taken && !queue.is_empty() && parts.next().is_none()).then_some(queue)
    }
}

/// kombu's rule for topic exchanges: `*` is one word, `#` is any text, between the dots.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    let (mut p, mut k) = (0, 0);
    // The last `#` that was met, and the word that it takes next if the rest does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(word) = key.get(k) {
        match pattern.get(p) {
            Some(&"#") => {
                retry = Some((p, k + 1));
                p += 1;
                k += 1;
            }
            Some(wanted) if wanted == word || (*wanted == "*" && !word.is_empty()) => {
                p += 1;
                k += 1;
            }
            _ => match retry {
                Some((hash, taken)) => {
                    retry = Some((hash, taken + 1));
                    p = hash + 1;
                    k = taken + 1;
                }
                None => return false,
            },
        }
    }
    p == pattern.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(separator: &str, steps: &[u8]) -> Lists {
        Lists {
            prefix: "p:".to_owned(),
            separator: separator.to_owned(),
            steps: steps.to_vec(),
        }
    }

    #[test]
    fn a_priority_goes_to_the_step_below_it() {
        for (separator, steps, priority, key) in [
            ("\x06\x16", &[0, 3, 6, 9][..], 0, "p:q"),
            ("\x06\x16", &[0, 3, 6, 9], 2, "p:q"),
            ("\x06\x16", &[0, 3, 6, 9], 3, "p:q\x06\x163"),
            ("\x06\x16", &[0, 3, 6, 9], 8, "p:q\x06\x166"),
            ("\x06\x16", &[0, 3, 6, 9], 9, "p:q\x06\x169"),
            (":", &[0], 9, "p:q"),
        ] {
            let mut out = Vec::new();
            lists(separator, steps).write_key(&mut out, "q", priority);
            assert_eq!(String::from_utf8(out).unwrap(), key);
        }
    }

    #[test]
    fn bindings_take_what_kombus_exchanges_take() {
        let lists = lists("\x06\x16", &[0]);
        let topic = |bound: &str| format!("{bound}\x06\x16^regex$\x06\x16q");
        for (bound, key, taken) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "a.", false),
            ("*", "a", true),
            ("*", "a.b", false),
            ("#", "", true),
            ("#", "a.b.c", true),
            ("a.#", "a.b.c", true),
            ("a.#", "a.", true),
            ("a.#", "a", false),
            ("#.z", "a.b.z", true),
            ("#.z", "z", false),
            ("a.#.z", "a.b.c.z", true),
            ("a.#.z", "a.z", false),
            ("#.b.#.d", "a.b.b.c.d", true),
            ("#.b.#.d", "a.c.c.d", false),
            ("*.#.*", "a.b", false),
            ("*.#.*", "a.b.c", true),
        ] {
            assert_eq!(
                lists.bound_queue(&topic(bound), key).is_some(),
                taken,
                "{bound} {key}"
            );
        }
        // Hostile patterns take time in proportion, not for ever.
        let (bound, key) = (["#"; 60].join(".") + ".x", ["a"; 2000].join("."));
        assert_eq!(lists.bound_queue(&topic(&bound), &key), None);
        assert_eq!(lists.bound_queue("rk\x06\x16\x06\x16q", "rk"), Some("q"));
        assert_eq!(lists.bound_queue("rk\x06\x16\x06\x16q", "rk2"), None);
        for odd in [
            "",
            "rk",
            "rk\x06\x16\x06\x16",
            "rk\x06\x16\x06\x16q\x06\x16more",
        ] {
            assert_eq!(lists.bound_queue(odd, "rk"), None, "{odd:?}");
        }
    }
}
