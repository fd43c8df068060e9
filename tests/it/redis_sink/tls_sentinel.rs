//! A primary with a replica and sentinels, all over TLS and with passwords: failover, and what keeps us out.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::sentinel::{SECRETS, hand_over};
use super::{Lane, numbers, open, tasks};
use crate::support::redis_ha::{Guarded, SERVICE};
use crate::support::tls::Certificates;

/// What the URL says.
#[derive(Clone)]
struct Way {
    /// With its `@`.
    login: String,
    ports: Vec<u16>,
    options: String,
}

impl Way {
    fn to(guarded: &Guarded, certificates: &Certificates) -> Way {
        Way {
            login: format!(":{}@", SECRETS.server),
            ports: guarded.sentinel_ports(true),
            options: format!(
                "ssl_ca_certs={}&sentinel_password={}",
                certificates.authority().display(),
                SECRETS.sentinel
            ),
        }
    }

    fn with(&self, from: &str, to: &str) -> Way {
        assert!(self.options.contains(from));
        Way {
            options: self.options.replace(from, to),
            ..self.clone()
        }
    }

    fn places(&self) -> Vec<String> {
        let ports = self.ports.iter();
        ports.map(|port| format!("127.0.0.1:{port}")).collect()
    }

    fn url(&self) -> String {
        let places = self.places().join(",");
        let Way { login, options, .. } = self;
        format!("rediss+sentinel://{login}{places}/{SERVICE}?{options}")
    }

