//! The OCSP cache: the responses about certificates that devices presented. Enters: a certificate and its responder's
//! URL. Leaves: its status while the response is valid, and the certificates that were revoked. Bounded in entries,
//! responders and concurrent requests.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::chain::{IssuerId, Serial};
use super::chain::{Key, key};
use super::issuers::Issuer;
use super::ocsp::{Answer, OcspStatus, Query};
use crate::fetch::Fetcher;
use crate::util::clock::now;

/// The limit of certificates in the cache, about 300 bytes each.
const MAX_ENTRIES: usize = 1_000_000;
/// The limit of responders in the cache.
const MAX_RESPONDERS: usize = 1024;
/// The limits of concurrent requests to one responder: for connecting devices, and for connected ones.
const MAX_ASKING: usize = 16;
const MAX_ASKING_AGAIN: usize = 4;
/// After a response with a nonce, responses of the same responder without one are rejected for this long: they may be
/// replayed.
const NONCES_EXPECTED: Duration = Duration::from_secs(24 * 60 * 60);
/// A revoked status is kept beyond the response's nextUpdate, and requested again after this long.
const REVOKED_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// The back-off after a failed request to a responder.
const PAUSE: Duration = Duration::from_secs(5);
/// The shortest interval between two requests about one certificate.
const MIN_REFRESH: Duration = Duration::from_secs(5);
/// The limit of due entries handled per call.
const BATCH: usize = 512;

type Id = (IssuerId, Serial);

/// The OCSP cache.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    entries: RwLock<HashMap<Id, Arc<Entry>>>,
    /// When each entry is refreshed or removed.
    due: Mutex<BTreeSet<(Instant, Id)>>,
    responders: Mutex<HashMap<String, Arc<Responder>>>,
    /// The index keys of newly revoked certificates, until maintenance takes them to end their sessions.
    revoked: Mutex<Vec<Key>>,
}

#[derive(Debug)]
struct Entry {
    id: Id,
    issuer: Arc<Issuer>,
    state: Mutex<State>,
    /// Held during a request, so that an entry has at most one in flight.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// From the configuration of the last caller.
    responder: Arc<Responder>,
    refresh: Duration,
    answer: Option<(Answer, Instant)>,
    failed_at: Option<Instant>,
    /// Its key in [`Statuses::due`]; an entry is scheduled at most once.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Responder {
    url: String,
    /// For connecting devices, and for connected ones.
    asking: [Semaphore; 2],
    /// When its last response with a nonce arrived.
    had_nonce: Mutex<Option<Instant>>,
    failed_at: Mutex<Option<Instant>>,
}

impl Statuses {
    /// The status of a certificate and the age of its response; `None` if there is no valid one. `now` is in seconds since
    /// 1970.
    pub(super) fn get(&self, issuer: IssuerId, serial: Serial, now: i64) -> Option<(OcspStatus, Duration)> {
        let entry = self.entry(&(issuer, serial))?;
        let state = entry.state.lock();
        let (answer, asked_at) = state.answer?;
        // A revocation outlives the response: an out-of-date response does not reinstate a certificate.
        let holds = now < answer.next_update || answer.status == OcspStatus::Revoked;
        holds.then(|| (answer.status, asked_at.elapsed()))
    }

    /// Sends a request to a responder, unless a recent response is cached or a request failed a moment ago.
    pub(super) async fn ask(
        &self,
        fetcher: &Fetcher,
        serial: Serial,
        issuer: Arc<Issuer>,
        responder: &str,
        refresh: Duration,
    ) {
        let id = (issuer.id, serial);
        let Some(responder) = self.responder(responder) else { return };
        let entry = {
            let mut entries = self.entries.write();
            if entries.len() >= MAX_ENTRIES && !entries.contains_key(&id) {
                tracing::error!("OCSP cache is full: this certificate is not checked");
                return;
            }
            let state = State { responder: Arc::clone(&responder), refresh, answer: None, failed_at: None, due: None };
            let new = || Arc::new(Entry { id, issuer, state: Mutex::new(state), turn: tokio::sync::Mutex::default() });
            Arc::clone(entries.entry(id).or_insert_with(new))
        };
        let _turn = entry.turn.lock().await;
        {
            let mut state = entry.state.lock();
            (state.responder, state.refresh) = (responder, refresh);
            let is_recent = |(answer, at): (Answer, Instant)| {
                let patience = if answer.status == OcspStatus::Unknown { PAUSE } else { refresh };
                at.elapsed() < patience && now() < answer.next_update
            };
            if state.answer.is_some_and(is_recent) || state.failed_at.is_some_and(|at| at.elapsed() < PAUSE) {
                return;
            }
        }
        self.ask_now(fetcher, &entry, false).await;
    }

