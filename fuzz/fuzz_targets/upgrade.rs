//! The reader `upgrade` of `portcullis_gateway::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (_, target) = portcullis_gateway::fuzzing::TARGETS.iter().find(|(name, _)| *name == "upgrade").expect("it is listed");
    target(bytes);
});
