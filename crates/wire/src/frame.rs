//! Finds where packets begin and end, without decoding them.

use crate::reader::{varint, varint_len};
use crate::{Error, Rule};

/// The largest remaining length the protocol can express: 268,435,455 bytes [MQTT-1.5.5].
pub const MAX_REMAINING_LENGTH: u32 = 0x0fff_ffff;

/// The type of a control packet [MQTT-2.1.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum PacketType {
    Connect = 1,
    Connack,
    Publish,
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
    Subscribe,
    Suback,
    Unsubscribe,
    Unsuback,
    Pingreq,
    Pingresp,
    Disconnect,
    Auth,
}

impl PacketType {
    /// The type in the upper four bits of a packet's first byte; `None` for the reserved 0.
    #[inline]
    pub const fn of(first_byte: u8) -> Option<Self> {
        Some(match first_byte >> 4 {
            1 => Self::Connect,
            2 => Self::Connack,
            3 => Self::Publish,
            4 => Self::Puback,
            5 => Self::Pubrec,
            6 => Self::Pubrel,
            7 => Self::Pubcomp,
            8 => Self::Subscribe,
            9 => Self::Suback,
            10 => Self::Unsubscribe,
            11 => Self::Unsuback,
            12 => Self::Pingreq,
            13 => Self::Pingresp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }
}

/// The first bytes of every control packet [MQTT-2.1.1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedHeader {
    /// The type of the packet.
    pub packet_type: PacketType,
    /// The lower four bits of the first byte.
    pub flags: u8,
    /// The length of the body, in bytes.
    pub remaining_length: u32,
    /// The length of the header itself, 2 to 5 bytes.
    pub len: usize,
}

impl FixedHeader {
    /// Decodes the header at the front of `bytes`. Returns `Ok(None)` if it is incomplete.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let packet_type = PacketType::of(first).ok_or(Rule::PacketTypeReserved)?;
        let Some((remaining_length, length_bytes)) = varint(rest)? else { return Ok(None) };
        Ok(Some(Self { packet_type, flags: first & 0x0f, remaining_length, len: 1 + length_bytes }))
    }

    /// The length of header and body together, in bytes.
    #[inline]
    pub const fn packet_len(&self) -> usize {
        self.len + self.remaining_length as usize
    }

    /// Whether the remaining length is encoded in the fewest bytes, as MQTT 5 requires [MQTT-1.5.5-1].
    #[inline]
    pub(crate) const fn is_shortest(&self) -> bool {
        self.len == 1 + varint_len(self.remaining_length)
    }
}

/// Tracks packet boundaries in a stream that arrives in arbitrary chunks. A packet may be injected only at a boundary.
/// Holds eight bytes, never a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanner {
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Boundary,
    /// Inside a fixed header, of which `len` bytes have arrived: at most four, since the fifth completes it.
    Header { bytes: [u8; 4], len: u8 },
    /// Inside a body of which this many bytes are still to arrive; never 0.
    Body(u32),
}

impl Scanner {
    /// Creates a scanner at a packet boundary.
    pub const fn new() -> Self {
        Self { state: State::Boundary }
    }

