//! Rejects a client whose ClientHello announces more bytes than any needs, before OpenSSL sees it: OpenSSL makes room for as
//! many bytes as the message's header announces, up to 128 KiB, when it has nothing but that header.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The limit of a ClientHello, in bytes: 2 KB are usual.
pub(crate) const MAX_HELLO: usize = 16 << 10;

/// Types of records and of messages [RFC 8446, 5.1 and 4].
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// A connection that ends with an error of kind `InvalidData` at the header of a ClientHello that is too large.
#[derive(Debug)]
pub(crate) struct HelloLimit<S> {
    connection: S,
    /// `None`: no ClientHello can come any more.
    scan: Option<Scan>,
}

impl<S> HelloLimit<S> {
    pub(crate) fn new(connection: S) -> Self {
        Self { connection, scan: Some(Scan::default()) }
    }

    /// The handshake is complete.
    pub(crate) const fn end(&mut self) {
        self.scan = None;
    }

    pub(crate) const fn get_ref(&self) -> &S {
        &self.connection
    }

    pub(crate) const fn get_mut(&mut self) -> &mut S {
        &mut self.connection
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HelloLimit<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { connection, scan } = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(connection).poll_read(cx, buf))?;
        if let Some(scanner) = scan {
            match scanner.read(&buf.filled()[before..]) {
                Ok(Next::Hello) => {}
                Ok(Next::Other) => *scan = None,
                Err(TooLarge) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HelloLimit<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(cx)
    }
}

/// What may come next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// A ClientHello, or the rest of one. After the first, a HelloRetryRequest makes the client send another.
    Hello,
    Other,
}

#[derive(Debug, PartialEq, Eq)]
struct TooLarge;

/// Follows records and the messages in them, however they are split, until another message than ClientHello comes: in TLS 1.2
/// ClientKeyExchange, behind which records of messages are encrypted. In TLS 1.3 these have another type. OpenSSL ignores some records
/// before a second ClientHello: ChangeCipherSpec, warnings, early data.
#[derive(Debug, Default)]
struct Scan {
    record: Header<5>,
    /// What is left of the record.
    record_rest: usize,
    message: Header<4>,
    /// What is left of the message.
    message_rest: usize,
}

impl Scan {
    fn read(&mut self, mut bytes: &[u8]) -> Result<Next, TooLarge> {
        while !bytes.is_empty() {
            if self.record_rest == 0 {
                let Some([_, _, _, len @ ..]) = self.record.fill(&mut bytes) else { break };
                self.record_rest = usize::from(u16::from_be_bytes(len));
                continue;
            }
            let (body, rest) = bytes.split_at(bytes.len().min(self.record_rest));
            if self.record.bytes[0] == HANDSHAKE && self.read_messages(body)? == Next::Other {
                return Ok(Next::Other);
            }
            self.record_rest -= body.len();
            bytes = rest;
        }
        Ok(Next::Hello)
    }

    fn read_messages(&mut self, mut bytes: &[u8]) -> Result<Next, TooLarge> {
        while !bytes.is_empty() {
            if self.message_rest == 0 {
                let Some([kind, len @ ..]) = self.message.fill(&mut bytes) else { break };
                if kind != CLIENT_HELLO {
                    return Ok(Next::Other);
                }
                self.message_rest = len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                if self.message_rest > MAX_HELLO {
                    return Err(TooLarge);
                }
            }
            let body = bytes.len().min(self.message_rest);
            (bytes, self.message_rest) = (&bytes[body..], self.message_rest - body);
        }
        Ok(Next::Hello)
    }
}

/// A header of N bytes, as far as it has come.
#[derive(Debug)]
struct Header<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Header<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Header<N> {
    /// Takes what is missing from the beginning of `bytes`. Returns the header when it is complete, and begins the next one.
    fn fill(&mut self, bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (part, rest) = bytes.split_at(bytes.len().min(N - self.len));
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        (*bytes, self.len) = (rest, self.len + part.len());
        let is_complete = self.len == N;
        if is_complete {
            self.len = 0;
        }
        is_complete.then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], &len[..], body].concat()
    }

    fn message(kind: u8, announced: usize, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(announced).unwrap().to_be_bytes();
        [&[kind], &len[1..], body].concat()
    }

    fn hello(len: usize) -> Vec<u8> {
        message(CLIENT_HELLO, len, &vec![CLIENT_HELLO; len])
    }

    /// What comes of these bytes, in chunks of each of several lengths.
    fn scan(bytes: &[u8]) -> Result<Next, TooLarge> {
        let in_chunks = |len| {
            let mut scan = Scan::default();
            let ends = |next: &Result<Next, TooLarge>| *next != Ok(Next::Hello);
            bytes.chunks(len).map(|chunk| scan.read(chunk)).find(ends).unwrap_or(Ok(Next::Hello))
        };
        let result = in_chunks(bytes.len());
        for len in [1, 2, 3, 4, 5, 7, 100] {
            assert_eq!(in_chunks(len), result, "chunks of {len}");
        }
        result
    }

    #[test]
    fn a_hello_that_is_too_large_ends_at_its_header_wherever_it_is() {
        let (first, change) = (record(HANDSHAKE, &hello(300)), record(20, &[1]));
        for len in [MAX_HELLO + 1, 131_396, 0xff_ffff] {
            let header = message(CLIENT_HELLO, len, b"");
            let whole = record(HANDSHAKE, &header);
            let split: Vec<u8> = header.iter().flat_map(|byte| record(HANDSHAKE, &[*byte])).collect();
            let empty = [record(HANDSHAKE, b""), whole.clone()].concat();
            for hello in [whole, split, empty] {
                assert_eq!(scan(&hello), Err(TooLarge));
                assert_eq!(scan(&[&first[..], &hello].concat()), Err(TooLarge), "after HelloRetryRequest");
                for ignored in [&change, &record(21, &[1, 90]), &record(23, b"x")] {
                    assert_eq!(scan(&[&first[..], ignored, &hello].concat()), Err(TooLarge), "{ignored:?}");
                }
            }
            assert_eq!(scan(&record(HANDSHAKE, &[hello(100), header].concat())), Err(TooLarge), "in one record");
        }
    }

    #[test]
    fn what_clients_send_passes() {
        let fragments: Vec<u8> = hello(MAX_HELLO).chunks(1000).flat_map(|part| record(HANDSHAKE, part)).collect();
        assert_eq!(scan(&fragments), Ok(Next::Hello));
        let first = record(HANDSHAKE, &hello(300));
        assert_eq!(scan(&[&first[..], &record(20, &[1]), &first].concat()), Ok(Next::Hello));
        // Of what is encrypted, any byte may look like the header of a message.
        let encrypted = message(CLIENT_HELLO, 0xff_ffff, b"");
        assert_eq!(scan(&[&first[..], &record(23, &encrypted)].concat()), Ok(Next::Hello), "TLS 1.3");
        let exchange = record(HANDSHAKE, &message(16, 6, b"\0\x04pump"));
        let finished = [record(20, &[1]), record(HANDSHAKE, &encrypted)].concat();
        assert_eq!(scan(&[&first[..], &exchange, &finished].concat()), Ok(Next::Other), "TLS 1.2");
        assert_eq!(scan(b"\x10\x0c\x00\x04MQTT\x04"), Ok(Next::Hello), "not TLS");
    }
}
