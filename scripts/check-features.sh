#!/bin/sh
# Compiles the daemon with each sink alone, with none, and with all, and takes warnings for errors. Without tests; some minutes.
set -eu
cd "$(dirname "$0")/.."

sinks=$(sed -n 's/^    [a-z]* "\([a-z]*\)",$/\1/p' src/sink/mod.rs)
for features in "" $sinks; do
    echo "cargo clippy --no-default-features --features \"$features\""
    cargo clippy --quiet --no-default-features --features "$features" -- -D warnings
done
cargo clippy --quiet --all-features -- -D warnings
