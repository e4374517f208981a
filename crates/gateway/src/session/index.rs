//! Who is connected: an index of live sessions by what they rest on and by the time they expire, so that the sessions
//! that a change concerns are found without looking at the others. Enters: sessions as they open, and what has changed.
//! Leaves: to each session concerned, the reason why it ends. Never here: the evaluation itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use crate::evidence::Evidence;
use crate::observe::SessionInfo;
use crate::outcome::CloseReason;
use crate::pki::{IssuerId, Key, VerifiedChain};

/// Locks that sessions are spread over, so that opening one seldom waits for another.
const SHARDS: usize = 64;
/// Entries looked at before a lock is given back.
const CHUNK: usize = 256;

type Id = u64;

/// All live sessions of the process, from accept on.
#[derive(Debug, Default)]
pub struct Sessions {
    next: AtomicU64,
    by_id: Sharded<BTreeMap<Id, Arc<Live>>>,
    by_key: Sharded<BTreeSet<(Key, Id)>>,
    /// Seconds since 1970.
    by_expiry: Sharded<BTreeSet<(i64, Id)>>,
    /// How many stand on certificates of an issuer that expire on a day, counted from 1970.
    by_day: Mutex<BTreeMap<(IssuerId, i64), usize>>,
}

/// The certificates that devices are connected with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// How many each authority has issued.
    pub by_issuer: Vec<(IssuerId, usize)>,
    /// How many expire within so many days, for a few numbers of days.
    pub expiring: Vec<(u32, usize)>,
}

/// Within how many days certificates may expire, for the inventory.
const EXPIRING_WITHIN: [u32; 6] = [1, 7, 30, 90, 365, 3650];
const DAY: i64 = 24 * 60 * 60;

/// What is known of a live session by those who may end it.
#[derive(Debug)]
pub struct Live {
    id: Id,
    /// What is known of it.
    pub info: Arc<SessionInfo>,
    /// Set once the handshake has proved something.
    from_tls: OnceLock<Evidence>,
    /// Set once authenticators were asked; seldom anything, so in a box.
    from_authenticator: OnceLock<Option<Box<Evidence>>>,
    /// 0: it may continue; else the position of the reason in [`CloseReason::ALL`], counted from 1.
    end: AtomicU8,
    waker: AtomicWaker,
}

/// What a client claims when it is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The name of the listener that it came by.
    pub listener: &'a str,
    /// The client's address.
    pub address: IpAddr,
    /// What it proved in the handshake.
    pub from_tls: Option<&'a Evidence>,
    /// What an authenticator verified; the outer `None`: no authenticator was asked yet.
    pub from_authenticator: Option<Option<&'a Evidence>>,
}

impl Live {
    /// What is evaluated again when something changes.
    pub fn claim(&self) -> Claim<'_> {
        Claim {
            listener: &self.info.listener,
            address: self.info.address().ip(),
            from_tls: self.from_tls.get(),
            from_authenticator: self.from_authenticator.get().map(Option::as_deref),
        }
    }

    /// The certificate chain it rests on, if there is one.
    pub fn chain(&self) -> Option<&VerifiedChain> {
        self.from_tls.get().and_then(Evidence::chain)
    }

    fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.from_tls.get().into_iter().chain(self.from_authenticator.get().and_then(Option::as_deref))
    }

    /// Why it has expired, if it has.
    fn expired(&self, now: i64) -> Option<CloseReason> {
        let expired = self.evidence().find(|evidence| evidence.expires().is_some_and(|expires| expires < now))?;
        Some(if expired.chain().is_some() { CloseReason::CertificateExpired } else { CloseReason::TokenExpired })
    }

    /// Tells the session that it is over. The first reason counts.
    pub fn end(&self, reason: CloseReason) {
        if self.end.compare_exchange(0, reason as u8 + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.waker.wake();
        }
    }

    fn reason(&self) -> Option<CloseReason> {
        let position = usize::from(self.end.load(Ordering::Acquire)).checked_sub(1)?;
        // What is in no row of the table is a fault, and no clean end.
        Some(CloseReason::ALL.get(position).copied().unwrap_or(CloseReason::InternalError))
    }
}

/// A session's own entry; dropped, the session is no longer live.
#[derive(Debug)]
pub struct Session {
    live: Arc<Live>,
    sessions: Arc<Sessions>,
}

impl Session {
    /// Enters what the handshake proved; once. From now on a change of it finds the session, so the caller evaluates after
    /// this: whichever comes first, one of them sees the other.
    pub fn proved(&self, evidence: Evidence) {
        self.sessions.enter(self.live.id, &evidence);
        if let Some(chain) = evidence.chain() {
            *self.sessions.by_day.lock().entry(day_of(chain)).or_default() += 1;
        }
        let _ = self.live.from_tls.set(evidence);
    }

    /// Enters what an authenticator verified, or that none was asked; once, likewise.
    pub fn authenticated(&self, evidence: Option<Evidence>) {
        if let Some(evidence) = &evidence {
            self.sessions.enter(self.live.id, evidence);
        }
        let _ = self.live.from_authenticator.set(evidence.map(Box::new));
    }

