//! The UDP socket of an endpoint, which passes from one process to the next. All connections of an endpoint share one socket, so
//! that a process which inherits it also receives the datagrams of connections that stay with the old process. Each process has
//! connection IDs of its own [RFC 9000, 5.1]; the new one reads all datagrams, and passes those of the old one on to it by a
//! Unix socket. Both send by the UDP socket.
//!
//! A process passes on what is its predecessor's, not what is that one's predecessor's: connections end that have outlived two.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::InvalidCid;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

/// The length of connection IDs. They begin with the mark of their process.
const ID_LEN: usize = 8;
/// The bits of the first byte that say which header it is, and of a long header which packet [RFC 9000, 17.2].
const LONG: u8 = 0x80;
const TYPE: u8 = 0x30;
const INITIAL: u8 = 0x00;
/// The length of the secrets that pass to the next process.
const SECRETS: usize = 64;
/// The largest datagram, with what is said of it.
const MAX_DATAGRAM: usize = 64 << 10;

/// What connection IDs of one process begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark([u8; 3]);

impl Mark {
    /// That of this process.
    pub(crate) fn own() -> Self {
        static OWN: LazyLock<Mark> = LazyLock::new(|| Mark(rand::random()));
        *OWN
    }

    /// The name of a socket by which the datagrams of this process are passed on.
    pub(crate) fn name(self) -> String {
        format!("quic-{}", hex::encode(self.0))
    }

    /// Reads such a name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let mut mark = [0; 3];
        hex::decode_to_slice(name.strip_prefix("quic-")?, &mut mark).ok()?;
        Some(Self(mark))
    }

    /// Whether a datagram is of a connection of this process, by its connection ID: it has the short header of an established
    /// connection, or a long one [RFC 9000, 17.2, 17.3]. Initial packets are of nobody yet: the client may have got the ID in a
    /// Retry, after which any process can accept it.
    fn is_of(self, datagram: &[u8]) -> bool {
        match datagram {
            [first, id @ ..] if first & LONG == 0 => id.starts_with(&self.0),
            [first, _, _, _, _, len, id @ ..] => {
                first & TYPE != INITIAL && usize::from(*len) == ID_LEN && id.starts_with(&self.0)
            }
            _ => false,
        }
    }
}

/// Makes the connection IDs of this process.
pub(super) struct OwnIds {
    /// What those of its predecessor begin with.
    pub(super) before: Option<Mark>,
}

impl ConnectionIdGenerator for OwnIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN];
        rand::rng().fill_bytes(&mut id);
        id[..3].copy_from_slice(&Mark::own().0);
        ConnectionId::new(&id)
    }

    /// Others get no stateless reset: their connections may be alive elsewhere.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let is_known = [Some(Mark::own()), self.before].into_iter().flatten().any(|mark| id.starts_with(&mark.0));
        if is_known { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// What an endpoint proves to clients that it has sent something: Retry and other tokens, and stateless resets. Each process that
/// serves the socket has the same.
#[derive(Clone)]
pub(super) struct EndpointSecrets([u8; SECRETS]);

impl EndpointSecrets {
    /// New ones, or those of the process from which the socket was inherited.
    pub(super) fn of(predecessor: Option<&QuicPredecessor>) -> io::Result<Self> {
        let mut secrets = [0; SECRETS];
        if let Some(predecessor) = predecessor {
            predecessor.socket.set_nonblocking(true)?;
            if predecessor.socket.recv(&mut secrets)? == SECRETS {
                return Ok(Self(secrets));
            }
        }
        aws_lc_rs::rand::fill(&mut secrets).map_err(|_| io::Error::other("no random numbers"))?;
        Ok(Self(secrets))
    }

    /// The secret of tokens.
    pub(super) fn tokens(&self) -> &[u8] {
        &self.0[..SECRETS / 2]
    }

    /// The secret of stateless resets.
    pub(super) fn resets(&self) -> &[u8] {
        &self.0[SECRETS / 2..]
    }
}

impl std::fmt::Debug for EndpointSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointSecrets(***)")
    }
}

/// The process from which a socket was inherited, if its connections go on.
#[derive(Debug)]
pub(crate) struct QuicPredecessor {
    /// The mark of its connection IDs.
    pub(crate) mark: Mark,
    /// By which it gets their datagrams.
    pub(crate) socket: UnixDatagram,
}

/// The socket of an endpoint.
#[derive(Debug)]
pub(super) struct SharedSocket {
    udp: Arc<dyn AsyncUdpSocket>,
    state: AtomicU8,
    /// The task that reads.
    reader: AtomicWaker,
    predecessor: Option<QuicPredecessor>,
    /// For the next process, should there be one: this end of the socket that it passes datagrams on by.
    offered: Mutex<Option<UnixDatagram>>,
    successor: OnceLock<tokio::net::UnixDatagram>,
}

/// The predecessor still reads.
const WAITING: u8 = 0;
const SERVING: u8 = 1;
/// The successor reads, and passes on what is for this process.
const LEFT: u8 = 2;

/// What precedes a datagram that is passed on.
#[derive(Serialize, Deserialize)]
struct Head {
    from: SocketAddr,
    to: Option<IpAddr>,
    ecn: u8,
}

impl SharedSocket {
    pub(super) fn new(udp: Arc<dyn AsyncUdpSocket>, predecessor: Option<QuicPredecessor>) -> Self {
        let state = AtomicU8::new(if predecessor.is_some() { WAITING } else { SERVING });
        let (offered, successor) = (Mutex::default(), OnceLock::new());
        Self { udp, state, reader: AtomicWaker::new(), predecessor, offered, successor }
    }

