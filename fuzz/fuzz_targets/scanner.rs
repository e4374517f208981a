//! The framing scanner: the first byte of the input sets the chunk size; every split gives the same packets and boundaries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_wire::Scanner;

fuzz_target!(|input: &[u8]| {
    let Some((&chunk, bytes)) = input.split_first() else { return };
    let mut whole = Scanner::new();
    let mut packets = Vec::new();
    let expected = whole.scan(bytes, |header| packets.push(header));
    let (mut split, mut seen, mut boundary, mut offset) = (Scanner::new(), Vec::new(), Some(0), 0);
    for part in bytes.chunks(usize::from(chunk).max(1)) {
        match split.scan(part, |header| seen.push(header.packet_len())) {
            Ok(found) => boundary = found.map(|at| offset + at).or(boundary),
            Err(error) => {
                assert_eq!(expected, Err(error));
                return;
            }
        }
        offset += part.len();
    }
    assert_eq!(expected, Ok(boundary));
    assert_eq!(seen, packets.iter().map(|header| header.packet_len()).collect::<Vec<_>>());
    assert_eq!(split.at_boundary(), whole.at_boundary());
});
