#!/usr/bin/env python3
"""From an INSERT to the worker: the time until a reader of the slot has it, and until a client's BRPOP at Redis returns it.

    latency.py --bin FOLDER --daemon PROGRAM [--before PROGRAM] [--rounds N] [--seconds S] [--rate R]

The application is pgbench: one connection, R transactions a second. Its INSERT writes the time into the row's id, which is the
task's id; so each figure goes from the INSERT's execution, COMMIT included, to the receipt. One after the other, round after
round: the floor; the floor with Redis behind it; the daemon without its gate; the daemon. FOLDER holds `floor` and `observer`.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
INSERT = """insert into outbox (id, topic, key, payload)
values ((extract(epoch from clock_timestamp()) * 1000000)::bigint, 'celery', 'customer-1', '{"order_id": 42}');
"""
# The first ones of a round meet cold caches and connections that are being made.
WARM_UP = 50


def sql(query):
    return subprocess.run(["psql", "-XqAtc", query], check=True, capture_output=True, text=True).stdout.strip()


def times(file):
    """Pairs of microseconds: sent, received."""
    return [tuple(map(int, line.split())) for line in Path(file).read_text().splitlines()]


def wait_for(what, condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    sys.exit(f"{what} did not happen within 30 s")


def applications_times(folder):
    """What the application itself waits for INSERT and COMMIT: pgbench's time without its schedule's delay."""
    return [
        int(fields[2]) - int(fields[6])
        for log in folder.glob("log.*")
        for fields in map(str.split, log.read_text().splitlines())
    ]


def measure(way, args, count, folder):
    slot = f"latency_{os.getpid()}"
    sql(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    subprocess.run(["redis-cli", "-p", os.environ["REDIS_PORT"], "flushall"], check=True, capture_output=True)
    floor = [f"{args.bin}/floor", f"slot={slot}", "publication=bench", f"rows={count}", "lazy_us=0"]
    daemon = lambda file, program=args.daemon: [program, "run", "-c", str(HERE / file)]
    received = folder / "received"
    command = {
        "floor": floor + [f"latency={received}"],
        "floor, Redis": floor + ["mode=celery"],
        "aftercommit, no gate": daemon("without-gate.toml"),
        "before": daemon("aftercommit.toml", args.before),
        "aftercommit": daemon("aftercommit.toml"),
    }[way]
    log = open(Path(os.environ["BENCH_HOME"]) / "last-run.log", "w")
    environment = os.environ | {"SLOT": slot, "SINK": "celery"}
    reader = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    observer = None
    try:
        wait_for(
            f"{way}: streaming",
            lambda: sql(f"select active from pg_replication_slots where slot_name = '{slot}'") == "t",
        )
        time.sleep(1)
        if way != "floor":
            observe = ["list=celery", f"count={count}", "seconds=10", f"file={received}"]
            observer = subprocess.Popen([f"{args.bin}/observer", *observe])
        (folder / "insert.sql").write_text(INSERT)
        subprocess.run(
            ["pgbench", "-n", "-M", "prepared", "-c", "1", "-t", str(count), "-R", str(args.rate), "-l",
             "--log-prefix", str(folder / "log"), "-f", str(folder / "insert.sql")],
            check=True, capture_output=True,
        )  # fmt: skip
        (observer or reader).wait(timeout=30)
    finally:
        if reader.poll() is None:
            reader.send_signal(signal.SIGTERM)
        reader.wait(timeout=30)
        if observer and observer.poll() is None:
            observer.kill()
        sql(f"select pg_drop_replication_slot('{slot}')")
    found = times(received)
    if len(found) != count:
        sys.exit(f"{way}: {len(found)} of {count} were received; see last-run.log")
    application = applications_times(folder)
    for file in folder.iterdir():
        file.unlink()
    return [got - sent for sent, got in found[WARM_UP:]], application[WARM_UP:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--before", help="another program, measured in turn with it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--aim", type=float, default=0.3, help="ms above the floor, at p50")
    args = parser.parse_args()

    ways = ["floor", "floor, Redis", "aftercommit, no gate", *["before"] * bool(args.before), "aftercommit"]
    all_of = {way: [] for way in ["COMMIT returns", *ways]}
    medians = {way: [] for way in ways}
    for turn in range(args.rounds):
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                found, application = measure(way, args, args.seconds * args.rate + WARM_UP, Path(folder))
            all_of[way] += found
            all_of["COMMIT returns"] += application
            medians[way].append(statistics.median(found))
            print(f"# latency {turn + 1}/{args.rounds} {way}: p50 {medians[way][-1] / 1000:.2f} ms", file=sys.stderr)

    print(f"\n| ms at {args.rate} transactions a second, {args.rounds} × {args.seconds} s | p50 | p90 | p99 |")
    print("|---|---|---|---|")
    for way, found in all_of.items():
        found.sort()
        p50, p90, p99 = (found[int(len(found) * part)] / 1000 for part in (0.5, 0.9, 0.99))
        print(f"| {way} | {p50:.2f} | {p90:.2f} | {p99:.2f} |")
    above = statistics.median(ours - floor for ours, floor in zip(medians["aftercommit"], medians["floor"])) / 1000
    print(f"\naftercommit: p50 {above:.2f} ms above the floor ({'within' if above <= args.aim else 'OVER'} {args.aim})")


if __name__ == "__main__":
    main()