    /// What is known of it.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Why it has to end, once it has to.
    pub fn poll_end(&self, cx: &Context<'_>) -> Poll<CloseReason> {
        if let Some(reason) = self.live.reason() {
            return Poll::Ready(reason);
        }
        self.live.waker.register(cx.waker());
        // It may have been set in between.
        self.live.reason().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until it has to end.
    pub async fn ended(&self) -> CloseReason {
        std::future::poll_fn(|cx| self.poll_end(cx)).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let id = self.live.id;
        for evidence in self.live.evidence() {
            for key in evidence.index_keys() {
                self.sessions.by_key.of(key).remove(&(key, id));
            }
            if let Some(expires) = evidence.expires() {
                self.sessions.by_expiry.of(id).remove(&(expires, id));
            }
        }
        if let Some(chain) = self.live.chain() {
            let mut by_day = self.sessions.by_day.lock();
            if let Some(count) = by_day.get_mut(&day_of(chain)) {
                *count -= 1;
                if *count == 0 {
                    by_day.remove(&day_of(chain));
                }
            }
        }
        self.sessions.by_id.of(id).remove(&id);
    }
}

impl Sessions {
    /// None.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Enters a connection.
    pub fn open(self: &Arc<Self>, info: Arc<SessionInfo>) -> Session {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            info,
            from_tls: OnceLock::new(),
            from_authenticator: OnceLock::new(),
            end: AtomicU8::new(0),
            waker: AtomicWaker::new(),
        });
        self.by_id.of(id).insert(id, Arc::clone(&live));
        Session { live, sessions: Arc::clone(self) }
    }

    fn enter(&self, id: Id, evidence: &Evidence) {
        for key in evidence.index_keys() {
            self.by_key.of(key).insert((key, id));
        }
        if let Some(expires) = evidence.expires() {
            self.by_expiry.of(id).insert((expires, id));
        }
    }

    /// All of them, at about this time.
    pub fn all(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::new();
        self.visit(|chunk| all.extend_from_slice(chunk));
        all
    }

    /// Evaluates all; ends those that may not continue, and returns how many. No lock is held meanwhile.
    pub fn sweep(&self, evaluate: impl Fn(&Live) -> Result<(), CloseReason>) -> usize {
        let mut ended = 0;
        self.visit(|chunk| ended += sweep(chunk, &evaluate));
        ended
    }

    fn visit(&self, mut visit: impl FnMut(&[Arc<Live>])) {
        for shard in &self.by_id.0 {
            let mut from = 0;
            loop {
                let chunk: Vec<Arc<Live>> =
                    shard.lock().range(from..).take(CHUNK).map(|(_, live)| Arc::clone(live)).collect();
                let Some(last) = chunk.last() else { break };
                from = last.id + 1;
                visit(&chunk);
            }
        }
    }

    /// Likewise, of those that rest on one of these: certificates of their chain, devices.
    pub fn sweep_keys(&self, keys: &[Key], evaluate: impl Fn(&Live) -> Result<(), CloseReason>) -> usize {
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
                let chunk: Vec<Arc<Live>> = ids.iter().filter_map(|id| self.get(*id)).collect();
                ended += sweep(&chunk, &evaluate);
            }
        }
        ended
    }

    /// Whether somebody is connected who has one of these certificates in the chain.
    pub fn has_certificate(&self, key: Key) -> bool {
        self.by_key.of(key).range((key, 0)..=(key, Id::MAX)).next().is_some()
    }

    /// Ends those whose certificates or tokens have expired. `now` is in seconds since 1970.
    pub fn sweep_expired(&self, now: i64) -> usize {
        let mut ended = 0;
        for shard in &self.by_expiry.0 {
            let mut from = (i64::MIN, 0);
            loop {
                let due: Vec<(i64, Id)> = shard.lock().range(from..(now, 0)).take(CHUNK).copied().collect();
                let Some((expiry, id)) = due.last() else { break };
                from = (*expiry, id + 1);
                let chunk: Vec<Arc<Live>> = due.iter().filter_map(|(_, id)| self.get(*id)).collect();
                ended += sweep(&chunk, &|live| live.expired(now).map_or(Ok(()), Err));
            }
        }
        ended
    }

    /// The certificates that devices are connected with. `now` is in seconds since 1970.
    pub fn inventory(&self, now: i64) -> Inventory {
        // As many entries as there are issuers and days, however many sessions.
        let by_day = self.by_day.lock().clone();
        let mut by_issuer: BTreeMap<IssuerId, usize> = BTreeMap::new();
        for ((issuer, _), count) in &by_day {
            *by_issuer.entry(*issuer).or_default() += count;
        }
        let within = |days: u32| {
            let due = by_day.iter().filter(|((_, day), _)| *day <= now / DAY + i64::from(days));
            (days, due.map(|(_, count)| count).sum())
        };
        Inventory { by_issuer: by_issuer.into_iter().collect(), expiring: EXPIRING_WITHIN.map(within).to_vec() }
    }

    fn get(&self, id: Id) -> Option<Arc<Live>> {
        self.by_id.of(id).get(&id).cloned()
    }
}

fn day_of(chain: &VerifiedChain) -> (IssuerId, i64) {
    (chain.issuer(), chain.not_after() / DAY)
}

fn sweep(sessions: &[Arc<Live>], evaluate: &impl Fn(&Live) -> Result<(), CloseReason>) -> usize {
    let concerned = sessions.iter().filter(|live| live.reason().is_none());
    concerned.filter_map(|live| evaluate(live).err().map(|reason| live.end(reason))).count()
}

/// One of many, each behind a lock of its own.
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
