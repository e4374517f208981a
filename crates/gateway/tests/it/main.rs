//! The gateway as a library, with both ends in the test: what arrives is compared to the byte.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admit;
mod bad_input;
mod bans;
mod configuration;
mod devices;
mod docs;
mod imports;
mod names;
mod passwords;
mod relay;
mod reload;
mod resumption;
mod service;
mod tls;
mod tokens;
mod trust;
mod upstream;
