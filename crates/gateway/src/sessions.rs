//! Who is connected: an index of live sessions by certificate and by the time they have to end, so that those whom a
//! change concerns are found without looking at the others. Enters: sessions as they open, and what has changed.
//! Leaves: to each session concerned, the word that it is over. Never here: the judgement itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::auth::Standing;
use crate::outcome::CloseReason;
use crate::tls::KeyGround;
use crate::trust::{Credential, IssuerId, Key};

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
    /// The listener's name.
    pub listener: Arc<str>,
    /// The client's address.
    pub remote: IpAddr,
    credential: OnceLock<Credential>,
    /// Set once CONNECT was judged. Seldom anything, so in a box.
    other: OnceLock<Option<Box<Grounds>>>,
    /// 0: it may go on; else the place of the reason in [`CloseReason::ALL`], counted from 1.
    end: AtomicU8,
    waker: AtomicWaker,
}

/// What a session stands on beside a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// A key without a certificate.
    pub key: Option<KeyGround>,
    /// What an authenticator said of it.
    pub standing: Option<Standing>,
}

impl Grounds {
    fn keys(&self) -> impl Iterator<Item = Key> {
        let (key, standing) = (self.key.as_ref().and_then(KeyGround::key), self.standing.as_ref());
        key.into_iter().chain(standing.and_then(Standing::key))
    }

    fn until(&self) -> Option<i64> {
        self.standing.as_ref().and_then(Standing::until)
    }
}

impl Live {
    /// The certificate chain it stands on, if there is one.
    pub fn credential(&self) -> Option<&Credential> {
        self.credential.get()
    }

    /// What it stands on beside it.
    pub fn grounds(&self) -> Option<&Grounds> {
        self.other.get()?.as_deref()
    }

    /// Whether it has been asked all that its listener asked of it.
    pub fn is_admitted(&self) -> bool {
        self.other.get().is_some()
    }

    /// Why it is over, of those reasons that come with time alone.
    fn expired(&self, now: i64) -> Option<CloseReason> {
        let has_passed = |until: Option<i64>| until.is_some_and(|until| until < now);
        if has_passed(self.credential().map(Credential::not_after)) {
            return Some(CloseReason::CertificateExpired);
        }
        has_passed(self.grounds().and_then(Grounds::until)).then_some(CloseReason::TokenExpired)
    }

    /// Tells the session that it is over. The first reason counts.
    pub fn end(&self, reason: CloseReason) {
        let place = CloseReason::ALL.iter().position(|other| *other == reason).map_or(1, |place| place + 1);
        let place = u8::try_from(place).unwrap_or(1);
        if self.end.compare_exchange(0, place, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.waker.wake();
        }
    }

    fn reason(&self) -> Option<CloseReason> {
        let place = usize::from(self.end.load(Ordering::Acquire));
        place.checked_sub(1).and_then(|place| CloseReason::ALL.get(place)).copied()
    }
}

/// A session's own entry; dropped, the session is no longer live.
#[derive(Debug)]
pub struct Session {
    live: Arc<Live>,
    sessions: Arc<Sessions>,
}

impl Session {
    /// From now on it is found by its certificates, and ends with them. The caller judges the credential after this:
    /// whatever changes from then on, finds the session.
    pub fn stand_on(&self, credential: Credential) {
        let id = self.live.id;
        for link in credential.links() {
            self.sessions.by_key.of(link.key()).insert((link.key(), id));
        }
        self.sessions.by_expiry.of(id).insert((credential.not_after(), id));
        *lock(&self.sessions.by_day).entry(day_of(&credential)).or_default() += 1;
        // A session proves itself once.
        let _ = self.live.credential.set(credential);
    }

    /// Likewise for what else it stands on; said once.
    pub fn stand_also_on(&self, grounds: Grounds) {
        let id = self.live.id;
        for key in grounds.keys() {
            self.sessions.by_key.of(key).insert((key, id));
        }
        if let Some(until) = grounds.until() {
            self.sessions.by_expiry.of(id).insert((until, id));
        }
        let _ = self.live.other.set((grounds != Grounds::default()).then(|| Box::new(grounds)));
    }

