#!/bin/sh
# Sits the reliability exam in full: one row after the other, with a release build, each alone on the machine.
#
#     scripts/exam.sh               all rows
#     ROWS=1,4,11 scripts/exam.sh   some
#     SINKS=nats,amqp scripts/exam.sh   rows over these sinks: amqp, bullmq, celery, dramatiq, exec, kafka, nats, redis (all
#                                   that is in Redis under this name), sidekiq, sqs, stdout, webhook; or one of them more
#                                   exactly: celery_rabbitmq, celery_redis, dramatiq_rabbitmq, dramatiq_redis, redis_list,
#                                   redis_stream, sqs_fifo
#     FEATURES= scripts/exam.sh     without kafka and sqs, which take a while to build: rows over them are skipped
#     EXAM_SEED=7 scripts/exam.sh   with this seed; otherwise one is drawn, and every receipt has it
#
# Prints each receipt as it comes, and all of them as a table at the end. What a row has said is in target/exam/. Fails
# when a row fails.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
out=$target/exam
mkdir -p "$out"
receipts=$out/receipts
: >"$receipts"

features=${FEATURES-kafka-tls,sqs}
cargo build --release --quiet --features "$features"
tests=$(cargo test --no-run --profile harness --features "$features" --test it --message-format json |
    sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p' | tail -n 1)
# Copies, so that one can go on building meanwhile. Named failpoints are not in the release build.
cp "$tests" "$out/tests"
cp "$target/release/aftercommit" "$out/release"
cp "$target/harness/aftercommit" "$out/failpoints"
tests=$out/tests
EXAM_SEED=${EXAM_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
export EXAM_SEED
rows=$("$tests" --list exam:: | sed -n 's/^\(exam::[a-z_]*::row_[0-9a-z_]*\): test$/\1/p' |
    sed 's/.*::row_\([0-9]*\).*/\1 &/' | sort | cut -d ' ' -f 2)
if [ -n "${ROWS:-}" ]; then
    wanted=$(printf '%s' "$ROWS" | tr ', ' '\n\n' | sed '/^$/d; s/^\([0-9]\)$/0\1/; s/.*/::row_&(_|$)/' | paste -sd '|' -)
    rows=$(printf '%s\n' "$rows" | grep -E "$wanted") || {
        echo "No row of the exam is among: $ROWS" >&2
        exit 2
    }
fi
if [ -n "${SINKS:-}" ]; then
    wanted=$(printf '%s' "$SINKS" | tr ', ' '\n\n' | sed '/^$/d; s/.*/_(&)(_|$)/' | paste -sd '|' -)
    rows=$(printf '%s\n' "$rows" | grep -E "$wanted") || {
        echo "No row of the exam is sat over: $SINKS" >&2
        exit 2
    }
fi

failed=
for row in $rows; do
    log=$out/${row##*::}.log
    before=$(wc -l <"$receipts")
    case $row in
    *::row_02*) program=$out/failpoints ;;
    *) program=$out/release ;;
    esac
    if ! env EXAM=full EXAM_RECEIPTS="$receipts" AFTERCOMMIT_TEST_PROGRAM="$program" \
        "$tests" --exact "$row" --nocapture >"$log" 2>&1; then
        failed="$failed $log"
    fi
    # A row that died without a word failed, too.
    [ "$(wc -l <"$receipts")" -gt "$before" ] ||
        echo "FAIL row ${row##*row_}, ended without a receipt" | tee -a "$receipts" >/dev/null
    tail -n +"$((before + 1))" "$receipts"
done

# The table: what every row has, in columns; the receipts above have the rest.
echo
awk '
    # After the name of the row come the figures, each with a comma before it.
    function figure(name,    rest) {
        rest = $0
        sub(/^[^:]*:/, ",", rest)
        if (!match(rest, ", " name " [0-9]")) return "-"
        rest = substr(rest, RSTART + length(name) + 3)
        sub(/,.*/, "", rest)
        sub(/ (≤|≥) /, "/", rest)
        return rest
    }
    BEGIN {
        format = "%-4s %-4s  %-54s %-5s %-9s %-9s %-15s %-13s %-12s %s\n"
        printf format, "row", "", "fault", "lost", "invented", "disorder", "twice", "peak memory", "slot lag", "recovery"
    }
    {
        name = $0
        sub(/^[A-Z]+ row [0-9a-z_]+, /, "", name)
        sub(/:.*/, "", name)
        row = $3
        sub(/,$/, "", row)
        printf format, row, $1, substr(name, 1, 54), figure("lost"), figure("invented"), figure("out of order"),
            figure("twice"), figure("memory"), figure("lag"), figure("recovery")
    }' "$receipts"
echo
echo "$(grep -c '^PASS' "$receipts" || true) held, $(grep -c '^FAIL' "$receipts" || true) failed, $(grep -c '^SKIP' "$receipts" || true) skipped. Receipts: $receipts"
if [ -n "$failed" ] || grep -q '^FAIL' "$receipts"; then
    echo "Failed; what was said:$failed" >&2
    exit 1
fi
