//! Row 25: who lets us in, and whom we talk to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::Outcome;
use tempfile::TempDir;

use super::outlet::{client, over};
use super::sheet::Sheet;
use super::trial::{Life, Trial, edited};
use super::{Outlet, by_profile};
use crate::support::exam::{CANARY_PAYLOAD, CANARY_SECRET};
use crate::support::process::scratch;
use crate::support::tls::Certificates;
use crate::support::tls_front::{Eavesdropper, TlsFront};

/// From when the new secret stands in its file to the first new delivery.
const PICKED_UP: Duration = Duration::from_secs(30);

over! {"25", "credentials that are wrong, rotated, revoked", credentials;
    row_25_celery_redis: Redis, Always;
    row_25_celery_rabbitmq: CeleryRabbitMq, Always;
    row_25_amqp: Amqp, InFull;
    row_25_redis_stream: RedisStream, InFull;
    row_25_nats: JetStream, Always;
    row_25_webhook: Webhook, Always;
    row_25_sidekiq: Sidekiq, InFull;
    row_25_dramatiq_redis: DramatiqRedis, InFull;
    row_25_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_25_bullmq: BullMq, InFull;
}

#[cfg(feature = "kafka-tls")]
over! {"25", "credentials that are wrong, rotated, revoked", credentials;
    row_25_kafka: Kafka, InFull;
}

/// Where the secret stands.
struct Safe(TempDir);

impl Safe {
    fn path(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    /// Another one, at once.
    fn put(&self, secret: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, format!("{secret}\n")).expect("a file");
        fs::rename(new, self.path()).expect("its name");
    }
}

async fn credentials(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(1, 5);
    let safe = Safe(scratch("secret"));
    let mut trial = Trial::new(&sheet, outlet);
    let password = |number: usize| format!("{CANARY_SECRET}-{number}");
    trial.place.admit(&trial.exam, Some(&password(0)));
    safe.put(&trial.place.secret(&trial.exam, &password(1_000)));
    let config = trial.config_from(&safe.path());
    let life = trial.start(&config);
    let load = trial.load();
    // Wrong from the beginning.
    stays_out(&mut trial, &life).await;
    safe.put(&trial.place.secret(&trial.exam, &password(0)));
    picks_up(&mut trial).await;
    for round in 1..=rounds {
        // Rotated: the old one is good for nothing from now on.
        trial.place.admit(&trial.exam, Some(&password(round)));
        stays_out(&mut trial, &life).await;
        safe.put(&trial.place.secret(&trial.exam, &password(round)));
        picks_up(&mut trial).await;
        // Revoked, and given back.
        trial.place.admit(&trial.exam, None);
        stays_out(&mut trial, &life).await;
        trial.place.admit(&trial.exam, Some(&password(round)));
        picks_up(&mut trial).await;
    }
    load.stop().await;
    sheet.at_least("rotations", rounds, rounds);
    let duplicates = outlet.duplicates((1 + 2 * rounds) * outlet.in_hands());
    trial.conclude(life, duplicates).await;
}

/// It is not let in; what was under way comes to its end.
async fn stays_out(trial: &mut Trial, life: &Life) {
    trial.wait_for_silence().await;
    let before = trial.different().await;
    let down = life.peer_down();
    trial
        .look_on(by_profile(Duration::from_secs(2), Duration::from_secs(10)))
        .await;
    life.peer_up(&down);
    let come = trial.different().await - before;
    trial.sheet.count("delivered without the right", come, 0);
}

async fn picks_up(trial: &mut Trial) {
    let since = Instant::now();
    let before = trial.different().await;
    trial.wait_for(before + 1).await;
    trial.sheet.time("picked up", since.elapsed(), PICKED_UP);
}

over! {"25", "a wrong authority, an expired certificate, no TLS where it is demanded", tls;
    row_25_tls_celery_redis: Redis, Always;
    row_25_tls_celery_rabbitmq: CeleryRabbitMq, Always;
    row_25_tls_amqp: Amqp, Always;
    row_25_tls_redis_stream: RedisStream, Always;
    row_25_tls_nats: JetStream, Always;
    row_25_tls_webhook: Webhook, Always;
    row_25_tls_sidekiq: Sidekiq, InFull;
    row_25_tls_dramatiq_redis: DramatiqRedis, InFull;
    row_25_tls_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_25_tls_bullmq: BullMq, InFull;
}

#[cfg(feature = "kafka-tls")]
over! {"25", "a wrong authority, an expired certificate, no TLS where it is demanded", tls;
    row_25_tls_kafka: Kafka, InFull;
}