    /// The certificate chain it stands on, if there is one.
    pub fn credential(&self) -> Option<&Credential> {
        self.live.credential()
    }

    /// Has itself judged; the reason, if it is over.
    pub fn judged_by(&self, judge: impl Fn(&Live) -> Option<CloseReason>) -> Option<CloseReason> {
        judge(&self.live)
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
        if let Some(credential) = self.live.credential() {
            for link in credential.links() {
                self.sessions.by_key.of(link.key()).remove(&(link.key(), id));
            }
            self.sessions.by_expiry.of(id).remove(&(credential.not_after(), id));
            let mut by_day = lock(&self.sessions.by_day);
            if let Some(count) = by_day.get_mut(&day_of(credential)) {
                *count -= 1;
                if *count == 0 {
                    by_day.remove(&day_of(credential));
                }
            }
        }
        if let Some(grounds) = self.live.grounds() {
            for key in grounds.keys() {
                self.sessions.by_key.of(key).remove(&(key, id));
            }
            if let Some(until) = grounds.until() {
                self.sessions.by_expiry.of(id).remove(&(until, id));
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
    pub fn open(self: &Arc<Self>, listener: Arc<str>, remote: IpAddr) -> Session {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (end, waker) = (AtomicU8::new(0), AtomicWaker::new());
        let live =
            Arc::new(Live { id, listener, remote, credential: OnceLock::new(), other: OnceLock::new(), end, waker });
        self.by_id.of(id).insert(id, Arc::clone(&live));
        Session { live, sessions: Arc::clone(self) }
    }

    /// All of them, at about this time.
    pub fn all(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::new();
        self.visit(|chunk| all.extend_from_slice(chunk));
        all
    }

    /// Ends those of which `judge` says so, of all. No lock is held meanwhile.
    pub fn sweep(&self, judge: impl Fn(&Live) -> Option<CloseReason>) -> usize {
        let mut ended = 0;
        self.visit(|chunk| ended += end_those(chunk, &judge));
        ended
    }

    fn visit(&self, mut visit: impl FnMut(&[Arc<Live>])) {
        for shard in &self.by_id.0 {
            let mut from = 0;
            loop {
                let chunk: Vec<Arc<Live>> =
                    lock(shard).range(from..).take(CHUNK).map(|(_, live)| Arc::clone(live)).collect();
                let Some(last) = chunk.last() else { break };
                from = last.id + 1;
                visit(&chunk);
            }
        }
    }

    /// Ends those of which `judge` says so, of those that stand on one of these: certificates of their chain, devices.
    pub fn sweep_keys(&self, keys: &[Key], judge: impl Fn(&Live) -> Option<CloseReason>) -> usize {
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
                ended += end_those(&chunk, &judge);
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
                let due: Vec<(i64, Id)> = lock(shard).range(from..(now, 0)).take(CHUNK).copied().collect();
                let Some((expiry, id)) = due.last() else { break };
                from = (*expiry, id + 1);
                let chunk: Vec<Arc<Live>> = due.iter().filter_map(|(_, id)| self.get(*id)).collect();
                ended += end_those(&chunk, &|live| live.expired(now));
            }
        }
        ended
    }

    /// The certificates that devices are connected with. `now` is in seconds since 1970.
    pub fn inventory(&self, now: i64) -> Inventory {
        // As many entries as there are issuers and days, however many sessions.
        let by_day = lock(&self.by_day).clone();
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

fn day_of(credential: &Credential) -> (IssuerId, i64) {
    (credential.issuer(), credential.not_after() / DAY)
}

fn end_those(sessions: &[Arc<Live>], judge: &impl Fn(&Live) -> Option<CloseReason>) -> usize {
    let concerned = sessions.iter().filter(|live| live.reason().is_none());
    concerned.filter_map(|live| judge(live).map(|reason| live.end(reason))).count()
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
        lock(&self.0[usize::try_from(key % SHARDS as u64).unwrap_or(0)])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What was being done when its thread panicked was a single insertion.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