    fn settings(&self) -> Value {
        // Longer than sentinels are waited for.
        json!({"url": self.url(), "stream": "events", "timeout": "5s"})
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_over_tls_loses_nothing_and_nothing_comes_twice() {
    let certificates = Certificates::new();
    let mut guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let mut settings = Way::to(&guarded, &certificates).settings();
    settings["replicas"] = json!(1);
    let mut lane = Lane::new(open(settings.clone()));
    for round in 0..20 {
        lane.delivers(&tasks(50 * round..50 * round + 50)).await;
    }
    let port = guarded.port(0);
    guarded.servers[0].kill9();
    let next = tasks(1000..1050);
    let cause = lane.hand(&next).await.expect_err("nobody is there");
    assert!(!cause.contains("-pw"), "{cause}");
    assert_eq!(guarded.wait_for_failover(port), 1);
    guarded.servers[0].restart();
    hand_over(&mut lane, &next).await;
    // A successor, to which all of it comes again.
    let mut lane = Lane::new(open(settings));
    hand_over(&mut lane, &tasks(0..1100)).await;
    let arrived = numbers(guarded.servers[1].entry_ids("events"));
    assert_eq!(arrived, (0..1100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_us_out_is_told_with_its_place_and_what_helps() {
    let certificates = Certificates::new();
    let (other, by_name) = (Certificates::new(), Certificates::by_name());
    let guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let good = Way::to(&guarded, &certificates);
    let authority = certificates.authority().display().to_string();
    let mut lane = Lane::new(open(good.settings()));
    lane.delivers(&tasks(0..10)).await;

    let sentinels = good.places();
    let primary = vec![format!("127.0.0.1:{}", guarded.port(0))];
    let plain = Way {
        ports: guarded.sentinel_ports(false),
        ..good.clone()
    };
    let login = |login: &str| Way {
        login: login.to_owned(),
        ..good.clone()
    };
    for (way, places, words) in [
        (
            good.with(SECRETS.sentinel, "wrong-pw"),
            &sentinels,
            "refuses sentinel_password",
        ),
        (
            good.with("&sentinel_password=sentinel-pw", ""),
            &sentinels,
            "give sentinel_password",
        ),
        (
            login(":wrong-pw@"),
            &primary,
            "refuses user or password of url",
        ),
        (login(""), &primary, "put it into url"),
        (
            good.with(&authority, &other.authority().display().to_string()),
            &sentinels,
            "issued it in ssl_ca_certs",
        ),
        // Sentinels with TLS, taken for plain ones, and the other way round.
        (
            good.with("&sentinel", "&sentinel_ssl=false&sentinel"),
            &sentinels,
            "closed the connection",
        ),
        (plain.clone(), &plain.places(), "is this its port of TLS?"),
    ] {
        let mut lane = Lane::new(open(way.settings()));
        let cause = lane.hand(&tasks(10..20)).await.expect_err("no way in");
        assert!(cause.contains(words), "{}: {cause}", way.options);
        let at = |place: &String| {
            cause.contains(&format!("{place}: ")) || cause.contains(&format!("{place} "))
        };
        assert!(places.iter().any(at), "{}: {cause}", way.options);
        assert!(!cause.contains("-pw"), "{cause}");
        let seen = format!("{:?}", lane.sink.probe().await);
        assert!(seen.contains("Fault") && seen.contains(words), "{seen}");
    }
    // Plain sentinels in front of a Redis with TLS.
    let mixed = plain.with("&sentinel", "&sentinel_ssl=false&sentinel");
    let mut lane = Lane::new(open(mixed.settings()));
    lane.delivers(&tasks(10..20)).await;
    drop(guarded);

    // Sentinels name their primary by its address, which this certificate is not for.
    let guarded = Guarded::start_with(Some(SECRETS), Some(&by_name));
    let strict = Way::to(&guarded, &by_name);
    let mut lane = Lane::new(open(strict.settings()));
    let cause = lane.hand(&tasks(0..10)).await.expect_err("another name");
    assert!(cause.contains("ssl_check_hostname=false"), "{cause}");
    let lax = strict.with("ssl_ca_certs", "ssl_check_hostname=false&ssl_ca_certs");
    let mut lane = Lane::new(open(lax.settings()));
    lane.delivers(&tasks(0..10)).await;
    assert_eq!(numbers(guarded.servers[0].entry_ids("events")).len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_the_truth_over_tls() {
    let certificates = Certificates::new();
    let guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let mut settings = Way::to(&guarded, &certificates).settings();
    settings["replicas"] = json!(1);
    let seen = format!("{:?}", open(settings.clone()).probe().await);
    assert!(seen.contains("takes tasks"), "{seen}");
    assert!(!seen.contains("Fault") && !seen.contains("Risk"), "{seen}");
    for (name, value, words) in [
        ("appendonly", "no", "appendonly is off"),
        ("maxmemory-policy", "allkeys-lru", "drops whole queues"),
    ] {
        guarded.servers[0].run(&["CONFIG", "SET", name, value]);
        let seen = format!("{:?}", open(settings.clone()).probe().await);
        assert!(seen.contains(words) && !seen.contains("Fault"), "{seen}");
    }
    // And so does the command.
    let way = Way::to(&guarded, &certificates);
    let (code, out) = check_online(&way);
    assert_eq!(code, Some(0), "{out}");
    for words in [
        "ok: sink events: Redis 7",
        "warning: sink events: appendonly is off",
        "warning: sink events: maxmemory-policy is allkeys-lru",
    ] {
        assert!(out.contains(words), "{out}");
    }
    let other = Certificates::new();
    let other = other.authority().display().to_string();
    let authority = certificates.authority().display().to_string();
    let (code, out) = check_online(&way.with(&authority, &other));
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains("error: sink events: ") && out.contains("issued it in ssl_ca_certs"),
        "{out}"
    );
    assert!(!out.contains("-pw"), "{out}");
}

/// `check --online`: its exit code, and what it prints.
fn check_online(way: &Way) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[postgres]\nurl = \"postgres://app@db/app\"\n[sink.redis.events]\nurl = \"{}\"\nstream = \"events\"\n\
         replicas = 1\n[[route]]\ntask = \"*\"\nsink = \"events\"\n",
        way.url()
    );
    std::fs::write(folder.path().join("app.toml"), config).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_aftercommit"))
        .args(["check", "--online", "-c", "app.toml"])
        .current_dir(folder.path())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
