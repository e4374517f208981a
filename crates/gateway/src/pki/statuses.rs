//! What OCSP responders have said of certificates that devices have shown, for as long as it holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::chain::{IssuerId, Serial};
use super::chain::{Key, key};
use super::issuers::Issuer;
use super::ocsp::{Answer, OcspStatus, Question};
use crate::fetch::Fetcher;
use crate::util::clock::now;

/// Certificates remembered at most; about 300 bytes each.
const MAX_ENTRIES: usize = 1_000_000;
/// Responders remembered at most.
const MAX_RESPONDERS: usize = 1024;
/// Questions to one responder under way at once: about devices that wait, and about those that are connected.
const MAX_ASKING: usize = 16;
const MAX_ASKING_AGAIN: usize = 4;
/// A responder that stops putting nonces into its answers is not believed for so long.
const NONCES_EXPECTED: Duration = Duration::from_secs(24 * 60 * 60);
/// Whoever is revoked is remembered, also beyond the answer's end; looked at again after so long.
const REVOKED_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// A responder that failed is left alone for so long.
const PAUSE: Duration = Duration::from_secs(5);
/// An answer is not asked for again sooner.
const MIN_REFRESH: Duration = Duration::from_secs(5);
/// Entries whose turn it is that are looked at in one go.
const BATCH: usize = 512;

type Id = (IssuerId, Serial);

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    entries: RwLock<HashMap<Id, Arc<Entry>>>,
    /// When which is to be asked for again, or to be forgotten.
    due: Mutex<BTreeSet<(Instant, Id)>>,
    responders: Mutex<HashMap<String, Arc<Responder>>>,
    /// Certificates found to be revoked, whose sessions have not been told yet.
    revoked: Mutex<Vec<Key>>,
}

#[derive(Debug)]
struct Entry {
    id: Id,
    issuer: Arc<Issuer>,
    state: Mutex<State>,
    /// Held by whoever asks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Of the configuration of whoever has asked last.
    responder: Arc<Responder>,
    refresh: Duration,
    answer: Option<(Answer, Instant)>,
    failed_at: Option<Instant>,
    /// Its one place in the order.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Responder {
    url: String,
    /// For devices that wait, and for those that are connected already.
    asking: [Semaphore; 2],
    /// When it last put a nonce into an answer; it has to go on.
    had_nonce: Mutex<Option<Instant>>,
    failed_at: Mutex<Option<Instant>>,
}

impl Statuses {
    /// What is known of a certificate at present, and since how long; `None`: nothing. `now` is in seconds since 1970.
    pub(super) fn get(&self, issuer: IssuerId, serial: Serial, now: i64) -> Option<(OcspStatus, Duration)> {
        let entry = self.entry(&(issuer, serial))?;
        let state = entry.state.lock();
        let (answer, asked_at) = state.answer?;
        // That an answer is out of date does not give anybody back a certificate.
        let holds = now < answer.next_update || answer.status == OcspStatus::Revoked;
        holds.then(|| (answer.status, asked_at.elapsed()))
    }

    /// Asks a responder, unless a recent answer is there by now, or there was none a moment ago.
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
                tracing::error!("OCSP: too many certificates to remember more");
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

    /// Takes out those whose turn it is, of which `is_live` says that somebody is connected with them; the others are
    /// forgotten once their answers do not hold any more.
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
                // Whoever comes back with it finds an answer that is old, and has it asked for.
                self.plan(&entry, holds_for.min(REVOKED_AGAIN));
            } else {
                self.entries.write().remove(&id);
            }
        }
        ask
    }

    /// Certificates found to be revoked since this was asked last.
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
            tracing::error!("OCSP: too many responders to remember more");
            return None;
        }
        let (url, asking) = (url.to_owned(), [Semaphore::new(MAX_ASKING), Semaphore::new(MAX_ASKING_AGAIN)]);
        let responder =
            Arc::new(Responder { url: url.clone(), asking, had_nonce: Mutex::default(), failed_at: Mutex::default() });
        responders.insert(url, Arc::clone(&responder));
        Some(responder)
    }

    fn plan(&self, entry: &Entry, after: Duration) {
        let at = Instant::now() + after;
        let before = entry.state.lock().due.replace(at);
        let mut due = self.due.lock();
        before.map(|before| due.remove(&(before, entry.id)));
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
                // Before it is too late: the responder may be slow, or down for a while.
                let half = Duration::from_secs(((answer.next_update - now()) / 2).max(0).unsigned_abs());
                refresh.min(half).max(MIN_REFRESH)
            }
            Err(error) => {
                if let Some(error) = error {
                    tracing::warn!(responder = %responder.url, "OCSP: {error}");
                }
                entry.state.lock().failed_at = Some(Instant::now());
                PAUSE
            }
        };
        // Not all at once, those that came at once.
        self.plan(entry, again.mul_f64(rand::random_range(0.8..1.0)));
    }
}

impl Responder {
    /// The error is `None` where nothing new went wrong.
    async fn exchange(&self, fetcher: &Fetcher, entry: &Entry, is_again: bool) -> Result<Answer, Option<String>> {
        // Closed never.
        let _permit = self.asking[usize::from(is_again)].acquire().await.map_err(|error| Some(error.to_string()))?;
        if self.failed_at.lock().is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(None);
        }
        let question = Question::about(&entry.id.1, &entry.issuer.der);
        let question = question.ok_or_else(|| Some("the certificate cannot be asked about".to_owned()))?;
        let bytes = fetcher.post_ocsp(&self.url, question.der.clone()).await;
        let bytes = bytes.inspect_err(|_| *self.failed_at.lock() = Some(Instant::now())).map_err(Some)?;
        let answer = question.answer(&bytes, &entry.issuer.der, now()).map_err(Some)?;
        let mut had_nonce = self.had_nonce.lock();
        if answer.has_nonce {
            *had_nonce = Some(Instant::now());
        } else if had_nonce.is_some_and(|at| at.elapsed() < NONCES_EXPECTED) {
            return Err(Some("an answer without the nonce that this responder has put into others".to_owned()));
        }
        let before = entry.state.lock().answer;
        if before.is_some_and(|(before, _)| answer.this_update < before.this_update) {
            // Without a nonce, somebody on the way could send one from before a revocation.
            return Err(Some("an answer that is older than the one before".to_owned()));
        }
        Ok(answer)
    }
}

/// An entry whose turn it is.
pub(super) struct DueEntry {
    statuses: Arc<Statuses>,
    entry: Arc<Entry>,
}

impl DueEntry {
    /// Asks the responder.
    pub(super) async fn ask(self, fetcher: &Fetcher) {
        let _turn = self.entry.turn.lock().await;
        self.statuses.ask_now(fetcher, &self.entry, true).await;
    }
}
