//! What OCSP responders have said of certificates that devices have shown, for as long as it holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::Semaphore;

use super::credential::Key;
use super::fetch::Fetcher;
use super::issuers::Issuer;
use super::ocsp::{Answer, OcspStatus, Question};
use super::{IssuerId, Serial, now};

/// Certificates remembered at most; about 200 bytes each.
const MAX_ENTRIES: usize = 1_000_000;
/// Questions under way at once.
const MAX_ASKING: usize = 64;
/// A responder that failed is left alone for so long, in seconds.
const PAUSE: i64 = 5;
/// An answer is not asked for again sooner, in seconds.
const MIN_REFRESH: i64 = 5;
/// Entries whose turn it is that are looked at in one go.
const BATCH: usize = 4096;

type Id = (IssuerId, Serial);

/// The answers.
#[derive(Debug)]
pub(super) struct Statuses {
    entries: RwLock<HashMap<Id, Arc<Entry>>>,
    /// When which is to be asked for again, in seconds since 1970.
    due: Mutex<BTreeSet<(i64, Id)>>,
    asking: Semaphore,
    /// Responders that put nonces into their answers; they always have to.
    with_nonce: Mutex<BTreeSet<Arc<str>>>,
    /// Certificates found to be revoked, whose sessions have not been told yet.
    revoked: Mutex<Vec<Key>>,
}

#[derive(Debug)]
struct Entry {
    id: Id,
    issuer: Arc<Issuer>,
    responder: Arc<str>,
    /// Seconds.
    refresh: i64,
    known: Mutex<Known>,
    /// Held by whoever asks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    answer: Option<Answer>,
    /// Seconds since 1970.
    failed_at: Option<i64>,
}

impl Default for Statuses {
    fn default() -> Self {
        Self {
            entries: RwLock::default(),
            due: Mutex::default(),
            asking: Semaphore::new(MAX_ASKING),
            with_nonce: Mutex::default(),
            revoked: Mutex::default(),
        }
    }
}

impl Statuses {
    /// What is known of a certificate at present; `None`: nothing.
    pub(super) fn get(&self, issuer: IssuerId, serial: Serial, now: i64) -> Option<OcspStatus> {
        let entry = self.entry(&(issuer, serial))?;
        let known = lock(&entry.known);
        // That an answer is out of date does not give anybody back a certificate.
        let holds = |answer: &Answer| now < answer.next_update || answer.status == OcspStatus::Revoked;
        known.answer.filter(holds).map(|answer| answer.status)
    }

    /// Asks the responder, unless the answer is there by now, or there was none a moment ago.
    pub(super) async fn ask(
        &self,
        fetcher: &Fetcher,
        serial: Serial,
        issuer: Arc<Issuer>,
        responder: &str,
        refresh: i64,
    ) {
        let id = (issuer.id, serial);
        let entry = match self.entry(&id) {
            Some(entry) => entry,
            None => {
                let entry = Entry {
                    id,
                    issuer,
                    responder: responder.into(),
                    refresh,
                    known: Mutex::default(),
                    turn: tokio::sync::Mutex::default(),
                };
                let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
                if entries.len() >= MAX_ENTRIES {
                    tracing::error!("OCSP: too many certificates to remember more");
                    return;
                }
                Arc::clone(entries.entry(id).or_insert(Arc::new(entry)))
            }
        };
        let _turn = entry.turn.lock().await;
        let failed_at = lock(&entry.known).failed_at;
        if self.get(id.0, id.1, now()).is_some() || failed_at.is_some_and(|at| now() < at + PAUSE) {
            return;
        }
        self.ask_now(fetcher, &entry).await;
    }

    /// Asks again for those whose turn it is, of which `is_live` says that somebody is connected with them; forgets the
    /// others once their answers do not hold any more.
    pub(super) fn due(self: &Arc<Self>, is_live: impl Fn(Key) -> bool) -> Vec<DueEntry> {
        let now = now();
        let taken: Vec<(i64, Id)> = {
            let mut due = lock(&self.due);
            let taken: Vec<_> = due.range(..(now + 1, (IssuerId::MIN, Serial::MIN))).take(BATCH).copied().collect();
            for entry in &taken {
                due.remove(entry);
            }
            taken
        };
        let mut ask = Vec::new();
        for (_, id) in taken {
            let Some(entry) = self.entry(&id) else { continue };
            let next_update = lock(&entry.known).answer.map_or(now, |answer| answer.next_update);
            if is_live(super::credential::key(&id.0, &id.1)) {
                ask.push(DueEntry { statuses: Arc::clone(self), entry });
            } else if now < next_update {
                lock(&self.due).insert((next_update, id));
            } else {
                self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        }
        ask
    }

    /// Certificates found to be revoked since this was asked last.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut *lock(&self.revoked))
    }

    fn entry(&self, id: &Id) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    async fn ask_now(&self, fetcher: &Fetcher, entry: &Arc<Entry>) {
        // Closed never.
        let Ok(_permit) = self.asking.acquire().await else { return };
        let result = self.exchange(fetcher, entry).await;
        let now = now();
        let again = match result {
            Ok(answer) => {
                let before = {
                    let mut known = lock(&entry.known);
                    known.failed_at = None;
                    known.answer.replace(answer).map(|answer| answer.status)
                };
                if answer.status == OcspStatus::Revoked && before != Some(OcspStatus::Revoked) {
                    lock(&self.revoked).push(super::credential::key(&entry.id.0, &entry.id.1));
                }
                // Before it is too late: the responder may be slow, or down for a while.
                let half = (answer.next_update - now) / 2;
                now + entry.refresh.min(half).max(MIN_REFRESH)
            }
            Err(error) => {
                tracing::warn!(responder = %entry.responder, "OCSP: {error}");
                lock(&entry.known).failed_at = Some(now);
                now + PAUSE
            }
        };
        lock(&self.due).insert((again, entry.id));
    }

    async fn exchange(&self, fetcher: &Fetcher, entry: &Entry) -> Result<Answer, String> {
        let question =
            Question::about(&entry.id.1, &entry.issuer.der).ok_or("the certificate cannot be asked about")?;
        let answer = fetcher.post_ocsp(&entry.responder, question.der.clone()).await?;
        let answer = question.answer(&answer, &entry.issuer.der, now())?;
        let mut with_nonce = lock(&self.with_nonce);
        if answer.has_nonce {
            with_nonce.insert(Arc::clone(&entry.responder));
        } else if with_nonce.contains(&entry.responder) {
            return Err("an answer without the nonce that this responder has put into others".to_owned());
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
        self.statuses.ask_now(fetcher, &self.entry).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
