//! The record of one session. Enters: facts, each set once when it becomes known. Leaves: them, for the access log and the
//! session index.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use portcullis_wire::Version;

use super::rate_limit::{FairRateLimit, RateLimit};
use crate::config::tables::Protocol;
use crate::outcome::{CloseReason, Stage, Trace};
use crate::peer::{Identity, PageOrigin, Peer, PeerAddress, ProxyHeader, TlsSession};
use crate::util::clip::{clip, may_hold_token};

/// The record of one session.
#[derive(Debug)]
pub struct SessionInfo {
    /// The number of the connection, unique in this process.
    pub id: u64,
    /// The name of the listener.
    pub listener: Arc<str>,
    /// The protocol of the listener.
    pub protocol: Protocol,
    /// When the connection was accepted.
    pub opened: Instant,
    /// The address of the socket's peer.
    socket: PeerAddress,
    address: OnceLock<PeerAddress>,
    /// Where the client has migrated to.
    moved: ArcSwapOption<PeerAddress>,
    proxy: OnceLock<Box<ProxyInfo>>,
    origin: OnceLock<Box<PageOrigin>>,
    tls: OnceLock<Option<TlsInfo>>,
    connect: OnceLock<ConnectInfo>,
    authenticator: OnceLock<Arc<str>>,
    trace: OnceLock<Box<Trace>>,
    upstream: OnceLock<UpstreamInfo>,
    received: AtomicU64,
    sent: AtomicU64,
    /// 0 while the gateway lets the session continue, else the index of the close reason in [`CloseReason::ALL`] plus one.
    end: AtomicU8,
    /// Its failed proof is counted for bans.
    has_failed: AtomicBool,
    /// Messages and filters of the client that were denied.
    denied: AtomicU64,
    /// How often the client was not read because of a rate.
    delayed: AtomicU64,
    /// Lines of the gateway's log about what was denied.
    denial_lines: RateLimit,
}

/// What a load balancer says of the client, as the access log writes it.
#[derive(Debug)]
pub struct ProxyInfo {
    /// The client's address in the header.
    pub client: PeerAddress,
    /// The common name of the client's certificate, which the balancer verified.
    pub cn: Option<Box<str>>,
    /// The balancer's name of the connection.
    pub unique_id: Option<Box<str>>,
}

/// Set after the handshake.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// `None`: the client proved none.
    pub identity: Option<Box<IdentityInfo>>,
}

/// The client's identity from the handshake, as the access log writes it.
#[derive(Debug, Default)]
pub struct IdentityInfo {
    /// The subject of its certificate.
    pub cert_subject: Option<Box<str>>,
    /// The serial number of its certificate.
    pub cert_serial: Option<Box<str>>,
    /// The identity of its pre-shared key; the name of its raw public key, or its fingerprint if no file names it.
    pub key: Option<Box<str>>,
}

/// What the access log shows of a client's identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShownIdentity<'a> {
    /// The subject of its certificate.
    pub cert_subject: Option<&'a str>,
    /// The serial number of its certificate.
    pub cert_serial: Option<&'a str>,
    /// The identity of its pre-shared key, or the name or fingerprint of its raw public key.
    pub key: Option<&'a str>,
}

/// Set after CONNECT was decoded.
#[derive(Debug)]
pub struct ConnectInfo {
    /// As the client sent it, cut to what logs show; `***` if it may be a token.
    pub client_id: Box<str>,
    /// As the client sent it, cut to what logs show; `None`: it sent none, or a token in its place.
    pub username: Option<Box<str>>,
    /// The MQTT version the client speaks.
    pub version: Version,
}

/// Set once a broker was chosen.
#[derive(Debug)]
pub struct UpstreamInfo {
    /// The name of the upstream, at that time.
    pub name: Arc<str>,
    /// The broker's address, or its name in the configuration.
    pub server: Arc<str>,
    /// The time from accept to the broker's CONNACK.
    pub connected_after: OnceLock<Duration>,
}

