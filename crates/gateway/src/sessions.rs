//! The session index: all live sessions, by their evidence and by expiry time, so that a change finds the sessions it
//! affects without a scan of all. Enters: sessions as they open, and the index keys that changed. Leaves: to each
//! affected session, the reason why it is closed. Not here: the evaluation itself.

mod facts;
mod followed;
mod inventory;

pub(crate) use facts::{ClientFacts, SeenConnect};
pub use inventory::Inventory;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use self::followed::Followed;
use self::inventory::Certificates;
use crate::config::tables::{DrainNotice, Protocol};
use crate::evidence::Evidence;
use crate::net::QuicPath;
use crate::observe::SessionInfo;
use crate::outcome::CloseReason;
use crate::peer::{PageOrigin, PeerAddress};
use crate::pki::{Key, VerifiedChain};
use crate::policy::PacketRules;

/// The number of locks that sessions are spread over, so that opening one rarely waits for another.
const SHARDS: usize = 64;
/// The number of entries read under one lock acquisition.
const CHUNK: usize = 256;

type Id = u64;

/// All live sessions of the process, from accept to close.
#[derive(Debug, Default)]
pub struct Sessions {
    next: AtomicU64,
    /// Whether the gateway stops: what opens now ends at once.
    is_draining: AtomicBool,
    /// What clients are told when the gateway drains.
    drain_notice: ArcSwapOption<DrainNotice>,
    by_id: Sharded<BTreeMap<Id, Arc<SessionEntry>>>,
    by_key: Sharded<BTreeSet<(Key, Id)>>,
    /// Seconds since 1970.
    by_expiry: Sharded<BTreeSet<(i64, Id)>>,
    certificates: Certificates,
    /// Of clients that may migrate, where they are.
    paths: Sharded<BTreeMap<Id, Followed>>,
}

/// A live session, as the tasks that may close it see it.
#[derive(Debug)]
pub struct SessionEntry {
    /// The session's record for logs and metrics.
    pub info: Arc<SessionInfo>,
    /// Set after the handshake, to `None` if the device proved nothing in it.
    from_tls: OnceLock<Option<Evidence>>,
    /// Set after authentication. Boxed, because most sessions have none.
    from_authenticator: OnceLock<Option<Box<Evidence>>>,
    /// Set when the client is admitted, until its session ends.
    admission: Mutex<Option<Admission>>,
    /// Rules that replace those of the session.
    new_rules: ArcSwapOption<PacketRules>,
    waker: AtomicWaker,
}

/// What is known of a client since it was admitted. Times are in seconds since 1970.
#[derive(Debug)]
struct Admission {
    at: i64,
    /// When the session ends in any case.
    ends: Option<i64>,
    /// What packet rules are evaluated by again; `None`: its packets are not inspected.
    client: Option<Arc<ClientFacts>>,
}

/// Whose rules of packets can be evaluated again.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// The client is not admitted yet, or not connected any more.
    NotAdmitted,
    /// The packets of the session are not inspected.
    NotInspected,
    /// A client of which this is known.
    Inspected(Arc<ClientFacts>),
}

/// What happens to a session from outside, while it lasts.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// It has to close.
    End(CloseReason),
    /// It has to close because the gateway drains, and the client is told this.
    Drain(Arc<DrainNotice>),
    /// Other rules apply to its packets.
    Rules(Arc<PacketRules>),
}

/// What a client is evaluated by.
#[derive(Clone, Copy, Debug)]
pub struct ClientEvidence<'a> {
    /// The name of the listener it connected to.
    pub listener: &'a str,
    /// The client's address; `None` before a preface has named it.
    pub address: Option<PeerAddress>,
    /// The address of the socket's peer.
    pub socket: PeerAddress,
    /// The load balancer that named another address in a PROXY header.
    pub balancer: Option<PeerAddress>,
    /// The HTTP proxy that named another address.
    pub http_proxy: Option<PeerAddress>,
    /// The origin of the page that it is.
    pub origin: Option<&'a PageOrigin>,
    /// From the handshake.
    pub from_tls: Proof<'a>,
    /// From an authenticator.
    pub from_authenticator: Proof<'a>,
}

/// What a client has proved at one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof<'a> {
    /// The stage is not over.
    Pending,
    /// Nothing: no proof was requested, or it was optional.
    Nothing,
    /// This.
    Proved(&'a Evidence),
}

impl<'a> Proof<'a> {
    /// What a stage has set.
    fn of(stage: &'a OnceLock<Option<impl Borrow<Evidence>>>) -> Self {
        match stage.get() {
            None => Self::Pending,
            Some(None) => Self::Nothing,
            Some(Some(evidence)) => Self::Proved(evidence.borrow()),
        }
    }
}

