//! `exec`, with one process and with several.

use std::fs;

use aftercommit::outbox::Field;
use aftercommit::sink::exec;
use aftercommit::sink::{Settings as _, Sink};
use tempfile::TempDir;

use super::{Fields, Subject};
use crate::support::process::{scratch, write_program};

conforms!(exec_one_by_one, super::Workers::start(1));
conforms!(exec_side_by_side, super::Workers::start(3));

/// `exec`, with so many workers, that write down the ids of their tasks.
struct Workers {
    folder: TempDir,
    workers: usize,
}

const WORKER: &str = r#"#!/usr/bin/env python3
import json, os, sys
folder = os.path.dirname(__file__)
for line in sys.stdin:
    if os.path.exists(folder + "/away"):
        sys.exit(7)
    task = json.loads(line)
    if task.get("queue") == "retry":
        print("retry", flush=True)
    else:
        with open(folder + "/done", "a") as done:
            done.write(task["id"] + "\n")
        print("ok", flush=True)
"#;

impl Workers {
    fn start(workers: usize) -> Workers {
        let workers = Workers {
            folder: scratch("workers"),
            workers,
        };
        write_program(&workers.folder.path().join("worker"), WORKER);
        workers
    }
}

impl Subject for Workers {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({
            "command": [self.folder.path().join("worker")],
            "workers": self.workers,
        });
        let config: exec::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        let done = fs::read_to_string(self.folder.path().join("done")).unwrap_or_default();
        done.lines().map(str::to_owned).collect()
    }

    fn keeps_all_in_order(&self) -> bool {
        self.workers == 1
    }

    fn set_away(&mut self, away: bool) {
        let path = |name: &str| self.folder.path().join(name);
        if away {
            fs::write(path("away"), "").unwrap();
            fs::rename(path("worker"), path("elsewhere")).unwrap();
        } else {
            fs::rename(path("elsewhere"), path("worker")).unwrap();
            fs::remove_file(path("away")).unwrap();
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Payload, "{no json")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "retry")])
    }
}
