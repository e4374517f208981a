//! CONNECT judged by vectors, by properties, by another codec and by what fuzzing has found.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod corpus;
mod properties;
mod raw;
mod vectors;
