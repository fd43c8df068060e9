#!/bin/bash
# The bench: throughput, CPU, memory and latency, as ratios to a bare loop, on servers of its own in a temporary folder.
#
#     benches/run.sh [options] [a|b|c|latency|retention|hold|sinks ...]
#
# Without a name: all of them; about a quarter of an hour, 6 GB of disk, 3 GB of memory.
#
#     --small         a twentieth of the rows, and one run: whether it works, not how fast it is
#     --runs N        rounds of each comparison (3)
#     --seconds N     of each latency measurement, of which there are twelve (10)
#     --home FOLDER   keep the servers' folder there, with its backlogs, and use what is there already
#     --daemon FILE   the program to measure, instead of a release build
#     --before FILE   another one, measured in turn with it, where a backlog is read
#
# The tables go to standard output, in Markdown; all else to standard error. README.md explains the columns.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
small='' runs='' seconds='' home='' daemon='' before='' parts=()
while [ $# -gt 0 ]; do
    case $1 in
    --small) small=yes ;;
    --runs) runs=$2 && shift ;;
    --seconds) seconds=$2 && shift ;;
    --home) home=$2 && shift ;;
    --daemon) daemon=$2 && shift ;;
    --before) before=$2 && shift ;;
    a | b | c | latency | retention | hold | sinks) parts+=("$1") ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
    shift
done
runs=${runs:-$([ -n "$small" ] && echo 1 || echo 3)}
seconds=${seconds:-$([ -n "$small" ] && echo 2 || echo 10)}
[ ${#parts[@]} -gt 0 ] || parts=(a b c latency retention hold sinks)
say() { echo "# $*" >&2; }

# Programs.
bin=$(pg_config --bindir 2>/dev/null || true)
[ -x "$bin/initdb" ] || bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
export PATH=$bin:$PATH
for program in initdb pgbench redis-server redis-cli python3 cargo rustc; do
    command -v $program >/dev/null || { echo "$program is missing; on Debian: scripts/apt-install.sh postgresql redis-server" >&2; exit 1; }
done
target=$(cd "$here/.." && cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
mkdir -p "$target/bench"
for program in floor observer; do
    rustc -O --edition 2024 "$here/$program.rs" -o "$target/bench/$program"
done
if [ -z "$daemon" ]; then
    (cd "$here/.." && cargo build --quiet --release)
    daemon=$target/release/aftercommit
fi

# Servers. PostgreSQL refuses to run as root. Without fsync: the disk would be most of each latency, and is not what is measured.
as_postgres() { if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
stop() {
    [ -z "${redis:-}" ] || kill "$redis" 2>/dev/null || true
    [ ! -f "$BENCH_HOME/pg/postmaster.pid" ] || as_postgres pg_ctl -D "$BENCH_HOME/pg" -m immediate -w stop >/dev/null || true
    [ -n "$home" ] || rm -rf "$BENCH_HOME"
}
BENCH_HOME=${home:-$(mktemp -d "${TMPDIR:-/tmp}/aftercommit-bench.XXXXXX")}
mkdir -p "$BENCH_HOME"
BENCH_HOME=$(cd "$BENCH_HOME" && pwd)
trap stop EXIT
trap 'exit 130' INT TERM
[ "$(id -u)" -ne 0 ] || chown postgres "$BENCH_HOME"
chmod 755 "$BENCH_HOME"
read -r PGPORT REDIS_PORT <<<"$(python3 -c '
import socket
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(port.getsockname()[1] for port in ports))')"
export BENCH_HOME PGPORT REDIS_PORT PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=bench
if [ ! -f "$BENCH_HOME/pg/PG_VERSION" ]; then
    as_postgres initdb -D "$BENCH_HOME/pg" -U postgres -A trust --no-locale -E UTF8 >/dev/null
    as_postgres tee -a "$BENCH_HOME/pg/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$BENCH_HOME'
wal_level = logical
shared_buffers = 1GB
max_wal_size = 16GB
checkpoint_timeout = 30min
wal_buffers = 64MB
jit = off
fsync = off
CONF
fi
# A server of a run that was killed is stopped first.
as_postgres pg_ctl -D "$BENCH_HOME/pg" -m immediate -w stop >/dev/null 2>&1 || true
as_postgres pg_ctl -D "$BENCH_HOME/pg" -l "$BENCH_HOME/pg.log" -o "-p $PGPORT" -w start >/dev/null
redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --save '' --appendonly no --dir "$BENCH_HOME" --logfile "$BENCH_HOME/redis.log" &
redis=$!
until redis-cli -p "$REDIS_PORT" ping >/dev/null 2>&1; do kill -0 $redis; sleep 0.1; done

# Backlogs: a, transactions of one row; b, of a hundred; c, a single one.
query() { psql -Xq -v ON_ERROR_STOP=1 "$@"; }
if ! psql -XAtc "select 1" >/dev/null 2>&1; then
    createdb bench
    query -f "$here/backlog.sql"
    for file in schema outbox enqueue hold hold_functions checkpoint partitions; do query -f "$here/../sql/$file.sql"; done
    query -f "$here/own.sql"
fi
part=$([ -n "$small" ] && echo 20 || echo 1)
load() { # name, rows, command ...
    local name=$1 rows=$2
    shift 2
    [ "$(query -Atc "select count(*) from backlog where name = '$name' and end_lsn is not null")" = 0 ] || return 0
    say "loading backlog $name: $rows rows"
    query -c "call begin_backlog('$name', $rows)"
    PGOPTIONS='-c synchronous_commit=off' "$@" >"$BENCH_HOME/load.log"
    query -c "call end_backlog('$name')"
}
for name in "${parts[@]}"; do
    rows=$((1000000 / part))
    case $name in
    a) load a $((rows / 2)) pgbench -n -M prepared -c 10 -j 2 -t $((rows / 20)) -f "$here/one.pgbench" ;;
    b) load b $rows query -c "call load($rows, 100)" ;;
    c) load c $rows query -c "call load($rows, $rows)" ;;
    esac
