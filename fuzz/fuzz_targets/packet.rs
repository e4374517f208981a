//! The packets behind CONNECT: the first byte of the input selects version and sender, the others are a stream. The checks
//! are those of the ordinary tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/wire/tests/it/stream.rs"]
mod stream;

fuzz_target!(|input: &[u8]| stream::check_input(input));
