#!/bin/sh
# Compiles the daemon with each sink alone, with none, and with all. Without tests; some minutes.
set -eu
cd "$(dirname "$0")/.."

scripts/apt-install.sh libssl-dev pkg-config # all features have Kafka over TLS
sinks=$(sed -n 's/^    [a-z]* "\([a-z]*\)",$/\1/p' src/sink/mod.rs)
for features in "" $sinks; do
    echo "cargo check --no-default-features --features \"$features\""
    cargo check --quiet --no-default-features --features "$features"
done
cargo check --quiet --all-features
