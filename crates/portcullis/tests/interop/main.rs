//! The built binary with programs that somebody else wrote: mosquitto, Paho, MQTT.js, OpenSSL, GnuTLS,
//! PyJWT, PostgreSQL, NGINX, HAProxy.
//!
//! They are installed by the repository's `./test.sh`; a test that does not find its program fails and says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod auth;
mod clients;
mod four;
mod judge;
mod keys;
mod operations;
mod pki;
mod processes;
mod proxies;
mod registry;
mod trust;
