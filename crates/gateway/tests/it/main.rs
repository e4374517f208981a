//! Tests of the gateway as a library. The test is both client and broker, and compares every byte that arrives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod admit;
mod bad_input;
mod bans;
mod ciphers;
mod configuration;
mod details;
mod devices;
mod devices_database;
mod docs;
mod ends;
mod imports;
mod limits;
mod machine;
mod mistakes;
mod moves;
mod names;
mod passwords;
mod paths;
mod places;
mod proxy_protocol;
mod relay;
mod relay_threads;
mod reload;
mod remembered;
mod resumption;
mod service;
mod storm;
mod tls;
mod tokens;
mod topics;
mod trust;
mod unix_sockets;
mod upstream;
mod websocket;
