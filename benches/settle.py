#!/usr/bin/env python3
"""What happens to settled rows, and to tasks whose sink is away: what it costs, and how fast it is, on an outbox of our own.

    settle.py retention|hold --daemon PROGRAM --rows N [--rounds R] [--modes keep,delete,partition]

retention: the same rows go to Redis, once for each retention, in turns. hold: they go to Redis (direct), then to the hold table,
since no Redis is there (spilling), and from there to Redis when it is (draining); with keys and without.

PGHOST, PGPORT, PGUSER, PGDATABASE, REDIS_PORT and BENCH_HOME (the folder of the servers) come from the environment.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from ratio import cpu_of, peak_of, sql

HERE = Path(__file__).parent
TIMEOUT = 300


class Tasks:
    """How many tasks are in the list of a Redis."""

    def __init__(self, port):
        self.port, self.socket = port, None

    def count(self):
        try:
            if not self.socket:
                self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            self.socket.sendall(b"LLEN celery\r\n")
            return int(self.socket.recv(64)[1:])
        except OSError:
            self.socket = None
            return 0


class Server(threading.Thread):
    """The CPU time of the processes that serve the daemon; what one had used last is what counts."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stop, self.roles, self.used = threading.Event(), {}, {}

    def run(self):
        turn = 0
        while not self.stop.wait(0.02):
            if turn % 10 == 0:
                found = sql("select pid, backend_type, application_name from pg_stat_activity where backend_type in ('walsender', 'client backend')")
                for pid, kind, name in (line.split("|") for line in found.splitlines()):
                    role = kind if kind == "walsender" else name
                    self.roles[pid] = role
            turn += 1
            for pid in self.roles:
                try:
                    self.used[pid] = cpu_of(pid)
                except OSError:
                    pass  # it has gone

    def of(self, role):
        return sum(used for pid, used in self.used.items() if self.roles[pid] == role)


class Daemon:
    """A run of the daemon over the rows of the outbox, from a slot of its own."""

    def __init__(self, args, retention, keyed):
        self.retention, self.table = retention, "parted" if retention == "partition" else "outbox"
        sql("call make_partition()")
        sql("truncate aftercommit.outbox, aftercommit.parted, aftercommit.hold")
        sql("checkpoint")
        self.slot = f"settle_{os.getpid()}_{time.monotonic_ns() // 1000}"
        sql(f"select pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")
        self.args, self.wal = args, [wal()]
        # As the application would have it: the bench does not wait for its commits.
        subprocess.run(
            ["psql", "-Xqc", f"call load_own('aftercommit.{self.table}', {args.rows}, {keyed})"],
            check=True, env=os.environ | {"PGOPTIONS": "-c synchronous_commit=off"},
        )  # fmt: skip
        self.end = sql("select pg_current_wal_insert_lsn()")
        # A keepalive or a row behind it tells the daemon that it is there.
        sql("select pg_switch_wal()")
        self.wal.append(wal())

    def start(self, port, until):
        command = [self.args.daemon, "run", "-c", str(HERE / "own.toml"), *(["--until", self.end] if until else [])]
        environment = os.environ | {"SLOT": self.slot, "RETENTION": self.retention, "TABLE": self.table, "REDIS_PORT": str(port)}
        log = open(Path(os.environ["BENCH_HOME"]) / "last-run.log", "w")
        self.server = Server()
        self.server.start()
        self.began, self.memory = time.monotonic(), 0
        self.usage, self.ends = None, until
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def ended(self, how=os.WNOHANG):
        if not self.usage:
            pid, status, usage = os.wait4(self.process.pid, how)
            if pid:
                self.usage, self.process.returncode = usage, os.waitstatus_to_exitcode(status)
        return self.usage

    def wait(self, what, condition, pause=0.005):
        """Seconds from the start until the condition is met."""
        while not condition():
            self.memory = max(self.memory, peak_of(self.process.pid))
            if self.ended() or time.monotonic() - self.began > TIMEOUT:
                sys.exit(f"{what} did not happen; see last-run.log")
            time.sleep(pause)
        return time.monotonic() - self.began

    def confirmed(self):
        query = f"select confirmed_flush_lsn >= '{self.end}' from pg_replication_slots where slot_name = '{self.slot}'"
        return sql(query) == "t"

    def finish(self):
        """Ends it, and gives the seconds of CPU time that it has used."""
        if not self.ends:
            self.process.send_signal(signal.SIGTERM)
        usage = self.ended(0)
        if self.process.returncode:
            sys.exit(f"the daemon ended with {self.process.returncode}; see last-run.log")
        self.server.stop.set()
        self.server.join()
        return usage.ru_utime + usage.ru_stime

    def drop(self):
        while sql(f"select active from pg_replication_slots where slot_name = '{self.slot}'") == "t":
            time.sleep(0.05)
        sql(f"select pg_drop_replication_slot('{self.slot}')")