impl SessionEntry {
    /// What the session is evaluated by when something changes.
    pub fn client_evidence(&self) -> ClientEvidence<'_> {
        ClientEvidence {
            listener: &self.info.listener,
            address: self.info.client_address(),
            socket: self.info.socket(),
            balancer: self.info.balancer(),
            http_proxy: self.info.http_proxy(),
            origin: self.info.origin(),
            from_tls: Proof::of(&self.from_tls),
            from_authenticator: Proof::of(&self.from_authenticator),
        }
    }

    /// The device's certificate chain, if it has one.
    pub fn chain(&self) -> Option<&VerifiedChain> {
        self.from_tls.get()?.as_ref().and_then(Evidence::chain)
    }

    fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.from_tls
            .get()
            .and_then(Option::as_ref)
            .into_iter()
            .chain(self.from_authenticator.get().and_then(Option::as_deref))
    }

    /// What packet rules are evaluated by.
    pub(crate) fn subject(&self) -> Subject {
        match &*self.admission.lock() {
            None => Subject::NotAdmitted,
            Some(Admission { client: None, .. }) => Subject::NotInspected,
            Some(Admission { client: Some(client), .. }) => Subject::Inspected(Arc::clone(client)),
        }
    }

    /// Replaces the rules of the session's packets.
    pub(crate) fn set_rules(&self, rules: Arc<PacketRules>) {
        self.new_rules.store(Some(rules));
        self.waker.wake();
    }

    /// The close reason, if the session's evidence has expired, or its time is over.
    fn expired(&self, now: i64) -> Option<CloseReason> {
        let ends = self.admission.lock().as_ref().and_then(|admission| admission.ends);
        if ends.is_some_and(|ends| ends < now) {
            return Some(CloseReason::SessionLifetime);
        }
        let expired = self.evidence().find(|evidence| evidence.expires().is_some_and(|expires| expires < now))?;
        Some(if expired.chain().is_some() { CloseReason::CertificateExpired } else { CloseReason::TokenExpired })
    }

    /// Asks the session to close. If it is called twice, the first reason applies.
    ///
    /// Returns whether this is the first reason.
    pub fn end(&self, reason: CloseReason) -> bool {
        let is_first = self.info.end_because(reason);
        if is_first {
            self.waker.wake();
        }
        is_first
    }
}

/// The session's handle to its index entry. Dropping it removes the entry.
#[derive(Debug)]
pub struct SessionGuard {
    entry: Arc<SessionEntry>,
    sessions: Arc<Sessions>,
}

impl SessionGuard {
    /// Indexes what the handshake proved, or `None` if it proved nothing. Call it once, before evaluating: a change
    /// after this call finds the session in the index, and a change before it is seen by the evaluation.
    pub fn proved(&self, evidence: Option<Evidence>) {
        if let Some(evidence) = &evidence {
            self.sessions.insert(self.entry.info.id, evidence);
        }
        if let Some(chain) = evidence.as_ref().and_then(Evidence::chain) {
            self.sessions.certificates.add(chain);
        }
        let _ = self.entry.from_tls.set(evidence);
    }

    /// Indexes what an authenticator verified, or `None` if none was asked. Call it once, before evaluating, as
    /// [`SessionGuard::proved`].
    pub fn authenticated(&self, evidence: Option<Evidence>) {
        if let Some(evidence) = &evidence {
            self.sessions.insert(self.entry.info.id, evidence);
        }
        let _ = self.entry.from_authenticator.set(evidence.map(Box::new));
    }

    /// Follows the client's address, which may change. Call it once.
    pub(crate) fn follow(&self, path: QuicPath) {
        let id = self.entry.info.id;
        self.sessions.paths.of(id).insert(id, Followed::new(path));
    }

    /// The client is admitted, perhaps again by another configuration. `client`: what its packet rules were evaluated by,
    /// `None` if its packets are not inspected. `now` is in seconds since 1970. Call it before the configuration in use is
    /// compared with the one that admitted the client: a change after this call finds the session.
    pub(crate) fn admitted(&self, client: Option<ClientFacts>, now: i64) {
        let mut admission = self.entry.admission.lock();
        let ends = admission.as_ref().and_then(|admission| admission.ends);
        *admission = Some(Admission { at: now, ends, client: client.map(Arc::new) });
    }

    /// The index entry.
    pub fn entry(&self) -> &SessionEntry {
        &self.entry
    }

    /// Ready with the reason once the session has to close.
    pub fn poll_end(&self, cx: &Context<'_>) -> Poll<CloseReason> {
        if let Some(reason) = self.entry.info.ends_because() {
            return Poll::Ready(reason);
        }
        self.entry.waker.register(cx.waker());
        // It may have been set in between.
        self.entry.info.ends_because().map_or(Poll::Pending, Poll::Ready)
    }

