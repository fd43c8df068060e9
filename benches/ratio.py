#!/usr/bin/env python3
"""Replays one backlog through several readers of a slot, in turns, and compares them.

    ratio.py --backlog a|b|c [--runs N] [--aim WALL,CPU,MEMORY] NAME=COMMAND ...

In a command, {slot}, {rows} and {end} stand for the slot to read, the number of rows, and the position behind the last. Each
run of each command gets a fresh copy of the backlog's slot, so that all replay the same WAL. A command exits with 0 when it
has read all rows. The first command is the reference of the ratios, which are taken within a round (the same minute on the
same machine) before the median is; a command called pg_recvlogical gets a column of ratios too. The last one is compared with
the aim.

CPU is user and system time: of the command, and of the server's process behind it. Memory is the peak of the resident set.
PGHOST, PGPORT, PGUSER, PGDATABASE, REDIS_PORT and BENCH_HOME (the folder of the servers) come from the environment.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    wall: float  # seconds
    client: float  # seconds of CPU
    walsender: float
    memory: float  # MB
    code: int


def sql(query):
    done = subprocess.run(["psql", "-XqAtc", query], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{query}: {done.stderr}")
    return done.stdout.strip()


def cpu_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), 0)


class Walsenders(threading.Thread):
    """Reads the CPU time of the server's walsenders until told to stop; what a process had used last is what counts."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.seen = {}
        self.known = {}
        with open(os.environ["BENCH_HOME"] + "/pg/postmaster.pid") as pidfile:
            self.postmaster = pidfile.readline().strip()

    def run(self):
        while not self.stop.wait(0.02):
            with open(f"/proc/{self.postmaster}/task/{self.postmaster}/children") as children:
                pids = children.read().split()
            for pid in pids:
                try:
                    if pid not in self.known:
                        with open(f"/proc/{pid}/cmdline") as title:
                            self.known[pid] = "walsender" in title.read()
                    if self.known[pid]:
                        self.seen[pid] = cpu_of(pid)
                except OSError:
                    pass  # it has gone
                if not self.known.get(pid):
                    self.known.pop(pid, None)  # it may not have told its title yet


def run(command, backlog, rows, end, timeout):
    slot = f"run_{os.getpid()}_{time.monotonic_ns() // 1000}"
    sql(f"select pg_copy_logical_replication_slot('base_{backlog}', '{slot}')")
    for name, value in {"slot": slot, "rows": rows, "end": end}.items():
        command = command.replace("{" + name + "}", value)
    subprocess.run(["redis-cli", "-p", os.environ["REDIS_PORT"], "flushall"], check=True, capture_output=True)
    walsenders = Walsenders()
    walsenders.start()
    log = open(os.environ["BENCH_HOME"] + "/last-run.log", "w")
    began = time.monotonic()
    process = subprocess.Popen(["sh", "-c", "exec " + command], stdout=log, stderr=log)
    memory, code = 0, None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - began > timeout:
            process.kill()
        try:
            memory = max(memory, peak_of(process.pid))
        except OSError:
            pass
        time.sleep(0.01)
    wall = time.monotonic() - began
    process.returncode = code
    walsenders.stop.set()
    walsenders.join()
    while sql(f"select active from pg_replication_slots where slot_name = '{slot}'") == "t":
        time.sleep(0.1)
    sql(f"select pg_drop_replication_slot('{slot}')")
    return Run(wall, usage.ru_utime + usage.ru_stime, sum(walsenders.seen.values()), memory, code)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backlog", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, help="seconds")
    parser.add_argument("--aim", help="of the last command: times the reference, µs of CPU per row, MB")
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    args = parser.parse_args()

    found = sql(f"select rows, end_lsn from backlog where name = '{args.backlog}'")
    rows, end = found.split("|")
    commands = dict(command.split("=", 1) for command in args.commands)
    reference, measured = list(commands)[0], list(commands)[-1]
    runs = {name: [] for name in commands}
    for turn in range(args.runs):
        for name, command in commands.items():
            one = run(command, args.backlog, rows, end, args.timeout)
            runs[name].append(one)
            print(f"# {args.backlog} {turn + 1}/{args.runs} {name}: {one.wall:.2f} s", file=sys.stderr)
            if one.code:
                sys.exit(f"{name} ended with {one.code}; see {os.environ['BENCH_HOME']}/last-run.log")

    def median(name, of):
        return statistics.median(map(of, runs[name]))

    def ratio(name, to):
        return statistics.median(one.wall / other.wall for one, other in zip(runs[name], runs[to]))

    count = int(rows)
    references = [reference] + ["pg_recvlogical"] * ("pg_recvlogical" in commands)
    titles = [f"backlog {args.backlog}, {args.runs} runs", "rows/s", "wall s", *(f"× {to}" for to in references)]
    titles += ["CPU µs/row", "walsender µs/row", "MB"]
    print(f"\n| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in commands:
        wall = median(name, lambda r: r.wall)
        cells = [name, f"{count / wall:,.0f}", f"{wall:.2f}", *(f"{ratio(name, to):.2f}" for to in references)]
        cells += [f"{1e6 * median(name, of) / count:.2f}" for of in (lambda r: r.client, lambda r: r.walsender)]
        print(f"| {' | '.join(cells)} | {median(name, lambda r: r.memory):.0f} |")
    if args.aim:
        figures = (
            ratio(measured, reference),
            1e6 * median(measured, lambda r: r.client) / count,
            max(r.memory for r in runs[measured]),
        )
        units = (f"× {reference}", "µs per row", "MB")
        verdicts = [
            f"{figure:.2f} {unit} ({'within' if figure <= float(aim) else 'OVER'} {aim})"
            for figure, unit, aim in zip(figures, units, args.aim.split(","))
            if aim
        ]
        print(f"\n{measured}: {', '.join(verdicts)}")


if __name__ == "__main__":
    main()