    /// Whether the bytes scanned so far end at a packet boundary.
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Boundary)
    }

    /// Scans the next `chunk` and calls `on_packet` with each fixed header that it completes. Returns the offset in `chunk`
    /// of the last boundary: 0 is the boundary before its first byte, `None` means that the chunk contains none.
    ///
    /// # Errors
    /// The stream is not MQTT. Results of later calls are meaningless.
    pub fn scan(&mut self, chunk: &[u8], mut on_packet: impl FnMut(FixedHeader)) -> Result<Option<usize>, Error> {
        let mut boundary = self.at_boundary().then_some(0);
        let mut rest = chunk;
        while !rest.is_empty() {
            rest = match self.state {
                State::Boundary => match FixedHeader::decode(rest)? {
                    Some(header) => {
                        on_packet(header);
                        self.enter_body(header.remaining_length);
                        rest.get(header.len..).unwrap_or_default()
                    }
                    None => return Ok(self.keep_header(rest, [0; 4], 0, boundary)),
                },
                State::Header { bytes, len } => self.resume_header(bytes, len, rest, &mut on_packet)?,
                State::Body(left) => {
                    let here = rest.len().min(left as usize);
                    self.enter_body(left - u32::try_from(here).unwrap_or(left));
                    rest.get(here..).unwrap_or_default()
                }
            };
            if self.at_boundary() {
                boundary = Some(chunk.len() - rest.len());
            }
        }
        Ok(boundary)
    }

    fn enter_body(&mut self, left: u32) {
        self.state = if left == 0 { State::Boundary } else { State::Body(left) };
    }

    fn keep_header(&mut self, part: &[u8], bytes: [u8; 4], len: u8, boundary: Option<usize>) -> Option<usize> {
        let (mut bytes, mut len) = (bytes, len);
        for (slot, &byte) in bytes.iter_mut().skip(usize::from(len)).zip(part) {
            *slot = byte;
            len += 1;
        }
        self.state = State::Header { bytes, len };
        boundary
    }

    /// Continues a header of which `len` bytes arrived in earlier chunks. Takes one byte per call: headers that are split
    /// between chunks are rare and at most five bytes long.
    fn resume_header<'c>(
        &mut self,
        bytes: [u8; 4],
        len: u8,
        rest: &'c [u8],
        on_packet: &mut impl FnMut(FixedHeader),
    ) -> Result<&'c [u8], Error> {
        let Some((&byte, behind)) = rest.split_first() else { return Ok(rest) };
        let mut whole = [0; 5];
        for (slot, known) in whole.iter_mut().zip(bytes.iter().take(usize::from(len)).chain([&byte])) {
            *slot = *known;
        }
        match FixedHeader::decode(whole.get(..=usize::from(len)).unwrap_or_default())? {
            Some(header) => {
                on_packet(header);
                self.enter_body(header.remaining_length);
            }
            None => {
                self.keep_header(&[byte], bytes, len, None);
            }
        }
        Ok(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn length_of_five_bytes_is_malformed() {
        let error = FixedHeader::decode(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01]);
        assert_eq!(error, Err(Error::Malformed(Rule::RemainingLength)));
        assert_eq!(Scanner::new().scan(&[0x30, 0xff, 0xff, 0xff, 0xff], |_| ()), Err(Rule::RemainingLength.into()));
    }

    #[test]
    fn largest_length_is_followed() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.scan(&[0x30, 0xff, 0xff, 0xff, 0x7f, 1], |_| ()), Ok(Some(0)));
        assert!(!scanner.at_boundary());
        let zeros = vec![0; 1 << 20];
        let mut left = MAX_REMAINING_LENGTH as usize - 1;
        while left > 0 {
            let here = left.min(zeros.len());
            scanner.scan(&zeros[..here], |_| ()).unwrap();
            left -= here;
        }
        assert!(scanner.at_boundary());
    }

    fn packet() -> impl Strategy<Value = Vec<u8>> {
        (1_u8..=15, 0_u8..16, prop_oneof![0_usize..5, 120_usize..135, 16_380_usize..16_390]).prop_map(
            |(kind, flags, len)| {
                let mut bytes = vec![kind << 4 | flags];
                crate::reader::put_varint(u32::try_from(len).unwrap(), &mut bytes);
                bytes.resize(bytes.len() + len, 0x42);
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_packets_and_boundaries(
            packets in prop::collection::vec(packet(), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let stream = packets.concat();
            let ends: Vec<usize> =
                packets.iter().scan(0, |end, packet| { *end += packet.len(); Some(*end) }).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (mut scanner, mut seen) = (Scanner::new(), Vec::new());
            for cut in cuts.windows(2) {
                let (from, to) = (cut[0], cut[1]);
                let boundary = scanner.scan(&stream[from..to], |header| seen.push(header.packet_len())).unwrap();
                let expected = ends.iter().copied().chain([0]).filter(|end| (from..=to).contains(end)).max();
                prop_assert_eq!(boundary.map(|offset| from + offset), expected);
                prop_assert_eq!(scanner.at_boundary(), to == 0 || ends.contains(&to));
            }
            prop_assert_eq!(seen, packets.iter().map(Vec::len).collect::<Vec<_>>());
        }

        #[test]
        fn garbage_never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut scanner = Scanner::new();
            for chunk in chunks {
                if let Ok(Some(offset)) = scanner.scan(&chunk, |_| ()) {
                    prop_assert!(offset <= chunk.len());
                }
            }
        }
    }
}
