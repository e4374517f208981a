#!/usr/bin/env bash
# Runs the commands of README.md, word for word, in a clean clone of the last commit. Fails on a command that it does not
# know: add a case below that runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/readme
rm -rf "$work/clone"
git clone --quiet . "$work/clone"
cd "$work/clone"
# Kept between runs, so that only changes are built.
export CARGO_TARGET_DIR=$work/target
export PATH=$CARGO_TARGET_DIR/release:$PATH
# The directory that `quickstart` writes to, and the port in its configuration.
dir=portcullis-quickstart port=8883
# The deadline of one command, in seconds. The longest is a clean build on two busy cores.
limit=1800

fail() {
    printf 'README.md: %s\n' "$*" >&2
    exit 1
}

# wait_for WHAT COMMAND...: waits until the command succeeds. Fails if the process of the README's command exits before.
wait_for() {
    local what=$1 end=$((SECONDS + limit))
    shift
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || { cat "$work/log" && fail "the command exited before $what: $line"; }
        [ $SECONDS -lt $end ] || { kill -KILL -- "-$pid" && cat "$work/log" && fail "no $what in $limit s: $line"; }
        sleep 0.2
    done
}

# start: runs the line in its own process group, as a shell runs a foreground job.
start() {
    set -m
    bash -c "$line" >"$work/log" 2>&1 &
    pid=$!
    set +m
}

# stop SIGNAL: ends the process group, and fails if the command exits with an error.
stop() {
    kill "-$1" -- "-$pid"
    wait "$pid" || { cat "$work/log" && fail "the command exited with an error after SIG$1: $line"; }
}

has_printed() { grep -q "$1" "$work/log"; }
is_listening() { (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

commands=$(awk '/^```sh$/ { on = 1; next } /^```/ { on = 0 } on && NF' README.md)
[ -n "$commands" ] || fail "no commands found"
# Read from descriptor 3, because a command may read standard input.
while IFS= read -r line <&3; do
    command=$(sed 's/ *#.*//' <<<"$line")
    printf '\n-- %s\n' "$command"
    case $command in
    "cargo run --release -- quickstart")
        start
        wait_for "its proof" has_printed 'Press Ctrl-C to stop'
        [ "$(grep -c '^proved: ' "$work/log")" = 3 ] || { cat "$work/log" && fail "not every step is proved"; }
        stop INT
        ;;
    "portcullis check -c portcullis.toml") (cd "$dir" && timeout 60 bash -c "$line") ;;
    "portcullis run -c portcullis.toml")
        cd "$dir"
        start
        wait_for "it listened" is_listening
        stop TERM
        cd ..
        ;;
    "cargo build "*) timeout "$limit" bash -c "$line" ;;
    "./test.sh") echo "skipped: test.sh runs this script" ;;
    *) fail "scripts/readme.sh does not know how to run: $command" ;;
    esac
done 3<<<"$commands"
