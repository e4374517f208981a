//! A client's TLS connection after its handshake, as a byte stream. Enters: a socket and its record layer. Leaves: plaintext
//! both ways.
//!
//! Records are read into a buffer of the thread, as many as have arrived, and decrypted there; what is written becomes records
//! in one write. Between two polls, a connection keeps only the beginning of an incomplete record, plaintext that did not fit
//! into the reader's buffer, and what the socket did not take: nothing, while it is idle.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, Error, ExtractedSecrets, SupportedCipherSuite};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::record_keys::{HEADER, MAX_PLAINTEXT, Records, TrafficSecrets};
use super::record_layer::{Broken, Content, RecordLayer};

/// What a record adds to its plaintext at most, in the ciphers that the gateway has: header, explicit nonce or type, tag.
const OVERHEAD: usize = 32;
/// The size of a thread's buffer for received records: those of a full write.
const BUFFER: usize = MAX_WRITE + 4 * OVERHEAD;
/// The limit of plaintext that one write encrypts.
const MAX_WRITE: usize = 64 << 10;
/// The limit of what is left of a handshake that goes along with the first write.
const MAX_LEFT: usize = 16 << 10;
/// The size of a thread's buffer for records to be sent: those of a full write, with a key update and an alert.
const OUTGOING: usize = MAX_LEFT + BUFFER + 4 * OVERHEAD;

/// How many records one read decrypts, so that a client that sends the smallest does not take the time of others: a full buffer
/// contains fewer of the usual ones.
const MAX_WORK: usize = 1024;
/// The work of a record without data, in records: a key update derives a key.
const CONTROL_WORK: usize = 16;

thread_local! {
    static RECORDS: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; OUTGOING].into());
}

/// An encrypted connection to a client.
#[derive(Debug)]
pub(crate) struct TlsStream<S> {
    socket: S,
    records: RecordLayer,
    /// The beginning of a record.
    incoming: Vec<u8>,
    /// Decrypted bytes that nobody has read yet.
    plain: Vec<u8>,
    /// Records that the socket has not taken.
    outgoing: Vec<u8>,
    /// The socket took less than it was given.
    is_blocked: bool,
    /// The client has sent close_notify.
    is_closed: bool,
    /// Why the connection has to be closed, once what was received before is read.
    broken: Option<Broken>,
    /// No more records are sent: a fatal alert or close_notify was the last one.
    is_ended: bool,
}

/// What a handshake leaves behind.
pub(crate) struct Leftovers {
    /// Bytes of the client that follow its last message of the handshake.
    pub(crate) incoming: Vec<u8>,
    /// Records of the handshake that have not been sent.
    pub(crate) outgoing: Vec<u8>,
}

impl<S> TlsStream<S> {
    /// Continues a connection whose handshake rustls has completed. `secrets` were the key log of that handshake.
    ///
    /// # Errors
    /// As [`RecordLayer::new`].
    pub(crate) fn new(
        socket: S,
        suite: SupportedCipherSuite,
        extracted: ExtractedSecrets,
        secrets: &TrafficSecrets,
        leftovers: Leftovers,
    ) -> Result<Self, Error> {
        Ok(Self {
            socket,
            records: RecordLayer::new(suite, extracted, secrets)?,
            incoming: leftovers.incoming,
            plain: Vec::new(),
            outgoing: leftovers.outgoing,
            is_blocked: false,
            is_closed: false,
            broken: None,
            is_ended: false,
        })
    }

    /// Replaces the socket below, in the same memory.
    ///
    /// # Errors
    /// Those of `replace`.
    pub(crate) fn try_map(mut self: Box<Self>, replace: impl FnOnce(S) -> io::Result<S>) -> io::Result<Box<Self>> {
        let stream = *self;
        let socket = replace(stream.socket)?;
        *self = Self { socket, ..stream };
        Ok(self)
    }

    /// Lets one key encrypt no more than so many records.
    #[cfg(test)]
    pub(crate) const fn limit_records(&mut self, max_sent: u64) {
        self.records.limit_records(max_sent);
    }

    /// The bytes of memory held for buffers.
    #[cfg(test)]
    pub(crate) const fn buffered(&self) -> usize {
        self.incoming.capacity() + self.plain.capacity() + self.outgoing.capacity()
    }

    /// The socket below, for closing it.
    pub(crate) const fn socket(&self) -> &S {
        &self.socket
    }

