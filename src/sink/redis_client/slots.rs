//! The slots of a cluster: which one a key is in, which node has it, and keys of ours that are in a given one (Redis
//! documentation, "Redis cluster specification").

use std::collections::HashMap;
use std::net::IpAddr;

use super::resp::{Refusal, Reply};
use super::url::Place;

/// How many there are.
pub(in crate::sink) const SLOTS: u16 = 16384;

/// The slot of a key.
pub(in crate::sink) fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let behind = key.get(open + 1..)?;
        let close = memchr::memchr(b'}', behind)?;
        behind.get(..close).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let crc = crc ^ u16::from(*byte) << 8;
        (0..8).fold(crc, |crc: u16, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

/// For each slot, the smallest number that is in it when it is a key's tag. The same for ever: keys are named by it.
#[derive(Debug)]
pub(in crate::sink) struct Tags(Vec<u32>);

impl Tags {
    pub(in crate::sink) fn new() -> Tags {
        let mut tags = vec![u32::MAX; usize::from(SLOTS)];
        let mut missing = tags.len();
        for number in 0.. {
            let tag = tags.get_mut(usize::from(slot(number.to_string().as_bytes())));
            if let Some(tag) = tag.filter(|tag| **tag == u32::MAX) {
                *tag = number;
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        Tags(tags)
    }

    /// The number for a slot.
    pub(in crate::sink) fn of(&self, slot: u16) -> u32 {
        self.0.get(usize::from(slot)).copied().unwrap_or_default()
    }
}

/// Which node has which slots.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(in crate::sink) struct Map {
    /// First slot, last slot, primary.
    ranges: Vec<(u16, u16, Place)>,
    /// All nodes, replicas too.
    nodes: HashMap<Place, Node>,
}

/// A node of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    /// What the cluster calls it; no other node of any cluster has the same one.
    id: String,
    /// Its host name, where it is reached by its address: what its certificate is for.
    name: Option<String>,
}

impl Map {
    /// Reads what CLUSTER SLOTS answers; `asked` stands for a node that does not know its own address. `None` if it is no
    /// such answer.
    pub(in crate::sink) fn read(reply: &Reply, asked: &Place) -> Option<Map> {
        let Reply::Array(Some(ranges)) = reply else {
            return None;
        };
        let mut known = HashMap::new();
        let range = |range: &Reply| {
            let Reply::Array(Some(parts)) = range else {
                return None;
            };
            let [Reply::Integer(first), Reply::Integer(last), nodes @ ..] = parts.as_slice() else {
                return None;
            };
            let mut nodes = nodes.iter().map(|node| read_node(node, asked));
            let (primary, node) = nodes.next()??;
            // A replica may be where a node sends us later.
            known.extend(nodes.flatten());
            known.insert(primary.clone(), node);
            Some((
                u16::try_from(*first).ok()?,
                u16::try_from(*last).ok()?,
                primary,
            ))
        };
        let ranges = ranges.iter().map(range).collect::<Option<_>>()?;
        Some(Map {
            ranges,
            nodes: known,
        })
    }

    /// The name that a node's certificate is for, where it is reached by its address.
    pub(in crate::sink) fn name(&self, place: &Place) -> Option<&String> {
        self.nodes.get(place)?.name.as_ref()
    }

    /// The places of all nodes.
    pub(in crate::sink) fn nodes(&self) -> impl Iterator<Item = &Place> {
        self.nodes.keys()
    }

    /// Whether both are of one cluster: they have a node in common.
    pub(in crate::sink) fn is_akin(&self, other: &Map) -> bool {
        let has = |node: &Node| {
            let same = |theirs: &Node| theirs.id == node.id;
            !node.id.is_empty() && other.nodes.values().any(same)
        };
        self.nodes.values().any(has)
    }

    /// It is no longer true, and must be asked for again. The nodes are kept: who asks needs one, and whoever is sent to
    /// another needs its name.
    pub(in crate::sink) fn outdate(&mut self) {
        self.ranges.clear();
    }

    /// The node that has a slot.
    pub(in crate::sink) fn of(&self, slot: u16) -> Option<&Place> {
        let has = |range: &&(u16, u16, Place)| (range.0..=range.1).contains(&slot);
        self.ranges.iter().find(has).map(|(.., place)| place)
    }

    /// All nodes that have slots, each with one of them.
    pub(in crate::sink) fn places(&self) -> Vec<(Place, u16)> {
        let mut places: Vec<(Place, u16)> = Vec::new();
        for (slot, _, place) in &self.ranges {
            if !places.iter().any(|(known, _)| known == place) {
                places.push((place.clone(), *slot));
            }
        }
        places
    }

    /// Whether a node has slots.
    pub(in crate::sink) fn has(&self, place: &Place) -> bool {
        self.ranges.iter().any(|(.., known)| known == place)
    }

    /// Whether nothing is known.
    pub(in crate::sink) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Where a node says that a slot is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::sink) enum Redirect {
    /// For good: the map is out of date.
    Moved(Place),
    /// For this once: the slot is on its way.
    Ask(Place),
}

impl Redirect {
    /// Reads a refusal; `asked` is the node that it came from.
    pub(in crate::sink) fn read(refusal: &Refusal, asked: &Place) -> Option<Redirect> {
        let is_moved = match refusal.code.as_str() {
            "MOVED" => true,
            "ASK" => false,
            _ => return None,
        };
        let (_, address) = refusal.text.split_once(' ')?;
        let (host, port) = address.trim().rsplit_once(':')?;
        let place = found(host.to_owned(), port.parse().ok()?, asked)?;
        Some(match is_moved {
            true => Redirect::Moved(place),
            false => Redirect::Ask(place),
        })
    }
}

/// A node in the answer of CLUSTER SLOTS.
fn read_node(node: &Reply, asked: &Place) -> Option<(Place, Node)> {
    let Reply::Array(Some(node)) = node else {
        return None;
    };
    let [host, Reply::Integer(port), more @ ..] = node.as_slice() else {
        return None;
    };
    let port = u16::try_from(*port).ok()?;
    let text = |reply: &Reply| match reply {
        Reply::Bulk(Some(text)) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    // Since Redis 7.0 behind the node's id, in pairs: the ways to name it that were not preferred.
    let other = |kind: &str| match more.get(1) {
        Some(Reply::Array(Some(pairs))) => pairs.chunks(2).find_map(|pair| match pair {
            [key, value] if text(key).as_deref() == Some(kind) => text(value),
            _ => None,
        }),
        _ => None,
    };
    let host = text(host).unwrap_or_default();
    // It prefers host names, and this node has none.
    let host = match host.as_str() {
        "?" => other("ip").unwrap_or(host),
        _ => host,
    };
    let is_address = host.parse::<IpAddr>().is_ok();
    let name = other("hostname").filter(|name| is_address && !name.is_empty());
    let id = more.first().and_then(text).unwrap_or_default();
    Some((found(host, port, asked)?, Node { id, name }))
}

/// A node that gives no host is at the one that was asked.
fn found(host: String, port: u16, asked: &Place) -> Option<Place> {
    let host = match (host.as_str(), asked) {
        ("" | "?", Place::Tcp { host, .. }) => host.clone(),
        ("" | "?", Place::Unix(_)) => return None,
        _ => host,
    };
    Some(Place::Tcp { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::redis_client::resp::parse;

    fn place(host: &str, port: u16) -> Place {
        Place::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn a_key_is_in_its_slot() {
        // By CLUSTER KEYSLOT of Redis 7.0.
        for (key, expected) in [
            (&b"123456789"[..], 12739),
            (b"", 0),
            (b"foo", 12182),
            (b"{foo}bar", 12182),
            (b"a{foo}{bar}", 12182),
            (b"foo{}{bar}", 8363),
            (b"foo{{bar}}zap", 4015),
            (b"foo{bar", 15278),
        ] {
            assert_eq!(slot(key), expected, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn there_is_a_tag_for_each_slot() {
        let tags = Tags::new();
        for wanted in 0..SLOTS {
            let key = format!("aftercommit:{{{}}}:marks", tags.of(wanted));
            assert_eq!(slot(key.as_bytes()), wanted);
        }
        assert_eq!((tags.of(0), tags.of(12_182)), (3_560, 43_681));
    }

    #[test]
    fn reads_who_has_what() {
        let text = "*2\r\n*3\r\n:0\r\n:8191\r\n*4\r\n$1\r\na\r\n:7001\r\n$2\r\nid\r\n*0\r\n\
                    *4\r\n:8192\r\n:16383\r\n*2\r\n$0\r\n\r\n:7002\r\n*2\r\n$1\r\nc\r\n:7003\r\n";
        let (reply, _) = parse(text.as_bytes()).expect("a reply").expect("all of it");
        let map = Map::read(&reply, &place("seed", 1)).expect("a map");
        for (slot, expected) in [
            (0, Some(place("a", 7001))),
            (8191, Some(place("a", 7001))),
            (8192, Some(place("seed", 7002))),
            (16383, Some(place("seed", 7002))),
            (16384, None),
        ] {
            assert_eq!(map.of(slot), expected.as_ref(), "{slot}");
        }
        assert_eq!(map.places().len(), 2);
        assert_eq!(Map::read(&Reply::Integer(1), &place("seed", 1)), None);
    }

    #[test]
    fn a_node_that_is_reached_by_its_address_has_the_name_that_it_announces() {
        // Of Redis 7.0, whose nodes announce names or not, by each `cluster-preferred-endpoint-type`.
        let hostname = "*2\r\n$8\r\nhostname\r\n$7\r\nn.local\r\n";
        let ip = "*2\r\n$2\r\nip\r\n$8\r\n10.0.0.1\r\n";
        for (host, metadata, expected, name) in [
            ("$8\r\n10.0.0.1\r\n", "*0\r\n", "10.0.0.1", None),
            ("$8\r\n10.0.0.1\r\n", hostname, "10.0.0.1", Some("n.local")),
            ("$7\r\nn.local\r\n", ip, "n.local", None),
            ("$1\r\n?\r\n", ip, "10.0.0.1", None),
            ("$1\r\n?\r\n", "*0\r\n", "seed", None),
            ("$-1\r\n", hostname, "seed", None),
        ] {
            let text = format!(
                "*1\r\n*4\r\n:0\r\n:16383\r\n*4\r\n{host}:7001\r\n$2\r\nid\r\n{metadata}\
                 *4\r\n$8\r\n10.0.0.2\r\n:7002\r\n$2\r\nid\r\n{hostname}"
            );
            let (reply, _) = parse(text.as_bytes()).expect("a reply").expect("all of it");
            let mut map = Map::read(&reply, &place("seed", 1)).expect("a map");
            let at = place(expected, 7001);
            assert_eq!(map.of(9), Some(&at), "{text}");
            map.outdate();
            assert!(map.is_empty());
            let known = |place: &Place| map.name(place).map(String::as_str);
            assert_eq!(known(&at), name, "{text}");
            assert_eq!(known(&place("10.0.0.2", 7002)), Some("n.local"));
            assert_eq!(map.nodes().count(), 2);
        }
    }

    #[test]
    fn a_cluster_is_known_by_its_nodes() {
        let map = |ids: &[&str]| {
            let nodes: String = ids
                .iter()
                .zip(1..)
                .map(|(id, port)| format!("*3\r\n$1\r\nh\r\n:{port}\r\n${}\r\n{id}\r\n", id.len()))
                .collect();
            let text = format!("*1\r\n*{}\r\n:0\r\n:16383\r\n{nodes}", 2 + ids.len());
            let (reply, _) = parse(text.as_bytes()).expect("a reply").expect("all of it");
            Map::read(&reply, &place("seed", 1)).expect("a map")
        };
        for (ours, theirs, expected) in [
            (&["a", "b"][..], &["c", "b"][..], true),
            (&["a", "b"], &["c", "d"], false),
            (&["a", ""], &["c", ""], false),
        ] {
            let (ours, theirs) = (map(ours), map(theirs));
            assert_eq!(ours.is_akin(&theirs), expected, "{ours:?} {theirs:?}");
        }
        assert!(!map(&["a"]).is_akin(&Map::default()));
    }

    #[test]
    fn reads_redirections() {
        let asked = place("me", 1);
        for (code, text, expected) in [
            (
                "MOVED",
                "3999 127.0.0.1:6381",
                Some(Redirect::Moved(place("127.0.0.1", 6381))),
            ),
            ("ASK", "1 ::1:7", Some(Redirect::Ask(place("::1", 7)))),
            ("MOVED", "1 :7", Some(Redirect::Moved(place("me", 7)))),
            ("MOVED", "1 x:y", None),
            ("MOVED", "1", None),
            ("ERR", "1 a:7", None),
        ] {
            let refusal = Refusal {
                code: code.to_owned(),
                text: text.to_owned(),
            };
            assert_eq!(Redirect::read(&refusal, &asked), expected, "{code} {text}");
        }
    }
}