    /// Ready when something happens to the session.
    pub(crate) fn poll_event(&self, cx: &Context<'_>) -> Poll<SessionEvent> {
        if let Poll::Ready(reason) = self.poll_end(cx) {
            let notice = (reason == CloseReason::Drained).then(|| self.sessions.drain_notice.load_full()).flatten();
            return Poll::Ready(notice.map_or(SessionEvent::End(reason), SessionEvent::Drain));
        }
        // The session polls often, and its rules change rarely: a swap each time would cost more.
        let has_changed = self.entry.new_rules.load().is_some();
        let rules = has_changed.then(|| self.entry.new_rules.swap(None)).flatten();
        rules.map_or(Poll::Pending, |rules| Poll::Ready(SessionEvent::Rules(rules)))
    }

    /// Waits until the session has to close.
    pub async fn ended(&self) -> CloseReason {
        std::future::poll_fn(|cx| self.poll_end(cx)).await
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let id = self.entry.info.id;
        for evidence in self.entry.evidence() {
            for key in evidence.index_keys() {
                self.sessions.by_key.of(key).remove(&(key, id));
            }
            if let Some(expires) = evidence.expires() {
                self.sessions.by_expiry.of(id).remove(&(expires, id));
            }
        }
        if self.entry.info.protocol == Protocol::Quic {
            self.sessions.paths.of(id).remove(&id);
        }
        // Nothing is added to the index for an admission that is gone.
        if let Some(ends) = self.entry.admission.lock().take().and_then(|admission| admission.ends) {
            self.sessions.by_expiry.of(id).remove(&(ends, id));
        }
        if let Some(chain) = self.entry.chain() {
            self.sessions.certificates.remove(chain);
        }
        self.sessions.by_id.of(id).remove(&id);
    }
}

