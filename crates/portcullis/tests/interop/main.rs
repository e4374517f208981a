//! Tests of the built binary with third-party programs: mosquitto, Paho, MQTT.js, OpenSSL, GnuTLS, PyJWT, PostgreSQL,
//! NGINX and HAProxy.
//!
//! `./test.sh` installs them. A test whose program is missing fails with a message.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod auth;
mod clients;
mod differential;
mod four;
mod keys;
mod operations;
mod packets;
mod pki;
mod processes;
mod proxies;
mod quic;
mod registry;
mod replace;
mod server_keys;
mod shortage;
mod trust;
mod websocket;
