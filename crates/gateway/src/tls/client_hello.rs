//! The tickets that a ClientHello offers [RFC 8446, 4.2.11; RFC 5077, 3.2]. Enters: the bytes that a client has sent first.
//! Leaves: the tickets in them. Only for the order in which handshakes are served: rustls processes the message.

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
/// The length of a message's header [RFC 8446, 4].
const HEADER: usize = 4;
/// The versions and the random of a ClientHello.
const RANDOM_END: usize = 2 + 32;

/// The ticket that the client offers; `None`: none, or the message is incomplete, in several records, or malformed.
pub(super) fn ticket(received: &[u8]) -> Option<&[u8]> {
    let mut record = Reader(received);
    let ([HANDSHAKE_RECORD, 3, _], mut message) = (record.array::<3>()?, record.part::<2>()?) else { return None };
    let ([CLIENT_HELLO], mut hello) = (message.array()?, message.part::<3>()?) else { return None };
    hello.bytes(RANDOM_END)?;
    let (_session_id, _suites, _compression) = (hello.part::<1>()?, hello.part::<2>()?, hello.part::<1>()?);
    let mut extensions = hello.part::<2>()?;
    while !extensions.0.is_empty() {
        let (kind, mut content) = (u16::from_be_bytes(extensions.array()?), extensions.part::<2>()?);
        let ticket = match kind {
            SESSION_TICKET => content.0,
            // Only the first identity, as rustls.
            PRE_SHARED_KEY => content.part::<2>()?.part::<2>()?.0,
            _ => continue,
        };
        if !ticket.is_empty() {
            return Some(ticket);
        }
    }
    None
}

/// How much of the first message has come, in however many records. Looks at each record once: a client may send them byte by
/// byte.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where the first record begins that has not been seen as a whole.
    at: usize,
    /// The header of the message, as far as it has come.
    header: Vec<u8>,
    /// The bytes of the message so far.
    len: usize,
}

impl Progress {
    /// Whether the first message is complete. `received` is all that the client has sent. What is no ClientHello is for rustls to
    /// reject.
    pub(super) fn is_complete(&mut self, received: &[u8]) -> bool {
        loop {
            let mut record = Reader(received.get(self.at..).unwrap_or_default());
            let Some([kind, major, _]) = record.array() else {
                return received.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD);
            };
            if kind != HANDSHAKE_RECORD || major != 3 {
                return true;
            }
            let Some(part) = record.part::<2>() else { return false };
            self.at = received.len() - record.0.len();
            self.header.extend(part.0.iter().take(HEADER - self.header.len()));
            self.len += part.0.len();
            if let [kind, high, middle, low] = self.header[..] {
                let message = HEADER + usize::from(u16::from_be_bytes([middle, low])) + (usize::from(high) << 16);
                if kind != CLIENT_HELLO || self.len >= message {
                    return true;
                }
            }
        }
    }
}

/// Bytes from the beginning on.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn bytes(&mut self, len: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// What follows its length of `N` bytes.
    fn part<const N: usize>(&mut self) -> Option<Self> {
        let len = self.array::<N>()?.into_iter().fold(0, |len, byte| len << 8 | usize::from(byte));
        self.bytes(len).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello with these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let len = |len: usize| u16::try_from(len).unwrap().to_be_bytes();
        let mut all = Vec::new();
        for (kind, content) in extensions {
            all.extend([&kind.to_be_bytes()[..], &len(content.len()), content].concat());
        }
        let random = [7; RANDOM_END];
        let hello = [&random[..], &[1, 9], &len(2), &[0x13, 1], &[1, 0], &len(all.len()), &all].concat();
        let message = [&[CLIENT_HELLO, 0][..], &len(hello.len()), &hello].concat();
        [&[HANDSHAKE_RECORD, 3, 1][..], &len(message.len()), &message].concat()
    }

    #[test]
    fn tickets_of_both_versions_are_found_and_nothing_else() {
        let is_complete = |received: &[u8]| Progress::default().is_complete(received);
        let psk = [&[0, 10, 0, 4][..], b"tick", &[0, 0, 0, 1]].concat();
        assert_eq!(ticket(&hello(&[(0, b"x"), (PRE_SHARED_KEY, &psk)])), Some(&b"tick"[..]));
        assert_eq!(ticket(&hello(&[(SESSION_TICKET, b""), (PRE_SHARED_KEY, &psk)])), Some(&b"tick"[..]));
        assert_eq!(ticket(&hello(&[(SESSION_TICKET, b"old")])), Some(&b"old"[..]));
        assert_eq!(ticket(&hello(&[(SESSION_TICKET, b""), (51, b"key share")])), None);
        let whole = hello(&[(PRE_SHARED_KEY, &psk)]);
        for end in 0..whole.len() {
            assert_eq!(ticket(&whole[..end]), None, "{end}");
            assert!(!is_complete(&whole[..end]), "{end}");
        }
        assert!(is_complete(&whole));
        // In records of a byte each.
        let small: Vec<u8> = whole[5..].iter().flat_map(|byte| [HANDSHAKE_RECORD, 3, 1, 0, 1, *byte]).collect();
        assert!(is_complete(&small) && !is_complete(&small[..small.len() - 1]));
        for received in [&whole, &small] {
            let mut progress = Progress::default();
            let complete = (0..=received.len()).find(|end| progress.is_complete(&received[..*end]));
            assert_eq!(complete, Some(received.len()));
            // Nothing is read twice.
            assert_eq!(progress.len, whole.len() - 5);
        }
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"\x15\x03\x01\x00\x02\x01\x00",
            b"\x16\x02\x00",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        ] {
            assert!(is_complete(other), "{other:?}");
        }
        for position in 0..whole.len() {
            for value in [0, 1, 0xff] {
                let mut changed = whole.clone();
                changed[position] = value;
                // Whatever it is, it is in what was received.
                assert!(ticket(&changed).is_none_or(|ticket| changed.windows(ticket.len()).any(|it| it == ticket)));
            }
        }
    }
}
