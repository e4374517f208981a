//! The codec that passes all bytes unchanged.
//!
//! It tracks packet boundaries in both directions, in eight bytes of state each: the pump has to know where it may end the
//! stream to the client, and who has sent DISCONNECT. Not here: the content of packets; no byte is kept, added or removed.

use std::sync::Arc;

use portcullis_wire::{FixedHeader, PacketType, Scanner};

use super::codec::{Boundary, Codec, Direction, Ending, Injected};
use crate::policy::PacketRules;

/// Passes all bytes unchanged.
#[derive(Debug)]
pub(crate) struct Opaque {
    /// The position in the stream to the client; `None` once its bytes turned out not to be MQTT.
    to_client: Option<Scanner>,
    /// The position in the stream to the broker, after CONNECT; `None` as above.
    to_broker: Option<Scanner>,
    disconnected: Option<Direction>,
}

/// The codec of a session whose broker has not sent any bytes yet.
impl Default for Opaque {
    fn default() -> Self {
        Self { to_client: Some(Scanner::new()), to_broker: Some(Scanner::new()), disconnected: None }
    }
}

impl Codec for Opaque {
    const INSPECTS: bool = false;

    #[inline]
    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], _: &mut Injected) -> Result<&'c [u8], Ending> {
        let scanner = match direction {
            Direction::ToClient => &mut self.to_client,
            Direction::ToBroker => &mut self.to_broker,
        };
        let disconnected = &mut self.disconnected;
        let on_packet = |header: FixedHeader| {
            // Other flags make the packet malformed [MQTT-3.14.1-1]: the receiver closes the connection because of that.
            if header.packet_type == PacketType::Disconnect && header.flags == 0 {
                disconnected.get_or_insert(direction);
            }
        };
        if scanner.as_mut().is_some_and(|scanner| scanner.scan(chunk, on_packet).is_err()) {
            *scanner = None;
        }
        Ok(chunk)
    }

    fn disconnected(&self) -> Option<Direction> {
        self.disconnected
    }

    fn is_between_packets_to_broker(&self) -> bool {
        let is_at_boundary = |mut scanner: Scanner| scanner.scan(&[], |_| ()) == Ok(Some(0));
        self.to_broker.is_some_and(is_at_boundary) && self.disconnected != Some(Direction::ToBroker)
    }

    /// Limits apply to sessions that are inspected from their beginning. Those that topic rules or a mountpoint bind are ended
    /// before it comes to this.
    fn set_rules(&mut self, _: Arc<PacketRules>) -> Result<(), Ending> {
        Ok(())
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        // On a copy, because `chunk` is not consumed yet.
        let Some(mut scanner) = self.to_client else { return Boundary::Never };
        match scanner.scan(chunk, |_| ()) {
            Ok(Some(offset)) => Boundary::At(offset),
            Ok(None) => Boundary::Later,
            Err(_) => Boundary::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PINGRESP, and the header of a PUBLISH without its payload.
    const PINGRESP_AND_HALF_A_PUBLISH: &[u8] = b"\xd0\x00\x30\x06\x00\x01a";

    fn take(codec: &mut Opaque, direction: Direction, chunk: &[u8]) {
        let mut injected = Injected::default();
        assert_eq!(codec.take(direction, chunk, &mut injected), Ok(chunk));
        assert!(injected.forward.is_empty() && injected.reply.is_empty());
    }

    #[test]
    fn the_last_boundary_in_a_chunk_is_found() {
        let mut codec = Opaque::default();
        assert_eq!(codec.boundary(&[]), Boundary::At(0));
        assert_eq!(codec.boundary(PINGRESP_AND_HALF_A_PUBLISH), Boundary::At(2));
        take(&mut codec, Direction::ToClient, PINGRESP_AND_HALF_A_PUBLISH);
        assert_eq!(codec.boundary(&[]), Boundary::Later);
        assert_eq!(codec.boundary(b"al"), Boundary::Later);
        assert_eq!(codec.boundary(b"al!\xd0\x00\x30"), Boundary::At(5));
    }

    #[test]
    fn what_the_client_sends_moves_no_boundary() {
        let mut codec = Opaque::default();
        take(&mut codec, Direction::ToBroker, PINGRESP_AND_HALF_A_PUBLISH);
        take(&mut codec, Direction::ToBroker, b"\x00");
        assert_eq!(codec.boundary(&[]), Boundary::At(0));
    }

    #[test]
    fn the_first_disconnect_is_seen_however_it_is_split() {
        for chunks in
            [&[&b"\xe0\x00"[..]][..], &[b"\xe0", b"\x00"], &[b"\x30\x03\x00\x01a\xe0", b"\x00"], &[b"\xe0\x01\x04"]]
        {
            let mut codec = Opaque::default();
            chunks.iter().for_each(|chunk| take(&mut codec, Direction::ToBroker, chunk));
            take(&mut codec, Direction::ToClient, b"\xe0\x01\x8e");
            assert_eq!(codec.disconnected(), Some(Direction::ToBroker), "{chunks:?}");
        }
        let mut codec = Opaque::default();
        // In a payload.
        take(&mut codec, Direction::ToBroker, b"\x30\x05\x00\x01a\xe0\x00");
        assert_eq!(codec.disconnected(), None);
        // Malformed.
        take(&mut codec, Direction::ToBroker, b"\xe1\x00");
        assert_eq!(codec.disconnected(), None);
    }

    #[test]
    fn bytes_that_are_not_mqtt_pass_and_have_no_boundary() {
        let mut codec = Opaque::default();
        assert_eq!(codec.boundary(b"\x00"), Boundary::Never);
        take(&mut codec, Direction::ToClient, b"\xd0\x00\x00");
        take(&mut codec, Direction::ToClient, b"\xd0\x00");
        assert_eq!(codec.boundary(b"\xd0\x00"), Boundary::Never);
    }
}
