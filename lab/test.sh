#!/usr/bin/env bash
# Runs all tests. Most of them wait for something most of the time, so several run at a time on each core. Says beforehand how long
# that takes, and afterwards which tests took longest.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}
export PBX_TIMES=$PWD/target/test-times # the lab writes a line for each test
last=target/test-seconds

# The tests of CONTRIBUTING.md run 'cargo run', for which cargo builds some dependencies with other features.
cargo build --locked
cargo test --locked --no-run
if [[ -s $last ]]; then
    echo "test: $RUST_TEST_THREADS at a time; the last run took $(<"$last") seconds"
else
    echo "test: $RUST_TEST_THREADS at a time; five minutes on two cores"
fi
: >"$PBX_TIMES"
SECONDS=0
status=0
cargo test --locked || status=$?
echo "test: $SECONDS seconds; the slowest ten:"
sort --numeric-sort --reverse "$PBX_TIMES" | sed --quiet 1,10p # reads all: with pipefail, a closed pipe fails the script
((status)) || echo "$SECONDS" >"$last"
exit "$status"
