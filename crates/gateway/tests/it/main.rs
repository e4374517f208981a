//! The gateway as a library, with both ends in the test: what arrives is compared to the byte.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admit;
mod bad_input;
mod configuration;
mod imports;
mod names;
mod relay;
mod reload;
mod resumption;
mod tls;
mod trust;
mod upstream;