    /// Returns the due entries whose certificates are `is_live`, that is, used by a connected device. Other entries are
    /// removed once their responses are out of date.
    pub(super) fn due(self: &Arc<Self>, is_live: impl Fn(Key) -> bool) -> Vec<DueEntry> {
        let taken: Vec<(Instant, Id)> = {
            let mut due = self.due.lock();
            let now = Instant::now();
            let taken: Vec<_> = due.iter().take_while(|(at, _)| *at <= now).take(BATCH).copied().collect();
            for entry in &taken {
                due.remove(entry);
            }
            taken
        };
        let mut ask = Vec::new();
        for (at, id) in taken {
            let Some(entry) = self.entry(&id) else { continue };
            let holds_for = {
                let mut state = entry.state.lock();
                if state.due != Some(at) {
                    continue;
                }
                state.due = None;
                match state.answer {
                    Some((answer, _)) if answer.status == OcspStatus::Revoked => REVOKED_AGAIN,
                    Some((answer, _)) => Duration::from_secs((answer.next_update - now()).max(0).unsigned_abs()),
                    None => Duration::ZERO,
                }
            };
            if is_live(key(&id.0, &id.1)) {
                ask.push(DueEntry { statuses: Arc::clone(self), entry });
            } else if !holds_for.is_zero() {
                // When its device reconnects, the old response makes the gateway request a new one.
                self.schedule(&entry, holds_for.min(REVOKED_AGAIN));
            } else {
                self.entries.write().remove(&id);
            }
        }
        ask
    }

    /// The index keys of certificates that were revoked since the last call.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut *self.revoked.lock())
    }

    fn entry(&self, id: &Id) -> Option<Arc<Entry>> {
        self.entries.read().get(id).cloned()
    }

    fn responder(&self, url: &str) -> Option<Arc<Responder>> {
        let mut responders = self.responders.lock();
        if let Some(responder) = responders.get(url) {
            return Some(Arc::clone(responder));
        }
        if responders.len() >= MAX_RESPONDERS {
            tracing::error!("too many OCSP responders: this one is not asked");
            return None;
        }
        let (url, asking) = (url.to_owned(), [Semaphore::new(MAX_ASKING), Semaphore::new(MAX_ASKING_AGAIN)]);
        let responder =
            Arc::new(Responder { url: url.clone(), asking, had_nonce: Mutex::default(), failed_at: Mutex::default() });
        responders.insert(url, Arc::clone(&responder));
        Some(responder)
    }

    fn schedule(&self, entry: &Entry, after: Duration) {
        let at = Instant::now() + after;
        let before = entry.state.lock().due.replace(at);
        let mut due = self.due.lock();
        if let Some(before) = before {
            due.remove(&(before, entry.id));
        }
        due.insert((at, entry.id));
    }

    async fn ask_now(&self, fetcher: &Fetcher, entry: &Arc<Entry>, is_again: bool) {
        let responder = Arc::clone(&entry.state.lock().responder);
        let result = responder.exchange(fetcher, entry, is_again).await;
        let again = match result {
            Ok(answer) => {
                let (before, refresh) = {
                    let mut state = entry.state.lock();
                    state.failed_at = None;
                    let before = state.answer.replace((answer, Instant::now()));
                    (before.map(|(answer, _)| answer.status), state.refresh)
                };
                if answer.status == OcspStatus::Revoked && before != Some(OcspStatus::Revoked) {
                    self.revoked.lock().push(key(&entry.id.0, &entry.id.1));
                }
                // At half the remaining validity: the responder may be slow, or down for a while.
                let half = Duration::from_secs(((answer.next_update - now()) / 2).max(0).unsigned_abs());
                refresh.min(half).max(MIN_REFRESH)
            }
            Err(error) => {
                if let Some(error) = error {
                    tracing::warn!(responder = %responder.url, %error, "OCSP request failed");
                }
                entry.state.lock().failed_at = Some(Instant::now());
                PAUSE
            }
        };
        // With jitter: entries that were requested together are not refreshed together.
        self.schedule(entry, again.mul_f64(rand::random_range(0.8..1.0)));
    }
}

impl Responder {
    /// Sends the request and verifies the response. The error is `None` during the back-off of an earlier failure, which
    /// was logged.
    async fn exchange(&self, fetcher: &Fetcher, entry: &Entry, is_again: bool) -> Result<Answer, Option<String>> {
        // The semaphore is never closed.
        let _permit = self.asking[usize::from(is_again)].acquire().await.map_err(|error| Some(error.to_string()))?;
        if self.failed_at.lock().is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(None);
        }
        let question = Query::new(&entry.id.1, &entry.issuer.der);
        let question = question.ok_or_else(|| Some("cannot build an OCSP request for the certificate".to_owned()))?;
        let bytes = fetcher.post_ocsp(&self.url, question.der.clone()).await;
        let bytes = bytes.inspect_err(|_| *self.failed_at.lock() = Some(Instant::now())).map_err(Some)?;
        let answer = question.answer(&bytes, &entry.issuer.der, now()).map_err(Some)?;
        let mut had_nonce = self.had_nonce.lock();
        if answer.has_nonce {
            *had_nonce = Some(Instant::now());
        } else if had_nonce.is_some_and(|at| at.elapsed() < NONCES_EXPECTED) {
            return Err(Some("the response has no nonce, but this responder's earlier responses had one".to_owned()));
        }
        let before = entry.state.lock().answer;
        if before.is_some_and(|(before, _)| answer.this_update < before.this_update) {
            // Without a nonce, an attacker on the path could replay a response from before a revocation.
            return Err(Some("the response is older than the previous one".to_owned()));
        }
        Ok(answer)
    }
}

/// An entry that is due for a refresh.
pub(super) struct DueEntry {
    statuses: Arc<Statuses>,
    entry: Arc<Entry>,
}

impl DueEntry {
    /// Requests the status from the responder.
    pub(super) async fn ask(self, fetcher: &Fetcher) {
        let _turn = self.entry.turn.lock().await;
        self.statuses.ask_now(fetcher, &self.entry, true).await;
    }
}