impl Sessions {
    /// An empty index.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The number of the next connection.
    pub fn next_id(&self) -> Id {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a connection.
    pub fn open(self: &Arc<Self>, info: Arc<SessionInfo>) -> SessionGuard {
        let id = info.id;
        let entry = Arc::new(SessionEntry {
            info,
            from_tls: OnceLock::new(),
            from_authenticator: OnceLock::new(),
            admission: Mutex::default(),
            new_rules: ArcSwapOption::empty(),
            waker: AtomicWaker::new(),
        });
        self.by_id.of(id).insert(id, Arc::clone(&entry));
        // Set before the index is searched: either finds the other.
        if self.is_draining.load(Ordering::Acquire) {
            entry.end(CloseReason::Drained);
        }
        SessionGuard { entry, sessions: Arc::clone(self) }
    }

    /// Sets how long after its admission a session ends in any case; `None`: not for that reason.
    pub(crate) fn limit_lifetime(&self, entry: &SessionEntry, lifetime: Option<Duration>) {
        let id = entry.info.id;
        let mut admission = entry.admission.lock();
        let Some(admission) = admission.as_mut() else { return };
        let seconds = lifetime.map(|lifetime| i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
        let ends = seconds.map(|seconds| admission.at.saturating_add(seconds));
        let before = std::mem::replace(&mut admission.ends, ends);
        if before != ends {
            let mut by_expiry = self.by_expiry.of(id);
            if let Some(before) = before {
                by_expiry.remove(&(before, id));
            }
            by_expiry.extend(ends.map(|ends| (ends, id)));
        }
    }

    fn insert(&self, id: Id, evidence: &Evidence) {
        for key in evidence.index_keys() {
            self.by_key.of(key).insert((key, id));
        }
        if let Some(expires) = evidence.expires() {
            self.by_expiry.of(id).insert((expires, id));
        }
    }

    /// All sessions. Sessions that open or close during the call may be missing or included.
    pub fn all(&self) -> Vec<Arc<SessionEntry>> {
        let mut all = Vec::new();
        self.visit(|chunk| all.extend_from_slice(chunk));
        all
    }

    /// Evaluates all sessions, closes those that fail, and returns their number. No lock is held during an evaluation.
    pub fn sweep(&self, evaluate: impl Fn(&SessionEntry) -> Result<(), CloseReason>) -> usize {
        let mut ended = 0;
        self.visit(|chunk| ended += sweep(chunk, &evaluate));
        ended
    }

    /// Sets what clients are told whose sessions end because the gateway drains.
    pub(crate) fn set_drain_notice(&self, notice: Arc<DrainNotice>) {
        self.drain_notice.store(Some(notice));
    }

    /// Ends all sessions, and those that open from now on.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.sweep(|_| Err(CloseReason::Drained));
    }

    fn visit(&self, mut visit: impl FnMut(&[Arc<SessionEntry>])) {
        for shard in &self.by_id.0 {
            let mut from = 0;
            loop {
                let chunk: Vec<Arc<SessionEntry>> =
                    shard.lock().range(from..).take(CHUNK).map(|(_, entry)| Arc::clone(entry)).collect();
                let Some(last) = chunk.last() else { break };
                from = last.info.id + 1;
                visit(&chunk);
            }
        }
    }

    /// As [`Sessions::sweep`], but only for sessions with one of these index keys: of certificates in their chain, or
    /// of their device.
    pub fn sweep_keys(&self, keys: &[Key], evaluate: impl Fn(&SessionEntry) -> Result<(), CloseReason>) -> usize {
        let mut ended = 0;
        for key in keys {
            let mut from = 0;
            loop {
                let ids: Vec<Id> = {
                    let index = self.by_key.of(*key);
                    index.range((*key, from)..=(*key, Id::MAX)).take(CHUNK).map(|(_, id)| *id).collect()
                };
                let Some(last) = ids.last() else { break };
                from = last + 1;
                let chunk: Vec<Arc<SessionEntry>> = ids.iter().filter_map(|id| self.get(*id)).collect();
                ended += sweep(&chunk, &evaluate);
            }
        }
        ended
    }

    /// Whether a connected device has a certificate with this key in its chain.
    pub fn has_certificate(&self, key: Key) -> bool {
        self.by_key.of(key).range((key, 0)..=(key, Id::MAX)).next().is_some()
    }

    /// Closes the sessions whose certificates or tokens have expired, and returns their number. `now` is in seconds
    /// since 1970.
    pub fn sweep_expired(&self, now: i64) -> usize {
        let mut ended = 0;
        for shard in &self.by_expiry.0 {
            let mut from = (i64::MIN, 0);
            loop {
                let due: Vec<(i64, Id)> = shard.lock().range(from..(now, 0)).take(CHUNK).copied().collect();
                let Some((expiry, id)) = due.last() else { break };
                from = (*expiry, id + 1);
                let chunk: Vec<Arc<SessionEntry>> = due.iter().filter_map(|(_, id)| self.get(*id)).collect();
                ended += sweep(&chunk, &|entry| entry.expired(now).map_or(Ok(()), Err));
            }
        }
        ended
    }

    /// The sessions of clients that have migrated, and their new addresses are recorded. Call it once a second.
    pub(crate) fn take_moved(&self) -> Vec<Arc<SessionEntry>> {
        let mut moved = Vec::new();
        for shard in &self.paths.0 {
            // Without that of the index, which is taken first elsewhere.
            let mut confirmed = Vec::new();
            for (id, followed) in &mut *shard.lock() {
                confirmed.extend(followed.look().map(|address| (*id, address)));
            }
            for (entry, address) in confirmed.iter().filter_map(|(id, address)| Some((self.get(*id)?, *address))) {
                if entry.info.client_address().is_some_and(|before| before != address) {
                    entry.info.set_moved(address);
                    moved.push(entry);
                }
            }
        }
        moved
    }

    /// Counts the certificates of connected devices. `now` is in seconds since 1970.
    pub fn inventory(&self, now: i64) -> Inventory {
        self.certificates.inventory(now)
    }

    fn get(&self, id: Id) -> Option<Arc<SessionEntry>> {
        self.by_id.of(id).get(&id).cloned()
    }
}

fn sweep(sessions: &[Arc<SessionEntry>], evaluate: &impl Fn(&SessionEntry) -> Result<(), CloseReason>) -> usize {
    let open = sessions.iter().filter(|entry| entry.info.ends_because().is_none());
    open.filter_map(|entry| evaluate(entry).err().map(|reason| entry.end(reason))).count()
}

/// A collection split by key, each part behind its own lock.
#[derive(Debug)]
struct Sharded<T>([Mutex<T>; SHARDS]);

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<T> Sharded<T> {
    fn of(&self, key: u64) -> MutexGuard<'_, T> {
        self.0[usize::try_from(key % SHARDS as u64).unwrap_or(0)].lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_behind_the_last_sweep_ends_as_well() {
        let sessions = Sessions::new();
        let open = || {
            sessions.open(SessionInfo::new(sessions.next_id(), "a".into(), Protocol::Tcp, ([127, 0, 0, 1], 1).into()))
        };
        let (first, revoked) = (open(), open());
        assert_eq!(first.entry().info.ends_because(), None);
        revoked.entry().end(CloseReason::CertificateRevoked);
        sessions.drain();
        assert_eq!(first.entry().info.ends_because(), Some(CloseReason::Drained));
        assert_eq!(revoked.entry().info.ends_because(), Some(CloseReason::CertificateRevoked), "the first reason");
        assert_eq!(open().entry().info.ends_because(), Some(CloseReason::Drained));
    }
}
