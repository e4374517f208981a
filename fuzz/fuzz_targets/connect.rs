//! CONNECT: decoding never panics and gives the same result for every split of the input; every accepted packet can be
//! encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_wire::{Connack, Connect, Limits, Version};

fuzz_target!(|bytes: &[u8]| {
    let whole = Connect::decode(bytes, Limits::default());
    for cut in 0..bytes.len().min(300) {
        let part = Connect::decode(&bytes[..cut], Limits::default());
        assert!(part == Ok(None) || part == whole, "cut at {cut}: {part:?}, whole: {whole:?}");
    }
    if let Ok(Some((connect, used))) = whole {
        let mut encoded = Vec::new();
        connect.encode(&mut encoded).expect("a decoded packet can be encoded");
        if connect.version != Version::V31 {
            // Before MQTT 5 the remaining length may be padded; all other bytes stay the same.
            assert!(encoded == bytes[..used] || connect.version == Version::V311 && encoded.len() < used);
        }
        let again = Connect::decode(&encoded, Limits::default());
        assert_eq!(again, Ok(Some((connect, encoded.len()))));
        let _ = connect.properties.user_properties().count();
        let _ = format!("{connect:?}");
    }
    for version in [Version::V31, Version::V311, Version::V5] {
        let _ = Connack::decode(bytes, version, 65_536);
    }
});
