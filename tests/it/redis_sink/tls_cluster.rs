//! A cluster of three nodes over TLS, with passwords: slots that move, host names, and what keeps us out.

use std::collections::HashSet;

use aftercommit::sink::Outcome;
use serde_json::{Value, json};

use super::cluster::{all, batch, kill_nodes, move_a_slot};
use super::{Lane, open};
use crate::support::redis::Options;
use crate::support::redis_ha::Cluster;
use crate::support::tls::Certificates;

const PASSWORD: &str = "cluster-pw";
const LOGIN: &str = ":cluster-pw@";

fn cluster(certificates: &Certificates, settings: &[(&str, &str)]) -> Cluster {
    Cluster::start_with(Options {
        password: Some(PASSWORD),
        tls: Some(certificates),
        settings,
        ..Options::default()
    })
}

fn settings(url: &str) -> Value {
    json!({"url": url, "stream": "e:{key}"})
}

fn lane(url: &str) -> Lane {
    Lane::new(open(settings(url)))
}

fn trusting(certificates: &Certificates) -> String {
    format!("ssl_ca_certs={}", certificates.authority().display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_may_move_over_tls() {
    let certificates = Certificates::new();
    let cluster = cluster(&certificates, &[]);
    let url = cluster.tls_url(LOGIN, "127.0.0.1", &trusting(&certificates));
    move_a_slot(&cluster, &mut lane(&url)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_loses_nothing_over_tls() {
    let certificates = Certificates::new();
    let mut cluster = cluster(&certificates, &[]);
    let url = cluster.tls_url(LOGIN, "127.0.0.1", &trusting(&certificates));
    kill_nodes(&mut cluster, &mut lane(&url), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_no_more_rights_than_needed_reaches_all_nodes() {
    let certificates = Certificates::new();
    let cluster = cluster(&certificates, &[]);
    let user = "app on >app-pw ~e:* ~aftercommit:* +eval +type +hget +hset +hdel +hkeys +hmget +expire \
                +xadd +xrange +xinfo +xtrim +cluster|slots +asking +info";
    let setuser = |rules: &str| {
        let command = ["ACL", "SETUSER"].into_iter().chain(rules.split(' '));
        let command: Vec<&str> = command.collect();
        cluster.nodes.iter().for_each(|node| node.run(&command));
    };
    setuser(user);
    let url = cluster.tls_url("app:app-pw@", "127.0.0.1", &trusting(&certificates));
    let mut first = lane(&url);
    move_a_slot(&cluster, &mut first).await;
    // A successor gets all of it again, and more.
    lane(&url).delivers(&batch(0..600)).await;
    assert_eq!(all(&cluster), (0..600).collect::<Vec<_>>());
    let nodes: HashSet<usize> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .map(|key| cluster.node_of(&format!("e:{key}")))
        .collect();
    assert_eq!(nodes.len(), 3);
    // One right less.
    setuser("app -cluster|slots");
    let cause = lane(&url)
        .hand(&batch(600..606))
        .await
        .expect_err("no right");
    assert!(cause.contains("+cluster|slots"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_us_out_is_told_with_its_place_and_what_helps() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let cluster = cluster(&certificates, &[]);
    let trusted = trusting(&certificates);
    let good = cluster.tls_url(LOGIN, "127.0.0.1", &trusted);
    let place = format!("127.0.0.1:{}", cluster.nodes[2].tls_port());
    for (login, options, words) in [
        (":wrong-pw@", &trusted, "refuses user or password of url"),
        ("app:wrong-pw@", &trusted, "refuses user or password of url"),
        ("", &trusted, "put it into url"),
        (LOGIN, &trusting(&other), "issued it in ssl_ca_certs"),
    ] {
        let mut lane = lane(&cluster.tls_url(login, "127.0.0.1", options));
        let cause = lane.hand(&batch(0..6)).await.expect_err("no way in");
        assert!(cause.contains(words) && cause.contains(&place), "{cause}");
        assert!(!cause.contains("-pw"), "{cause}");
        let seen = format!("{:?}", lane.sink.probe().await);
        assert!(seen.contains("Fault") && seen.contains(words), "{seen}");
    }
    let mut lane = lane(&good);
    lane.delivers(&batch(0..60)).await;
    // It changes while we are there: what is refused comes when it is mended.
    let change = |password: &str, login: &str| {
        for node in &cluster.nodes {
            let url = node.url(0).replace(LOGIN, login);
            let mut link = redis::Client::open(url)
                .and_then(|client| client.get_connection())
                .expect("a connection");
            for command in [
                &["CONFIG", "SET", "requirepass", password][..],
                &["CLIENT", "KILL", "TYPE", "normal"],
            ] {
                redis::cmd(command[0])
                    .arg(&command[1..])
                    .exec(&mut link)
                    .expect("done");
            }
        }
    };
    change("other-pw", LOGIN);
    let mut refused = lane.hand(&batch(60..120)).await;
    for _ in 0..3 {
        let cause = refused.expect_err("another password");
        assert!(
            cause.contains("127.0.0.1:") && !cause.contains("-pw"),
            "{cause}"
        );
        refused = lane.hand(&batch(60..120)).await;
    }
    let cause = refused.expect_err("another password");
    assert!(cause.contains("refuses user or password of url"), "{cause}");
    change(PASSWORD, ":other-pw@");
    while lane.hand(&batch(60..120)).await != Ok(vec![Outcome::Delivered; 60]) {}
    assert_eq!(all(&cluster), (0..120).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_checked_by_the_names_that_they_announce() {
    let certificates = Certificates::by_name();
    let trusted = trusting(&certificates);
    for preferred in ["ip", "hostname", "unknown-endpoint"] {
        let announced = [
            ("cluster-announce-hostname", "localhost"),
            ("cluster-preferred-endpoint-type", preferred),
        ];
        let cluster = cluster(&certificates, &announced);
        let url = cluster.tls_url(LOGIN, "localhost", &trusted);
        move_a_slot(&cluster, &mut lane(&url)).await;
    }
    // They announce none, and name each other by addresses that the certificate is not for.
    let cluster = cluster(&certificates, &[]);
    let mut strict = lane(&cluster.tls_url(LOGIN, "localhost", &trusted));
    let cause = strict.hand(&batch(0..60)).await.expect_err("another name");
    for words in ["cluster-announce-hostname", "ssl_check_hostname=false"] {
        assert!(cause.contains(words), "{cause}");
    }
    let options = format!("{trusted}&ssl_check_hostname=false");
    move_a_slot(
        &cluster,
        &mut lane(&cluster.tls_url(LOGIN, "localhost", &options)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_the_truth_of_each_node() {
    let certificates = Certificates::new();
    let cluster = cluster(&certificates, &[]);
    let url = cluster.tls_url(LOGIN, "127.0.0.1", &trusting(&certificates));
    let mut sink = open(settings(&url));
    let seen = format!("{:?}", sink.probe().await);
    assert!(!seen.contains("Fault"), "{seen}");
    for node in &cluster.nodes {
        let good = format!("127.0.0.1:{}: Redis 7", node.tls_port());
        assert!(seen.contains(&good), "{seen}");
    }
    for (node, name, value, words) in [
        (0, "appendonly", "no", "appendonly is off"),
        (
            1,
            "maxmemory-policy",
            "allkeys-lru",
            "maxmemory-policy is allkeys-lru",
        ),
    ] {
        let node = &cluster.nodes[node];
        node.run(&["CONFIG", "SET", name, value]);
        let seen = format!("{:?}", sink.probe().await);
        let risk = format!("127.0.0.1:{}: {words}", node.tls_port());
        assert_eq!(seen.matches(words).count(), 1, "{seen}");
        assert!(seen.contains(&risk), "{seen}");
    }
}