    /// Makes the socket by which the next process passes datagrams on, and gets the secrets. Returns its end; an earlier one is
    /// void.
    ///
    /// # Errors
    /// The limit of open files is reached.
    pub(super) fn offer(&self, secrets: &EndpointSecrets) -> io::Result<UnixDatagram> {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.set_nonblocking(true)?;
        ours.send(&secrets.0)?;
        *self.offered.lock() = Some(ours);
        Ok(theirs)
    }

    /// Begins to read: the predecessor has [left](Self::leave).
    pub(super) fn serve(&self) {
        self.set_state(SERVING);
    }

    /// Leaves reading to the process to which this was [offered](Self::offer), unless that has no listener for it.
    pub(super) fn leave(&self) {
        let Some(socket) = self.offered.lock().take() else { return };
        // It has closed its end, if it does not want the socket.
        let is_taken = socket.send(&[]).is_ok();
        if is_taken && let Ok(socket) = tokio::net::UnixDatagram::from_std(socket) {
            let _ = self.successor.set(socket);
            self.set_state(LEFT);
        }
    }

    /// Whether there is a predecessor that has not ended. An empty datagram tells it nothing.
    pub(super) fn passes_on(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| predecessor.socket.send(&[]).is_ok())
    }

    fn set_state(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.reader.wake();
    }

    /// Passes on what is the predecessor's, and leaves nothing of it. If that has ended, its connections are for this process to
    /// reset.
    fn pass_on(&self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let Some(QuicPredecessor { mark, socket }) = &self.predecessor else { return };
        for (buf, meta) in bufs.iter_mut().zip(metas) {
            // The system joins datagrams of one client (GRO), which may be of several connections.
            let (stride, mut kept) = (meta.stride.max(1), 0);
            for begin in (0..meta.len).step_by(stride) {
                let end = (begin + stride).min(meta.len);
                if mark.is_of(&buf[begin..end]) && send(socket, meta, &buf[begin..end]) {
                    continue;
                }
                buf.copy_within(begin..end, kept);
                kept += end - begin;
            }
            meta.len = kept;
        }
    }

    /// Receives a datagram that the successor has passed on.
    fn poll_passed_on(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(socket), Some(buf), Some(meta)) = (self.successor.get(), bufs.first_mut(), metas.first_mut()) else {
            return Poll::Pending;
        };
        loop {
            ready!(socket.poll_recv_ready(cx))?;
            let mut received = vec![0; MAX_DATAGRAM];
            let len = match socket.try_recv(&mut received) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let Ok((head, datagram)) = postcard::take_from_bytes::<Head>(&received[..len]) else { continue };
            let Some(space) = buf.get_mut(..datagram.len()) else { continue };
            space.copy_from_slice(datagram);
            *meta = RecvMeta::default();
            (meta.addr, meta.dst_ip, meta.ecn) = (head.from, head.to, EcnCodepoint::from_bits(head.ecn));
            (meta.len, meta.stride) = (datagram.len(), datagram.len());
            return Poll::Ready(Ok(1));
        }
    }
}

/// Passes a datagram on. Returns whether the process still exists: one that does not read loses it, as any datagram may be lost.
fn send(socket: &UnixDatagram, meta: &RecvMeta, datagram: &[u8]) -> bool {
    let head = Head { from: meta.addr, to: meta.dst_ip, ecn: meta.ecn.map_or(0, |ecn| ecn as u8) };
    let Ok(head) = postcard::to_stdvec(&head) else { return true };
    match socket.send(&[&head[..], datagram].concat()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.udp).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.udp.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.reader.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            SERVING => {
                let received = ready!(self.udp.poll_recv(cx, bufs, metas))?;
                self.pass_on(&mut bufs[..received], &mut metas[..received]);
                Poll::Ready(Ok(received))
            }
            LEFT => self.poll_passed_on(cx, bufs, metas),
            _ => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_known_by_their_connection_id() {
        let mark = Mark([1, 2, 3]);
        assert_eq!(Mark::of_name(&mark.name()), Some(mark));
        assert_eq!(Mark::of_name("quic-0102"), None);
        let short = [0x40, 1, 2, 3, 9, 9, 9, 9, 9, 0];
        let long = |len, id: &[u8]| [&[0xe0, 0, 0, 0, 1, len], id].concat();
        assert!(mark.is_of(&short) && mark.is_of(&long(8, &[1, 2, 3, 9, 9, 9, 9, 9])));
        let initial = [&[0xc0, 0, 0, 0, 1, 8], &[1, 2, 3, 9, 9, 9, 9, 9][..]].concat();
        assert!(!mark.is_of(&initial), "its client may have got the ID in a Retry");
        for other in [
            &[0x40, 1, 2, 4, 9, 9, 9, 9, 9][..],
            &long(8, &[1, 2, 4, 9, 9, 9, 9, 9]),
            // A client has chosen it.
            &long(20, &[1, 2, 3, 9, 9, 9, 9, 9]),
            &[0x40, 1, 2],
            &[0xe0, 0, 0, 0, 1],
            &[],
        ] {
            assert!(!mark.is_of(other), "{other:?}");
        }
        let mut ids = OwnIds { before: Some(mark) };
        let id = ids.generate_cid();
        assert!(Mark::own().is_of(&[&[0x40], &id[..]].concat()));
        let id = |bytes: [u8; 8]| ConnectionId::new(&bytes);
        assert!(ids.validate(&id([1, 2, 3, 0, 0, 0, 0, 0])).is_ok());
        assert!(ids.validate(&id([1, 2, 4, 0, 0, 0, 0, 0])).is_err(), "it may be alive elsewhere");
    }
}