def wal():
    return int(sql("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def size(table):
    """Bytes of a table and its indexes, partitions included."""
    return int(sql(f"select coalesce(sum(pg_total_relation_size(oid)), 0) from pg_class where oid = 'aftercommit.{table}'::regclass "
                   f"or oid in (select inhrelid from pg_inherits where inhparent = 'aftercommit.{table}'::regclass)"))  # fmt: skip


def retention(args):
    modes = args.modes.split(",")
    runs = {mode: [] for mode in modes}
    for turn in range(args.rounds):
        for mode in modes:
            one = settled(args, mode)
            runs[mode].append(one)
            print(f"# {mode} {turn + 1}/{args.rounds}: {one}", file=sys.stderr)
    median = lambda mode, what: statistics.median(run[what] for run in runs[mode])
    ratio = lambda mode, what: statistics.median(a[what] / b[what] for a, b in zip(runs[mode], runs[modes[0]]))
    print(f"\n| {args.rows:,} rows, {args.rounds} runs | rows/s into Redis | time × {modes[0]} | all settled, × {modes[0]} "
          "| daemon µs/row | walsender µs/row | keeper's backend µs/row | MB |\n|" + "---|" * 8)  # fmt: skip
    for mode in modes:
        print(f"| {mode} | {args.rows / median(mode, 'pushed'):,.0f} | {ratio(mode, 'pushed'):.2f} | {ratio(mode, 'settled'):.2f} "
              f"| {median(mode, 'daemon'):.2f} | {median(mode, 'walsender'):.2f} | {median(mode, 'keeper'):.2f} "
              f"| {median(mode, 'memory'):.0f} |")  # fmt: skip
    print("\n| bytes per row | WAL of the INSERT | WAL of settling | WAL of vacuum, or DROP | table and index | behind it |\n|" + "---|" * 6)
    for mode in modes:
        print(f"| {mode} | " + " | ".join(f"{median(mode, what):,.0f}" for what in
              ("wal_insert", "wal_settle", "wal_vacuum", "size", "size_after")) + " |")  # fmt: skip


def settled(args, mode):
    subprocess.run(["redis-cli", "-p", os.environ["REDIS_PORT"], "flushall"], check=True, capture_output=True)
    daemon, tasks = Daemon(args, mode, True), Tasks(int(os.environ["REDIS_PORT"]))
    daemon.start(os.environ["REDIS_PORT"], True)
    pushed = daemon.wait("delivery", lambda: tasks.count() >= args.rows)
    cpu = daemon.finish()
    done = time.monotonic() - daemon.began
    left = int(sql(f"select count(*) from aftercommit.{daemon.table}"))
    if left != (0 if mode == "delete" else args.rows):
        sys.exit(f"{mode}: {left} rows are left")
    daemon.wal.append(wal())
    before = size(daemon.table)
    daemon.drop()
    # What clears up behind it: the daemon drops a partition when its time is over, which is too long for a bench.
    sql("drop table aftercommit.parted_now" if mode == "partition" else "vacuum aftercommit.outbox")
    daemon.wal.append(wal())
    per_row = lambda figure: figure / args.rows
    wals = [per_row(b - a) for a, b in zip(daemon.wal, daemon.wal[1:])]
    return {
        "pushed": pushed, "settled": done, "daemon": 1e6 * per_row(cpu), "memory": daemon.memory,
        "walsender": 1e6 * per_row(daemon.server.of("walsender")),
        "keeper": 1e6 * per_row(daemon.server.of("aftercommit keeper")),
        "wal_insert": wals[0], "wal_settle": wals[1], "wal_vacuum": wals[2],
        "size": per_row(before), "size_after": per_row(size(daemon.table)),
    }  # fmt: skip


def hold(args):
    kinds = {"10,000 keys": True, "no keys": False}
    runs = {kind: [] for kind in kinds}
    for turn in range(args.rounds):
        for kind, keyed in kinds.items():
            one = settled_directly(args, keyed) | spilled(args, keyed)
            runs[kind].append(one)
            print(f"# hold {turn + 1}/{args.rounds}, {kind}: {one}", file=sys.stderr)
    median = lambda kind, what: statistics.median(run[what] for run in runs[kind])
    ratio = lambda kind, what: statistics.median(run["draining" + what] / run["direct" + what] for run in runs[kind])
    print(f"\n| {args.rows:,} tasks, {args.rounds} runs | direct, tasks/s pushed (settled) | spilling | draining, pushed (settled) | draining × direct "
          "| keeper's backend, spilling µs/task | draining | WAL, spilling B/task | draining | MB |\n|" + "---|" * 10)  # fmt: skip
    for kind in kinds:
        print(f"| {kind} | {median(kind, 'direct'):,.0f} ({median(kind, 'direct_settled'):,.0f}) | {median(kind, 'spilling'):,.0f} "
              f"| {median(kind, 'draining'):,.0f} ({median(kind, 'draining_settled'):,.0f}) "
              f"| {ratio(kind, ''):.2f} ({ratio(kind, '_settled'):.2f}) "
              f"| {median(kind, 'cpu_spilling'):.1f} | {median(kind, 'cpu_draining'):.1f} "
              f"| {median(kind, 'wal_spilling'):,.0f} | {median(kind, 'wal_draining'):,.0f} | {median(kind, 'memory'):.0f} |")  # fmt: skip


def settled_directly(args, keyed):
    subprocess.run(["redis-cli", "-p", os.environ["REDIS_PORT"], "flushall"], check=True, capture_output=True)
    daemon, tasks = Daemon(args, "delete", keyed), Tasks(int(os.environ["REDIS_PORT"]))
    daemon.start(os.environ["REDIS_PORT"], False)
    first = daemon.wait("delivery", lambda: tasks.count() > 0)
    last = daemon.wait("delivery", lambda: tasks.count() >= args.rows)
    settled = daemon.wait("deleting", lambda: sql("select exists (select from aftercommit.outbox)") == "f", 0.02)
    daemon.finish()
    daemon.drop()
    return {"direct": args.rows / (last - first), "direct_settled": args.rows / (settled - first)}


def spilled(args, keyed):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daemon, tasks = Daemon(args, "delete", keyed), Tasks(port)
    held = lambda: sql("select exists (select from aftercommit.hold)") == "t"
    daemon.start(port, False)
    first = daemon.wait("spilling", held)
    last = daemon.wait("spilling", daemon.confirmed, 0.02)
    time.sleep(0.2)
    cpu = daemon.server.of("aftercommit keeper")
    daemon.wal.append(wal())
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
         "--dir", os.environ["BENCH_HOME"], "--logfile", os.environ["BENCH_HOME"] + "/redis-hold.log"]
    )  # fmt: skip
    try:
        back = daemon.wait("draining", lambda: tasks.count() > 0)
        drained = daemon.wait("draining", lambda: tasks.count() >= args.rows)
        empty = daemon.wait("draining", lambda: not held(), 0.02)
        daemon.finish()
        daemon.wal.append(wal())
        daemon.drop()
        count = tasks.count()
    finally:
        redis.terminate()
        redis.wait()
    if count != args.rows:
        sys.exit(f"{count} of {args.rows} tasks have come")
    return {
        "spilling": args.rows / (last - first), "draining": args.rows / (drained - back), "memory": daemon.memory,
        "draining_settled": args.rows / (empty - back),
        "wal_spilling": (daemon.wal[2] - daemon.wal[1]) / args.rows,
        "wal_draining": (daemon.wal[3] - daemon.wal[2]) / args.rows,
        "cpu_spilling": 1e6 * cpu / args.rows,
        "cpu_draining": 1e6 * (daemon.server.of("aftercommit keeper") - cpu) / args.rows,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["retention", "hold"])
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", default="keep,delete,partition", help="the first is what the others are compared with")
    args = parser.parse_args()
    {"retention": retention, "hold": hold}[args.part](args)


if __name__ == "__main__":
    main()
