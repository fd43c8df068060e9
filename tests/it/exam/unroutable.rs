//! Row 16: RabbitMQ confirms what it has no queue for, and drops it. Kafka and SQS refuse what has no topic or queue.

use std::collections::HashSet;

use super::outlet::over;
use super::sheet::Sheet;
use super::trial::{Trial, edited};
use super::{Outlet, by_profile};

over! {"16", "one message in ten is unroutable, pipelined", lost_mail;
    row_16_amqp: Amqp, Always;
    row_16_celery_rabbitmq: CeleryRabbitMq, Always;
    row_16_dramatiq_rabbitmq: DramatiqRabbitMq, Always;
    row_16_kafka: Kafka, InFull;
    row_16_sqs: Sqs, InFull;
    row_16_sqs_fifo: SqsFifo, InFull;
}

/// Which of them.
const LOST: &str = "hashtext(id::text) % 10 = 0";

async fn lost_mail(sheet: Sheet, outlet: Outlet) {
    let rows = outlet.gently(by_profile(2_000, 30_000));
    let mut trial = Trial::new(&sheet, outlet);
    trial.exam.postgres.psql(&format!(
        "create function exam.lose() returns trigger language plpgsql as
           $$ begin new.queue := 'nobody'; return new; end $$;
         create trigger lose before insert on aftercommit.outbox
           for each row when ({}) execute function exam.lose()",
        LOST.replace("id::", "new.id::")
    ));
    let config = edited(&trial.config(), "backoff =", "attempts = 1, backoff =");
    let life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(rows).await;
    load.stop().await;
    let receipt = trial.check(0).await;
    let ids = async |sql: String| -> HashSet<String> {
        let client = trial.exam.postgres.client().await;
        let rows = client.query(&sql, &[]).await.expect("ids");
        rows.iter().map(|row| row.get(0)).collect()
    };
    let lost = ids(format!("select id::text from exam.written where {LOST}")).await;
    let dead = ids("select id from aftercommit.hold where state = 'dead'".to_owned()).await;
    let all = ids("select id from aftercommit.hold".to_owned()).await;
    sheet.count("missed", lost.difference(&dead).count(), 0);
    sheet.count(
        "dead, and not unroutable",
        dead.difference(&lost).count(),
        0,
    );
    sheet.count("held, and not dead", all.len() - dead.len(), 0);
    sheet.at_least("unroutable", lost.len(), rows / 20);
    let both = receipt.delivered + dead.len() - receipt.committed;
    sheet.count("dead, and delivered", both, 0);
    trial.check_lag().await;
    let mut life = life;
    life.stop().await;
}