async fn tls(sheet: Sheet, outlet: Outlet) {
    let mut trial = Trial::new(&sheet, outlet);
    let (ours, others, expired) = (
        Certificates::new(),
        Certificates::new(),
        Certificates::expired(),
    );
    let broker = trial.broker_port();
    let front = TlsFront::start(broker, &ours);
    let expired_front = TlsFront::start(broker, &expired);
    // What NATS says first; the others wait for the client.
    let greeting: &[u8] = match outlet {
        Outlet::JetStream => {
            b"INFO {\"server_id\":\"x\",\"version\":\"2.9.0\",\"headers\":true,\"max_payload\":1048576,\"jetstream\":true}\r\n"
        }
        _ => b"",
    };
    let eavesdropper = Eavesdropper::start(greeting);
    let cases = [
        ("another authority", front.port(), others.authority()),
        ("expired", expired_front.port(), expired.authority()),
        ("a broker in plain", broker, ours.authority()),
        ("somebody in plain", eavesdropper.port(), ours.authority()),
    ];
    let mut let_through = 0;
    for (what, port, authority) in cases {
        let answer = send(&trial, port, &authority).await;
        if answer.is_ok_and(|outcomes| outcomes.contains(&Outcome::Delivered)) {
            let_through += 1;
            sheet.note(format!("delivered to: {what}"));
        }
    }
    sheet.count("delivered to whom it must not", let_through, 0);
    trial.wait_for_silence().await;
    let come = trial.different().await;
    sheet.count("arrived all the same", come, 0);
    let heard = String::from_utf8_lossy(&eavesdropper.heard()).into_owned();
    let leaks = [CANARY_SECRET, CANARY_PAYLOAD]
        .iter()
        .filter(|word| heard.contains(**word));
    sheet.count("told in plain", leaks.count(), 0);
    sheet.at_least("bytes heard", heard.len(), 1);

    let answer = send(&trial, front.port(), &ours.authority()).await;
    let right = matches!(answer.as_deref(), Ok([Outcome::Delivered]));
    if !right {
        sheet.note(format!("the right one is refused: {answer:?}"));
    }
    sheet.at_least("delivered to the right one", usize::from(right), 1);
    trial.wait_for(1).await;
}

/// One task, by a client of its own, over TLS.
async fn send(
    trial: &Trial,
    port: u16,
    authority: &Path,
) -> Result<Vec<Outcome>, aftercommit::sink::Outage> {
    let config = trial.config_by(&trial.exam.postgres_url(), Some(port));
    let mut client = client(&over_tls(trial.outlet, &config, authority));
    let id = uuid::Uuid::new_v4().to_string();
    let kwargs = format!("{{\"key\": \"k\", \"seq\": 1, \"padding\": \"{CANARY_PAYLOAD}\"}}");
    let fields = [
        (Field::Id, id.as_str()),
        (Field::Task, "exam.row"),
        (Field::Kwargs, kwargs.as_str()),
    ];
    let task = Task::from_fields(fields, Position::default(), Timestamp(0));
    client.deliver(&[task]).await
}

/// The configuration with TLS, and with this authority.
fn over_tls(outlet: Outlet, config: &str, authority: &Path) -> String {
    let authority = authority.display();
    // Who does not answer is given up soon.
    let config = config.replace("timeout = \"10s\"\n", "");
    let config = &edited(&config, ".workers]\n", ".workers]\ntimeout = \"2s\"\n");
    // Of a URL that ends its line.
    let with_query = |config: &str, scheme: &str| {
        let lines = config.lines().map(|line| match line.contains("url = \"") {
            true if line.contains(scheme) => {
                let line = line.replace(scheme, &scheme.replace("://", "s://"));
                format!(
                    "{}?ssl_ca_certs={authority}\"\n",
                    line.trim_end_matches('"')
                )
            }
            _ => format!("{line}\n"),
        });
        lines.collect::<String>()
    };
    match outlet {
        outlet if outlet.is_in_redis() => with_query(config, "redis://"),
        Outlet::CeleryRabbitMq | Outlet::Amqp | Outlet::DramatiqRabbitMq => {
            with_query(config, "amqp://")
        }
        Outlet::JetStream => edited(
            &edited(config, "nats://", "tls://"),
            "stream =",
            &format!("tls_first = true\ntls_ca_file = \"{authority}\"\nstream ="),
        ),
        Outlet::Webhook => edited(
            &edited(config, "http://", "https://"),
            "concurrency =",
            &format!("ca_file = \"{authority}\"\nconcurrency ="),
        ),
        Outlet::Kafka => edited(
            config,
            "topic =",
            &format!(
                "properties = {{ \"security.protocol\" = \"ssl\", \"ssl.ca.location\" = \"{authority}\" }}\ntopic ="
            ),
        ),
        _ => panic!("nothing to encrypt"),
    }
}