impl SessionInfo {
    /// The record of a connection that was just accepted from the address `socket`. `id` is unique in this process.
    pub fn new(id: u64, listener: Arc<str>, protocol: Protocol, socket: PeerAddress) -> Arc<Self> {
        Arc::new(Self {
            id,
            listener,
            protocol,
            opened: Instant::now(),
            socket,
            address: OnceLock::new(),
            moved: ArcSwapOption::empty(),
            proxy: OnceLock::new(),
            origin: OnceLock::new(),
            tls: OnceLock::new(),
            connect: OnceLock::new(),
            authenticator: OnceLock::new(),
            trace: OnceLock::new(),
            upstream: OnceLock::new(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            end: AtomicU8::new(0),
            has_failed: AtomicBool::new(false),
            denied: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
            denial_lines: RateLimit::default(),
        })
    }

    /// The gateway ends the session for this reason. If it is called twice, the first reason applies.
    ///
    /// Returns whether this is the first reason.
    pub(crate) fn end_because(&self, reason: CloseReason) -> bool {
        self.end.compare_exchange(0, reason as u8 + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Records a failed proof. Returns whether it is the first of the connection: each connection has one.
    pub(crate) fn fails_first(&self) -> bool {
        !self.has_failed.swap(true, Ordering::Relaxed)
    }

    /// Why the gateway ends the session; `None` while it may continue.
    pub(crate) fn ends_because(&self) -> Option<CloseReason> {
        let position = usize::from(self.end.load(Ordering::Acquire)).checked_sub(1)?;
        // What is in no row of the table is a fault, and no clean end.
        Some(CloseReason::ALL.get(position).copied().unwrap_or(CloseReason::InternalError))
    }

    /// The address for logs: the client's, or that of the peer while the client's is not known.
    pub fn address(&self) -> PeerAddress {
        self.client_address().unwrap_or_else(|| self.peer())
    }

    /// The address that counts for bans and limits: a client cannot prove another one that it migrates to.
    pub(crate) fn counted_address(&self) -> PeerAddress {
        self.address.get().copied().unwrap_or_else(|| self.peer())
    }

    /// The socket's peer, or whom its PROXY header names: a client, or an HTTP proxy.
    fn peer(&self) -> PeerAddress {
        self.proxy.get().map_or(self.socket, |proxy| proxy.client)
    }

    /// The client's address; `None` before a preface has named it.
    pub fn client_address(&self) -> Option<PeerAddress> {
        self.moved().or_else(|| self.address.get().copied())
    }

    /// Where the client has migrated to; `None`: it is where it was.
    pub(crate) fn moved(&self) -> Option<PeerAddress> {
        self.moved.load().as_deref().copied()
    }

    /// Records that the client has migrated.
    pub(crate) fn set_moved(&self, address: PeerAddress) {
        self.moved.store(Some(Arc::new(address)));
    }

    /// The address of the socket's peer.
    pub const fn socket(&self) -> PeerAddress {
        self.socket
    }

    /// The load balancer that named another address in a PROXY header.
    pub fn balancer(&self) -> Option<PeerAddress> {
        (self.peer() != self.socket).then_some(self.socket)
    }

    /// The HTTP proxy that named another address in its request.
    pub fn http_proxy(&self) -> Option<PeerAddress> {
        let peer = self.peer();
        self.address.get().filter(|address| **address != peer).map(|_| peer)
    }

    /// The origin of the page that the client is.
    pub fn origin(&self) -> Option<&PageOrigin> {
        self.origin.get().map(|origin| &**origin)
    }

    /// Sets the origin of the page that the client is.
    pub(crate) fn set_origin(&self, origin: PageOrigin) {
        let _ = self.origin.set(Box::new(origin));
    }

    /// What a load balancer says of the client.
    pub fn proxy(&self) -> Option<&ProxyInfo> {
        self.proxy.get().map(|proxy| &**proxy)
    }

    /// The client's TLS session; `None` before the end of the handshake and without TLS.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.get()?.as_ref()
    }

    /// The client ID and version from CONNECT.
    pub fn connect(&self) -> Option<&ConnectInfo> {
        self.connect.get()
    }

    /// The client ID, as the client sent it, cut to what logs show.
    pub fn client_id(&self) -> Option<&str> {
        self.connect().map(|connect| &*connect.client_id)
    }

    /// The user name, as the client sent it, cut to what logs show.
    pub fn username(&self) -> Option<&str> {
        self.connect()?.username.as_deref()
    }

    /// The authenticator that decided about the client.
    pub fn authenticator(&self) -> Option<&str> {
        let rejected_by = || self.trace.get()?.authenticator.as_deref();
        self.authenticator.get().map(|name| &**name).or_else(rejected_by)
    }

    /// What is known of the client's identity from the handshake: what it proved, or else what it presented.
    pub fn identity(&self) -> ShownIdentity<'_> {
        let (proved, trace) = (self.tls().and_then(|tls| tls.identity.as_deref()), self.trace.get());
        match (proved, trace) {
            (Some(proved), _) => ShownIdentity {
                cert_subject: proved.cert_subject.as_deref(),
                cert_serial: proved.cert_serial.as_deref(),
                key: proved.key.as_deref(),
            },
            (None, Some(trace)) => ShownIdentity {
                cert_subject: trace.cert_subject.as_deref(),
                cert_serial: trace.cert_serial.as_deref(),
                key: trace.tls_identity.as_deref(),
            },
            (None, None) => ShownIdentity::default(),
        }
    }

    /// Why the client was rejected, in more detail than the reason.
    pub fn detail(&self) -> Option<&str> {
        self.trace.get()?.detail.as_deref()
    }

    /// The broker.
    pub fn upstream(&self) -> Option<&UpstreamInfo> {
        self.upstream.get()
    }

    /// How far the connection has come.
    pub fn stage(&self) -> Stage {
        match (self.upstream(), self.connect()) {
            (Some(upstream), _) if upstream.connected_after.get().is_some() => Stage::Relay,
            (Some(_), _) => Stage::Upstream,
            (None, Some(_)) => Stage::Admit,
            (None, None) if self.tls.get().is_some() => Stage::Connect,
            (None, None) => Stage::Handshake,
        }
    }

    /// Application bytes from the client, and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// Counts application bytes from and to the client. Only the session's own task calls it, so it needs no atomic addition.
    pub(crate) fn count_bytes(&self, received: u64, sent: u64) {
        for (counter, bytes) in [(&self.received, received), (&self.sent, sent)] {
            counter.store(counter.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        }
    }

    /// The number of messages and filters of the client that were denied.
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// How often the client was not read because of a rate.
    pub fn delayed(&self) -> u64 {
        self.delayed.load(Ordering::Relaxed)
    }

    /// Counts that the client is not read because of a rate.
    pub(crate) fn count_delay(&self) {
        self.delayed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message or a filter that was denied.
    pub(crate) fn count_denial(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a line about this client may be logged: one a second, and `of_all` about all clients, so that no client hides
    /// what others do. Returns how many were suppressed.
    pub(crate) fn permit_line(&self, of_all: &FairRateLimit) -> Option<u64> {
        let Some(own) = self.denial_lines.permit() else {
            of_all.suppress();
            return None;
        };
        of_all.permit(self.address().share()).map(|all| all.max(own))
    }

    /// Sets the client's address.
    pub(crate) fn set_address(&self, address: PeerAddress) {
        let _ = self.address.set(address);
    }

    /// Sets what a load balancer says of the client.
    pub(crate) fn set_proxy(&self, client: PeerAddress, header: &ProxyHeader) {
        let cn = header.ssl.as_ref().and_then(|ssl| ssl.cn.as_deref()).map(for_logs);
        let unique_id = header.unique_id.as_deref().map(for_logs);
        let _ = self.proxy.set(Box::new(ProxyInfo { client, cn, unique_id }));
    }

    /// Sets the TLS session and the identity after the handshake; without TLS, records that there is none.
    pub(crate) fn set_peer(&self, peer: &Peer) {
        let identity = match &peer.identity {
            Identity::None => None,
            Identity::Certificate(certificate) => Some(IdentityInfo {
                cert_subject: certificate.subject.dn.as_deref().map(for_logs),
                cert_serial: Some(for_logs(&certificate.serial)),
                key: None,
            }),
            Identity::RawKey(key) => {
                let name = key.name.as_deref().map_or_else(|| hex::encode(key.fingerprint).into(), for_logs);
                Some(IdentityInfo { key: Some(name), ..IdentityInfo::default() })
            }
            Identity::Psk(psk) => Some(IdentityInfo { key: Some(for_logs(&psk.identity)), ..IdentityInfo::default() }),
        };
        let info =
            |tls: &TlsSession| TlsInfo { version: tls.version, resumed: tls.resumed, identity: identity.map(Box::new) };
        let _ = self.tls.set(peer.tls.as_ref().map(info));
    }

    /// Sets the client ID, user name and version after CONNECT was decoded.
    pub(crate) fn set_connect(&self, client_id: &str, username: Option<&str>, version: Version) {
        let username = username.map(for_logs);
        let client_id = if may_hold_token(client_id) { "***".into() } else { for_logs(client_id) };
        let _ = self.connect.set(ConnectInfo { client_id, username, version });
    }

    /// Sets what was noted about a client that is rejected.
    pub(crate) fn set_trace(&self, trace: Trace) {
        let _ = self.trace.set(Box::new(trace));
    }

    /// Sets the authenticator that authenticated the client.
    pub(crate) fn set_authenticator(&self, name: Arc<str>) {
        let _ = self.authenticator.set(name);
    }

    /// Sets the broker that was chosen: the name of its upstream, and its own.
    pub(crate) fn set_server(&self, name: Arc<str>, server: Arc<str>) {
        let _ = self.upstream.set(UpstreamInfo { name, server, connected_after: OnceLock::new() });
    }

    /// Sets the time at which the broker answered CONNECT.
    pub(crate) fn set_connected(&self) {
        if let Some(upstream) = self.upstream.get() {
            let _ = upstream.connected_after.set(self.opened.elapsed());
        }
    }
}

/// Clients choose this text. A record lives as long as its session, so its size is bounded.
fn for_logs(text: &str) -> Box<str> {
    clip(text).into()
}
