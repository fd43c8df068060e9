//! Tasks that fail again and again, until somebody makes it good: their exchange has no queue, as before the first worker
//! has declared one.

use super::{Exam, LIST};

/// The exchange's bindings, as kombu keeps them.
const BINDINGS: &str = "_kombu.binding.late";
/// The options of a task that goes to the exchange.
pub(crate) const UNBOUND: &str = r#"{"exchange": "late", "routing_key": "rk"}"#;

impl Exam {
    /// From now on the inserted rows that meet this condition, on `new`, go to the exchange.
    pub(crate) fn divert(&self, condition: &str) {
        self.postgres.psql(&format!(
            "create function exam.divert() returns trigger language plpgsql as
               $$ begin new.options := '{UNBOUND}'; return new; end $$;
             create trigger divert before insert on aftercommit.outbox
               for each row when ({condition}) execute function exam.divert()"
        ));
    }

    /// The exchange has a queue: [`LIST`].
    pub(crate) fn bind(&self) {
        let binding = format!("rk\x06\x16\x06\x16{LIST}");
        self.redis.run(&["SADD", BINDINGS, &binding]);
    }

    /// It has none any more.
    pub(crate) fn unbind(&self) {
        self.redis.run(&["DEL", BINDINGS]);
    }

    /// Waits until SQL, with one value, answers so.
    pub(crate) async fn wait_for_answer(&self, sql: &str, answer: &str) {
        crate::support::wait::eventually(super::PATIENCE, &format!("{answer}: {sql}"), || async {
            (self.postgres.psql(sql) == answer).then_some(())
        })
        .await;
    }

    /// Names of the tasks in [`LIST`], the oldest first.
    pub(crate) async fn names(&self) -> Vec<String> {
        let messages = self.redis.lrange(LIST).await;
        let names = messages.iter().rev().map(|message| {
            let message: serde_json::Value = serde_json::from_slice(message).expect("JSON");
            let name = message["headers"]["task"].as_str();
            name.expect("a task").to_owned()
        });
        names.collect()
    }

    /// Waits until these names, and no others, are in [`LIST`], in this order.
    pub(crate) async fn wait_for_names(&self, names: &[&str]) {
        let what = format!("{names:?} in the list");
        crate::support::wait::eventually(super::PATIENCE, &what, || async {
            (self.names().await == names).then_some(())
        })
        .await;
    }
}
