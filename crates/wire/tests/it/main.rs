//! All packets, tested by vectors, properties, an independent codec and the fuzzing corpus.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod corpus;
mod heads;
mod legal;
mod packet_properties;
mod packets;
mod properties;
mod raw;
mod stream;
mod vectors;
