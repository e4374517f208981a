#!/usr/bin/env bash
# Runs the commands of README.md, word for word, in a clean clone of what is committed. A command that this script does
# not know makes it fail: say below how that one is run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/readme
rm -rf "$work/clone"
git clone --quiet . "$work/clone"
cd "$work/clone"
# Kept from one run to the next: only what has changed is built.
export CARGO_TARGET_DIR=$work/target
export PATH=$CARGO_TARGET_DIR/release:$PATH
# What `quickstart` writes to, and the address in its configuration.
dir=portcullis-quickstart port=8883
# For one command, in seconds; a build from nothing on two busy cores is the longest.
limit=1800

fail() {
    printf 'README.md: %s\n' "$*" >&2
    exit 1
}

# wait_for WHAT COMMAND...: until the command succeeds, as long as the process of README's command is there.
wait_for() {
    local what=$1 end=$((SECONDS + limit))
    shift
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || { cat "$work/log" && fail "it ended before $what: $line"; }
        [ $SECONDS -lt $end ] || { kill -KILL -- "-$pid" && cat "$work/log" && fail "no $what in $limit s: $line"; }
        sleep 0.2
    done
}

# start: runs the line as a shell's foreground job would run, in a process group of its own.
start() {
    set -m
    bash -c "$line" >"$work/log" 2>&1 &
    pid=$!
    set +m
}

# stop SIGNAL: it ends without an error.
stop() {
    kill "-$1" -- "-$pid"
    wait "$pid" || { cat "$work/log" && fail "SIG$1 ended it with an error: $line"; }
}

has_printed() { grep -q "$1" "$work/log"; }
is_listening() { (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

commands=$(awk '/^```sh$/ { on = 1; next } /^```/ { on = 0 } on && NF' README.md)
[ -n "$commands" ] || fail "no commands found"
# Not on the standard input, which a command might read.
while IFS= read -r line <&3; do
    command=$(sed 's/ *#.*//' <<<"$line")
    printf '\n-- %s\n' "$command"
    case $command in
    "cargo run --release -- quickstart")
        start
        wait_for "its proof" has_printed 'Press Ctrl-C to stop'
        [ "$(grep -c '^proved: ' "$work/log")" = 3 ] || { cat "$work/log" && fail "not all is proved"; }
        stop INT
        ;;
    "portcullis check -c portcullis.toml") (cd "$dir" && timeout 60 bash -c "$line") ;;
    "portcullis run -c portcullis.toml")
        cd "$dir"
        start
        wait_for "it listens" is_listening
        stop TERM
        cd ..
        ;;
    "cargo build "*) timeout "$limit" bash -c "$line" ;;
    "./test.sh") echo "it is what runs this" ;;
    *) fail "scripts/readme.sh does not know how to run: $command" ;;
    esac
done 3<<<"$commands"
