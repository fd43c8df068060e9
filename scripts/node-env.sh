#!/bin/sh
# Fetches BullMQ, its last two major versions, for the tests: into a folder, nothing is installed.
#
#     scripts/node-env.sh [directory]      default: target/node
#
# What cannot be had is said; the tests that need it then print SKIP.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
env=${1:-${CARGO_TARGET_DIR:-$here/target}/node}
wanted=$here/tests/workers/package.json

mkdir -p "$env"
exec 9>"$env.lock" # one at a time
flock 9
cmp -s "$wanted" "$env/installed.json" && exit 0

if ! command -v npm >/dev/null; then
    echo "SKIP BullMQ: there is no npm." >&2
    exit 0
fi
echo "Fetching BullMQ from npm into $env." >&2
cp "$wanted" "$env/package.json"
if (cd "$env" && npm install --silent --no-audit --no-fund </dev/null); then
    cp "$wanted" "$env/installed.json" # last: it says that the rest is complete
else
    echo "SKIP BullMQ: not to be had from npm." >&2
fi
