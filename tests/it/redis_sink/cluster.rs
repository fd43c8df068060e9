//! A cluster of three nodes: slots that move, nodes that die, keys that go to several slots.

use aftercommit::outbox::{Field, Task};
use aftercommit::sink::Outcome;
use serde_json::json;

use super::sentinel::hand_over;
use super::{Lane, entry, numbers, open, task};
use crate::support::redis::Options;
use crate::support::redis_ha::Cluster;

fn lane(cluster: &Cluster) -> Lane {
    Lane::new(open(json!({"url": cluster.url(), "stream": "e:{key}"})))
}

/// Streams on all three nodes.
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

pub(super) fn batch(numbers: impl IntoIterator<Item = u64>) -> Vec<Task> {
    let key = |n: u64| KEYS[(n % KEYS.len() as u64) as usize];
    numbers
        .into_iter()
        .map(|n| task(n, &[(Field::Key, key(n))]))
        .collect()
}

fn arrived(cluster: &Cluster, stream: &str) -> Vec<u64> {
    numbers(cluster.nodes[cluster.node_of(stream)].entry_ids(stream))
}

pub(super) fn all(cluster: &Cluster) -> Vec<u64> {
    let mut all: Vec<u64> = Vec::new();
    for key in KEYS {
        let these = arrived(cluster, &format!("e:{key}"));
        assert!(these.is_sorted(), "{key}: {these:?}");
        all.extend(these);
    }
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_go_to_the_nodes_that_have_them_and_none_twice() {
    let cluster = Cluster::start();
    let mut first = lane(&cluster);
    first.delivers(&batch(0..600)).await;
    let nodes: std::collections::HashSet<usize> = KEYS
        .iter()
        .map(|key| cluster.node_of(&format!("e:{key}")))
        .collect();
    assert_eq!(nodes.len(), 3);
    // kill -9: a successor gets all of it again, and more.
    let mut successor = lane(&cluster);
    successor.delivers(&batch(300..900)).await;
    // And the one that believes to be active.
    first.generation += 1;
    first.delivers(&batch(0..900)).await;
    assert_eq!(all(&cluster), (0..900).collect::<Vec<_>>());
    let seen = format!("{:?}", first.sink.probe().await);
    assert!(!seen.contains("Fault"), "{seen}");
    // By a URL for one server it says what to write.
    let url = cluster.nodes[0].url(0);
    let mut wrong = Lane::new(open(json!({"url": url, "stream": "e:{key}"})));
    let cause = wrong.hand(&batch(0..6)).await.expect_err("no cluster URL");
    assert!(cause.contains("redis+cluster://"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_keeps_its_order_over_slots() {
    let cluster = Cluster::start();
    cluster.nodes[cluster.node_of("taken")].run(&["SET", "taken", "by another"]);
    let mut lane = lane(&cluster);
    let to = |n: u64, queue: &str| task(n, &[(Field::Key, "k"), (Field::Queue, queue)]);
    let tasks = [
        to(0, "x"),
        to(1, "y"),
        to(2, "x"),
        to(3, "taken"),
        to(4, "y"),
        task(5, &[(Field::Key, "a")]),
    ];
    let outcomes = lane.hand(&tasks).await.expect("no outage");
    let delivered: Vec<bool> = outcomes.iter().map(|o| *o == Outcome::Delivered).collect();
    assert_eq!(
        delivered,
        [true, true, true, false, false, true],
        "{outcomes:?}"
    );
    assert_eq!(arrived(&cluster, "x"), [0, 2]);
    assert_eq!(arrived(&cluster, "y"), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_may_move_while_tasks_come() {
    let cluster = Cluster::start();
    move_a_slot(&cluster, &mut lane(&cluster)).await;
}

/// Hands 300 tasks over while a slot goes from one node to another.
pub(super) async fn move_a_slot(cluster: &Cluster, lane: &mut Lane) {
    lane.delivers(&batch(0..60)).await;
    let stream = "e:a";
    let from = cluster.node_of(stream);
    let to = (from + 1) % 3;
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    let slot = source
        .ask::<u32>(&["CLUSTER", "KEYSLOT", stream])
        .to_string();
    let ids: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| node.ask(&["CLUSTER", "MYID"]))
        .collect();
    target.run(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[from]]);
    source.run(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[to]]);
    lane.delivers(&batch(60..120)).await;
    // ASK: it is there already, and its slot is not.
    let keys: Vec<String> = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
    assert_eq!(keys.len(), 2, "{keys:?}");
    for (moved, key) in keys.iter().enumerate() {
        cluster.migrate(from, to, key);
        if moved == 0 {
            // Half of them: neither node can.
            lane.hand(&batch(120..180)).await.expect_err("TRYAGAIN");
        }
    }
    lane.delivers(&batch(120..240)).await;
    // MOVED.
    for node in [target, source] {
        node.run(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[to]]);
    }
    lane.delivers(&batch(240..300)).await;
    lane.generation += 1;
    lane.delivers(&batch(0..300)).await;
    assert_eq!(cluster.node_of(stream), to);
    assert_eq!(all(cluster), (0..300).collect::<Vec<_>>());
    let (id, _) = target.entries(stream).swap_remove(1);
    assert_eq!(id, entry(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_are_found_without_the_node_that_the_url_names() {
    let mut cluster = Cluster::start_with(Options {
        settings: &[("cluster-require-full-coverage", "no")],
        ..Options::default()
    });
    let mut lane = lane(&cluster);
    lane.delivers(&batch(0..60)).await;
    let is_elsewhere = |key: &str| cluster.node_of(&format!("e:{key}")) != 2;
    let (there, gone): (Vec<&str>, Vec<&str>) = KEYS.into_iter().partition(|key| is_elsewhere(key));
    cluster.nodes[2].kill9();
    let outage = lane.hand(&[task(60, &[(Field::Key, gone[0])])]).await;
    outage.expect_err("it is away");
    let more: Vec<Task> = (100..160)
        .zip(there.iter().cycle())
        .map(|(n, key)| task(n, &[(Field::Key, key)]))
        .collect();
    hand_over(&mut lane, &more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_loses_nothing_and_nothing_comes_twice() {
    let mut cluster = Cluster::start();
    let mut lane = lane(&cluster);
    kill_nodes(&mut cluster, &mut lane, 6).await;
}

/// So often.
pub(super) async fn kill_nodes(cluster: &mut Cluster, lane: &mut Lane, times: usize) {
    let mut next = 0;
    for round in 0..times {
        lane.delivers(&batch(next..next + 60)).await;
        next += 60;
        cluster.nodes[round % 3].kill9();
        // The others take their part; as a batch it has failed.
        let more = batch(next..next + 60);
        lane.hand(&more).await.expect_err("a node is away");
        cluster.nodes[round % 3].restart();
        cluster.wait_until_ok();
        if round % 2 == 0 {
            let mut back = lane.hand(&more).await;
            for _ in 0..100 {
                if back.is_ok() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                back = lane.hand(&more).await;
            }
            assert_eq!(back.expect("it is back"), vec![Outcome::Delivered; 60]);
        } else {
            // From the hold, one by one, the last ones first among those of different keys.
            for task in more.iter().rev().take(6) {
                lane.delivers(std::slice::from_ref(task)).await;
            }
            let rest = &more[..54];
            let keyed = rest.iter().chain(&more[54..]).cloned().collect::<Vec<_>>();
            lane.generation += 1;
            lane.delivers(&keyed).await;
        }
        next += 60;
    }
    let mut ids: Vec<u64> = KEYS
        .iter()
        .flat_map(|key| arrived(cluster, &format!("e:{key}")))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..next).collect::<Vec<_>>());
}
