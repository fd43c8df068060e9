//! Rows with a number each, for sinks whose place is not the Redis of the exam.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{CANARY_PAYLOAD, Exam};

impl Exam {
    /// The configuration of a daemon with another sink, a table called `workers`.
    pub(crate) fn config_with(&self, sink: &str) -> String {
        let config = self.config();
        let (before, rest) = config.split_once("[sink.").expect("a sink");
        let (_, after) = rest.split_once("[[route]]").expect("a route");
        let quick = "\"20ms..100ms\", hold_after = \"50ms\", attempts = 10000";
        let after = after.replace("\"50ms..500ms\"", quick);
        format!("{before}{sink}\n[[route]]{after}")
    }

    /// Commits so many transactions of one row, over 50 keys, numbered from `first`.
    pub(crate) fn write_numbered(&self, rows: usize, first: usize) {
        self.postgres.psql(&format!(
            "do $$ begin for n in 1 .. {rows} loop
               insert into aftercommit.outbox (task, key, kwargs)
               values ('exam.single', n % 50, json_build_object('n', n + {first}, 'padding', '{CANARY_PAYLOAD}'));
               commit;
             end loop; end $$"
        ));
    }

    /// Of rows as JSON, in the order that they are in: all are there, and the first ones of each key in their order. How many
    /// came again.
    pub(crate) fn assert_numbered<'v>(
        &self,
        rows: impl Iterator<Item = &'v [u8]>,
        count: usize,
    ) -> usize {
        let mut seen = HashSet::new();
        let mut last: HashMap<String, u64> = HashMap::new();
        let mut repeats = 0;
        for row in rows {
            let row: Value = serde_json::from_slice(row).expect("JSON");
            let n = row["kwargs"]["n"].as_u64().expect("a number");
            if !seen.insert(n) {
                repeats += 1;
                continue;
            }
            let key = row["key"].as_str().expect("a key").to_owned();
            let before = last.insert(key, n);
            assert!(
                before.is_none_or(|before| before < n),
                "{before:?} before {n}"
            );
        }
        assert_eq!(seen.len(), count, "some are lost");
        repeats
    }
}
