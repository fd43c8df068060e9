//! The exec sink, beside a bare loop that writes the same lines to as many processes, and reads their answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use aftercommit::envelope::plain;
use aftercommit::outbox::Task;
use aftercommit::sink::Settings as _;
use aftercommit::sink::exec;
use serde_json::json;

use super::{Load, Run, compare, runtime, through};
use crate::support::process::{scratch, write_program};

const WORKERS: usize = 2;
const COUNT: usize = 30_000;
const KEYS: usize = 1_000;
const WORKER: &str = "#!/usr/bin/env python3\nimport json, sys\nfor line in sys.stdin:\n    json.loads(line)\n    print(\"ok\", flush=True)\n";

/// A process, and its answers.
struct Bare {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Bare {
    fn exchange(&mut self, line: &[u8]) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        input.write_all(line).expect("a line");
    }

    fn answer(&mut self) {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "ok\n");
    }
}

/// Measures it, and prints a line of the table.
pub(super) fn measure() {
    let folder = scratch("yardstick");
    let worker = folder.path().join("worker");
    write_program(&worker, WORKER);
    let runtime = runtime();
    let load = Load::new(COUNT, KEYS);
    compare("exec, 2 processes", KEYS, &load, || {
        let ours = runtime.block_on(async {
            let settings = json!({"command": [worker], "workers": WORKERS});
            let config: exec::Config = serde_json::from_value(settings).expect("settings");
            let mut sink = config.open().expect("a sink");
            let run = Run::measure(&load, async |batch| {
                // As many as it wants at a time.
                for some in batch.chunks(sink.most()) {
                    through(&mut sink, some).await;
                }
            });
            let run = run.await;
            sink.close().await;
            run
        });
        let mut workers: Vec<Bare> = (0..WORKERS).map(|_| start(&worker)).collect();
        let bare = runtime.block_on(Run::measure(&load, async |batch| {
            side_by_side(&mut workers, batch)
        }));
        for mut worker in workers {
            drop(worker.child.stdin.take());
            worker.child.wait().expect("an end");
        }
        (ours, bare)
    });
}

fn start(worker: &std::path::Path) -> Bare {
    let mut child = Command::new(worker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a worker");
    let answers = BufReader::new(child.stdout.take().expect("a pipe"));
    Bare { child, answers }
}

/// A line to each, and then an answer of each.
fn side_by_side(workers: &mut [Bare], batch: &[Task]) {
    for tasks in batch.chunks(workers.len()) {
        for (task, worker) in tasks.iter().zip(workers.iter_mut()) {
            let mut line = Vec::new();
            plain::write(&mut line, task).expect("a line");
            line.push(b'\n');
            worker.exchange(&line);
        }
        for worker in workers.iter_mut().take(tasks.len()) {
            worker.answer();
        }
    }
}