done
query -c checkpoint

cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)
postgres=$(postgres --version | cut -d' ' -f3) redis_version=$(redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/')
echo "$(nproc) cores ($cpu), Linux $(uname -r), PostgreSQL $postgres, Redis $redis_version, loopback TCP; load average at the start: $(cut -d' ' -f1-3 /proc/loadavg)."
# A fraction of the rows says nothing about speed: most of such a run is its start.
aim() { [ -n "$small" ] || echo "--aim $1"; }
reader="$target/bench/floor slot={slot} publication=bench rows={rows}"
recv="pg_recvlogical -d bench -S {slot} --start -o proto_version=1 -o publication_names=bench --endpos={end} -F 0 --no-loop -f /dev/null"
run="run -c $here/aftercommit.toml --until {end}"
beside() { # the program of before, into the same sink
    [ -z "$before" ] || printf '%s\n' "before, $1=env SLOT={slot} SINK=$1 $before $run"
}
for name in "${parts[@]}"; do
    case $name in
    latency) "$here/latency.py" --bin "$target/bench" --daemon "$daemon" --rounds 3 --seconds "$seconds" ${before:+--before "$before"} ;;
    sinks) (cd "$here/.." && cargo test --quiet --profile bench --features kafka,sqs --test it -- --ignored --exact yardstick::sinks --nocapture --test-threads=1) | grep '^|' ;;
    retention | hold) "$here/settle.py" "$name" --daemon "$daemon" --rows $((300000 / part)) --rounds "$runs" ;;
    *)
        "$here/ratio.py" --backlog "$name" --runs "$runs" $(aim 1.15,2,32) \
            "floor=$reader" "pg_recvlogical=$recv" ${before:+"$(beside null)"} "aftercommit, null=env SLOT={slot} SINK=null $daemon $run"
        "$here/ratio.py" --backlog "$name" --runs "$runs" $(aim 1.3,,48) \
            "floor, Redis=$reader mode=celery" ${before:+"$(beside celery)"} "aftercommit, celery=env SLOT={slot} SINK=celery $daemon $run"
        ;;
    esac
done
