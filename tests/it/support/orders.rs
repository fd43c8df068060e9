//! A shop whose orders have tasks, and workers who look for the order the moment they get its task.
//!
//! The probe is as fast as a worker can be: it reads the daemon's standard output, and asks on another connection for the
//! row at once.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

use super::postgres::Postgres;
use super::tasks::Tasks;

/// An order and its task, in one transaction.
pub(crate) fn order(number: usize) -> String {
    format!(
        "begin; insert into orders values ({number});
         insert into aftercommit.outbox (task, key, kwargs)
         values ('shop.tasks.send_receipt', '{number}', '{{\"order\": {number}}}');
         commit"
    )
}

/// Places so many orders, on 24 connections at a time.
pub(crate) async fn place_orders(server: &Postgres, first: usize, count: usize) -> JoinSet<()> {
    const CONNECTIONS: usize = 24;
    let mut customers = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = server.client().await;
        customers.spawn(async move {
            for number in (connection..count).step_by(CONNECTIONS) {
                let order = order(first + number);
                client.batch_execute(&order).await.expect("an order");
            }
        });
    }
    customers
}

/// Workers' connections, ready to look for an order.
pub(crate) struct Probe(Vec<(Arc<Client>, Statement)>);

impl Probe {
    /// Eight connections.
    pub(crate) async fn at(server: &Postgres) -> Probe {
        let mut clients = Vec::new();
        for _ in 0..8 {
            let client = server.client().await;
            let sql = "select from orders where id = $1";
            let statement = client.prepare(sql).await.expect("a statement");
            clients.push((Arc::new(client), statement));
        }
        Probe(clients)
    }

    /// Takes so many tasks, looks for each one's row the moment it comes, and counts the rows that are not there.
    pub(crate) async fn not_found(&self, tasks: &mut Tasks, count: usize) -> usize {
        let mut looks = JoinSet::new();
        for (client, statement) in self.0.iter().cycle().take(count) {
            let task = tasks.next().await;
            let order = task["kwargs"]["order"].as_i64().expect("a number");
            let (client, statement) = (client.clone(), statement.clone());
            looks.spawn(async move {
                let order = i32::try_from(order).expect("a number");
                let row = client.query_opt(&statement, &[&order]).await;
                usize::from(row.expect("an answer").is_none())
            });
        }
        looks.join_all().await.into_iter().sum()
    }
}