    /// As [`socket`](Self::socket).
    pub(crate) const fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Writes the records that wait.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.outgoing[sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.outgoing.drain(..sent);
                    self.is_blocked = true;
                    return Poll::Pending;
                }
            }
        }
        (self.outgoing, self.is_blocked) = (Vec::new(), false);
        Poll::Ready(Ok(()))
    }

    /// Writes new records as far as the socket takes them. None may wait before them.
    fn send(&mut self, cx: &mut Context<'_>, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, records) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => records = &records[written..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    (self.outgoing, self.is_blocked) = (records.to_vec(), true);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads once, and decrypts what is complete. Ready once there is something for the reader, or the client has closed.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        RECORDS.with_borrow_mut(|buffer| {
            loop {
                let had = self.incoming.len();
                let mut received = had;
                buffer[..had].copy_from_slice(&self.incoming);
                // Without waiting for more bytes if the header is not one.
                let first = RecordLayer::record_len(&self.incoming).unwrap_or(Some(0));
                // What a handshake leaves may be a whole record.
                if first.is_none_or(|first| first > had) {
                    // Plaintext is shorter than its records, so what fills the reader's buffer fits into it; of full records,
                    // also the last one.
                    let full = buf.remaining() + buf.remaining() / MAX_PLAINTEXT * OVERHEAD;
                    let until = full.max(first.unwrap_or(had + HEADER)).min(BUFFER);
                    let mut unread = ReadBuf::new(&mut buffer[had..until]);
                    ready!(Pin::new(&mut self.socket).poll_read(cx, &mut unread))?;
                    received += unread.filled().len();
                    if received == had {
                        // Without close_notify, somebody else may have cut the connection [RFC 8446, 6.1].
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                match self.decrypt(&mut buffer[..received], buf) {
                    Ok(used) => self.incoming = buffer[used..received].to_vec(),
                    Err(broken) => {
                        self.incoming = Vec::new();
                        self.broken = Some(broken);
                    }
                }
                if self.is_closed || buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
                if let Some(broken) = self.broken {
                    return Poll::Ready(Err(self.end(cx, broken)));
                }
            }
        })
    }

    /// Decrypts whole records into `buf`, and into `plain` what does not fit: no more than take [`MAX_WORK`] together. Returns how
    /// many bytes they were.
    fn decrypt(&mut self, received: &mut [u8], buf: &mut ReadBuf<'_>) -> Result<usize, Broken> {
        let (mut used, mut work) = (0, 0);
        while work < MAX_WORK
            && let Some(len) = RecordLayer::record_len(&received[used..])?.filter(|len| used + len <= received.len())
        {
            work += 1;
            // What does not fit is behind what waits for the reader.
            let place =
                if self.plain.is_empty() { buf.initialize_unfilled_to(len.min(buf.remaining())) } else { &mut [] };
            match self.records.open(&mut received[used..used + len], place)? {
                Content::Placed(len) => buf.advance(len),
                Content::Data(data) => {
                    let fits = if self.plain.is_empty() { data.len().min(buf.remaining()) } else { 0 };
                    buf.put_slice(&data[..fits]);
                    self.plain.extend_from_slice(&data[fits..]);
                }
                Content::Control => work += CONTROL_WORK,
                Content::Closed => {
                    self.is_closed = true;
                    // What follows is ignored [RFC 8446, 6.1].
                    return Ok(received.len());
                }
            }
            used += len;
        }
        Ok(used)
    }

    /// Ends the connection because of what was received. The alert is sent if the socket takes it at once.
    fn end(&mut self, cx: &mut Context<'_>, broken: Broken) -> io::Error {
        if let Broken::Alert(alert) = broken
            && !self.is_ended
            && let Ok(record) = self.records.seal_alert(alert)
        {
            self.outgoing.extend(record);
            let _ = self.poll_send(cx);
        }
        self.is_ended = true;
        io::Error::new(io::ErrorKind::InvalidData, broken)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.plain.is_empty() {
            let fits = this.plain.len().min(buf.remaining());
            buf.put_slice(&this.plain[..fits]);
            if fits == this.plain.len() {
                this.plain = Vec::new();
            } else {
                this.plain.drain(..fits);
            }
            return Poll::Ready(Ok(()));
        }
        if this.is_closed || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(broken) = this.broken {
            return Poll::Ready(Err(this.end(cx, broken)));
        }
        let received = this.poll_receive(cx, buf);
        if received.is_pending() && !this.outgoing.is_empty() {
            // The last records of the handshake wait to be sent with the first write. The client may wait for them before it sends:
            // send them alone.
            let _ = this.poll_send(cx)?;
        }
        received
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.is_blocked {
            ready!(this.poll_send(cx))?;
        }
        if this.outgoing.len() > MAX_LEFT {
            ready!(this.poll_send(cx))?;
        }
        SEALED.with_borrow_mut(|buffer| {
            let mut records = Records::new(buffer);
            // The end of the handshake goes along.
            records.push(&std::mem::take(&mut this.outgoing)).map_err(io::Error::other)?;
            let bytes = &bytes[..bytes.len().min(MAX_WRITE)];
            let sealed = bytes.chunks(MAX_PLAINTEXT).try_for_each(|chunk| this.records.seal(chunk, &mut records));
            if sealed.is_err()
                && let Ok(end) = this.records.seal_alert(AlertDescription::CloseNotify)
                && records.push(&end).is_ok()
            {
                // The keys are used up. The client is not to take that for an attack.
                this.is_ended = true;
            }
            this.send(cx, records.as_slice())?;
            sealed.map_err(io::Error::other)?;
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.is_ended, true) {
            let record = this.records.seal_alert(AlertDescription::CloseNotify).map_err(io::Error::other)?;
            this.outgoing.extend(record);
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
