#!/usr/bin/env bash
# Installs what the tests need and runs all of them: format, lints, unit, integration and interop tests, counted work, the
# commands of README.md, documentation, licences. Requires Debian, a Rust toolchain and a C compiler.
#
#   ./test.sh            everything
#   ./test.sh --offline  installs nothing: a test whose program is missing fails with a message
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

step() { printf '\n== %s\n' "$*"; }

install() {
    local missing=()
    # Each Debian package, and a program that it contains.
    while read -r package program; do
        command -v "$program" >/dev/null || missing+=("$package")
    done <<'LIST'
mosquitto mosquitto
mosquitto-clients mosquitto_pub
nginx nginx
haproxy haproxy
openssl openssl
softhsm2 softhsm2-util
gnutls-bin gnutls-cli
postgresql pg_ctlcluster
testssl.sh testssl
curl curl
procps kill
python3-venv python3
nodejs node
npm npm
pkg-config pkg-config
strace strace
systemd systemd-socket-activate
iproute2 ss
chromium chromium
valgrind valgrind
LIST
    [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
    if [ ${#missing[@]} -gt 0 ]; then
        step "installing Debian packages: ${missing[*]}"
        local sudo=()
        [ "$(id -u)" = 0 ] || sudo=(sudo)
        "${sudo[@]}" apt-get update -qq
        # Keep the packages from starting their services: the tests start their own.
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee /usr/sbin/policy-rc.d >/dev/null
            # shellcheck disable=SC2064 # expanded now: the variable is local
            trap "${sudo[*]} rm -f /usr/sbin/policy-rc.d" EXIT
            "${sudo[@]}" chmod +x /usr/sbin/policy-rc.d
        fi
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    mkdir -p target/interop
    if ! target/interop/venv/bin/python -c 'import aioquic, cryptography, jwt, paho.mqtt.client' 2>/dev/null; then
        step "installing paho-mqtt, pyjwt and aioquic from PyPI into target/interop/venv"
        python3 -m venv target/interop/venv
        target/interop/venv/bin/python -m pip install --quiet --disable-pip-version-check \
            'paho-mqtt==2.1.0' 'pyjwt[crypto]==2.10.1' 'aioquic==1.7.2'
    fi
    if [ ! -d target/interop/node_modules/mqtt ]; then
        step "installing mqtt from npm into target/interop"
        npm install --prefix target/interop --no-audit --no-fund --silent mqtt@5
    fi
    step "building a client of flowsdk"
    cargo build --quiet --locked --manifest-path crates/portcullis/tests/interop/flowsdk/Cargo.toml \
        --target-dir target/interop/flowsdk
}

[ "${1:-}" = --offline ] || install

step "format"
cargo fmt --all --check
step "clippy"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step "clippy without default features"
cargo clippy --package portcullis --no-default-features --locked --quiet -- -D warnings
step "tests"
cargo test --workspace --locked --no-fail-fast
step "counted work: the ceilings of crates/bench/ceilings.toml"
# Together, so that what both depend on is built once; `release`, because `dist` takes several times as long to build.
cargo build --release --locked --quiet --package portcullis --package portcullis-bench
target/release/portcullis-bench count
step "the commands of README.md, in a clean clone"
scripts/readme.sh
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
if command -v cargo-deny >/dev/null; then
    step "licences, sources, bans (advisories need the advisory database: cargo deny check)"
    cargo deny check bans licenses sources
else
    step "cargo-deny is not installed: licences were not checked (cargo install cargo-deny)"
fi
