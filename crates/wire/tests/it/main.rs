//! CONNECT, tested by vectors, properties, an independent codec and the fuzzing corpus.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod corpus;
mod properties;
mod raw;
mod vectors;
