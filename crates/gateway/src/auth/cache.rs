//! A bounded cache of authentication results. Enters: a request, its result, and how long the result is valid. Leaves:
//! the result, until it expires. The request itself, which may contain a password, is not kept. Entries are
//! found by a digest under a random key of this process, so a leaked digest does not help to guess a password.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache as Moka;

use crate::outcome::Reject;
use crate::util::crypto::keyed_digest;

/// Maximum number of entries.
const MAX_ENTRIES: u64 = 65_536;
/// Bytes of an entry without the texts of its value: 400 bytes for the key and moka's bookkeeping, as measured, and the
/// value itself.
const ENTRY_LEN: usize = 512;
/// Maximum size: 32 MiB.
const MAX_BYTES: u64 = MAX_ENTRIES * ENTRY_LEN as u64;

/// The digest of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey([u8; 32]);

impl CacheKey {
    /// Digests several fields. The digest depends on where one field ends and the next begins.
    pub(super) fn of(fields: &[&[u8]]) -> Self {
        Self(keyed_digest(fields))
    }
}

/// Values by key, each with its own expiry. A full cache evicts the least frequently used entries first, so a flood of
/// new keys does not evict entries in use.
pub(super) struct Cache<V>(Moka<CacheKey, Entry<V>>);

#[derive(Clone)]
struct Entry<V> {
    value: V,
    period: Duration,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// `heap_len` returns the bytes that a value owns on the heap.
    pub(super) fn new(heap_len: fn(&V) -> usize) -> Self {
        let weigh =
            move |_: &CacheKey, entry: &Entry<V>| u32::try_from(ENTRY_LEN + heap_len(&entry.value)).unwrap_or(u32::MAX);
        Self(Moka::builder().max_capacity(MAX_BYTES).weigher(weigh).expire_after(ByEntry).build())
    }

    /// The cached value of a key, if it has not expired.
    pub(super) async fn get(&self, key: CacheKey) -> Option<V> {
        self.0.get(&key).await.map(|entry| entry.value)
    }

    /// Caches a value for `period`; a period of zero caches nothing.
    pub(super) async fn insert(&self, key: CacheKey, value: V, period: Duration) {
        if !period.is_zero() {
            self.0.insert(key, Entry { value, period }).await;
        }
    }

    /// The cached value of a key, or the result of `fetch`, which is cached for the period that `fetch` returns.
    ///
    /// # Errors
    /// Those of `fetch`. Errors are not cached.
    pub(super) async fn get_or_fetch(
        &self,
        key: CacheKey,
        fetch: impl Future<Output = Result<(V, Duration), Reject>>,
    ) -> Result<V, Reject> {
        if let Some(value) = self.get(key).await {
            return Ok(value);
        }
        let (value, period) = fetch.await?;
        self.insert(key, value.clone(), period).await;
        Ok(value)
    }

    /// Like [`Self::get_or_fetch`], with a single flight for each key: callers that arrive during a fetch receive its
    /// value or its error. If the fetching caller is cancelled, the next one fetches.
    ///
    /// # Errors
    /// Those of `fetch`. Errors are not cached.
    pub(super) async fn get_or_fetch_once(
        &self,
        key: CacheKey,
        fetch: impl Future<Output = Result<(V, Duration), Reject>>,
    ) -> Result<V, Reject> {
        let fetch = async { fetch.await.map(|(value, period)| Entry { value, period }) };
        let entry = self.0.try_get_with(key, fetch).await;
        entry.map(|entry| entry.value).map_err(|reject: Arc<Reject>| *reject)
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

/// Expires each entry after its own period.
struct ByEntry;

impl<V> Expiry<CacheKey, Entry<V>> for ByEntry {
    fn expire_after_create(&self, _: &CacheKey, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        Some(entry.period)
    }

    fn expire_after_update(&self, _: &CacheKey, entry: &Entry<V>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.period)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn key(n: u64) -> CacheKey {
        CacheKey::of(&[&n.to_be_bytes()])
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert!(CacheKey::of(&[b"ab", b"c"]) != CacheKey::of(&[b"a", b"bc"]));
        assert!(CacheKey::of(&[b"a", b""]) != CacheKey::of(&[b"a"]));
        assert!(CacheKey::of(&[b"a", b"b"]) == CacheKey::of(&[b"a", b"b"]));
    }

    #[tokio::test]
    async fn each_answer_is_forgotten_in_its_own_time() {
        let cache = Cache::new(|_| 0);
        cache.insert(key(0), 0, Duration::ZERO).await;
        assert_eq!(cache.get(key(0)).await, None);
        cache.insert(key(0), 0, Duration::from_nanos(1)).await;
        cache.insert(key(1), 1, LONG).await;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        assert_eq!((cache.get(key(0)).await, cache.get(key(1)).await), (None, Some(1)));
        cache.insert(key(1), 2, Duration::from_nanos(1)).await;
        while begin.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert_eq!(cache.get(key(1)).await, None, "the period of the last insertion applies");
        for _ in 0..2 {
            let fetches = cache.get_or_fetch(key(2), async { Ok((3, Duration::ZERO)) }).await;
            assert_eq!((fetches, cache.get(key(2)).await), (Ok(3), None));
        }
    }

    #[tokio::test]
    async fn bounded_in_number_and_in_bytes() {
        let cache = Cache::new(|len: &usize| *len);
        for n in 0..MAX_ENTRIES + 5000 {
            cache.insert(key(n), 0, LONG).await;
        }
        cache.0.run_pending_tasks().await;
        assert!(cache.0.entry_count() <= MAX_ENTRIES && cache.0.entry_count() > MAX_ENTRIES / 2);
        let cache = Cache::new(|len: &usize| *len);
        for n in 0..2000 {
            cache.insert(key(n), 64 << 10, LONG).await;
        }
        cache.0.run_pending_tasks().await;
        assert!(cache.0.weighted_size() <= MAX_BYTES, "{}", cache.0.weighted_size());
        assert!((400..=512).contains(&cache.0.entry_count()), "{}", cache.0.entry_count());
    }

    /// Starts a fetch that completes once `gate` has a permit.
    fn spawn_fetch(
        cache: &Arc<Cache<u32>>,
        fetches: &Arc<AtomicU32>,
        gate: &Arc<tokio::sync::Semaphore>,
        result: Result<u32, Reject>,
    ) -> tokio::task::JoinHandle<Result<u32, Reject>> {
        let (cache, fetches, gate) = (Arc::clone(cache), Arc::clone(fetches), Arc::clone(gate));
        tokio::spawn(async move {
            let fetch = async {
                fetches.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
                Ok((result?, LONG))
            };
            cache.get_or_fetch_once(key(1), fetch).await
        })
    }

    #[tokio::test]
    async fn who_asks_the_same_at_the_same_time_gets_the_same() {
        let (cache, fetches) = (Arc::new(Cache::new(|_| 0)), Arc::<AtomicU32>::default());
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let failed: Vec<_> =
            (0..4).map(|_| spawn_fetch(&cache, &fetches, &gate, Err(Reject::AuthenticationBusy))).collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for task in failed {
            assert_eq!(task.await.unwrap(), Err(Reject::AuthenticationBusy));
        }
        assert_eq!((fetches.swap(0, Ordering::Relaxed), cache.get(key(1)).await), (1, None));
        let good: Vec<_> = (0..4).map(|n| spawn_fetch(&cache, &fetches, &gate, Ok(n))).collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for task in good {
            assert_eq!(task.await.unwrap(), Ok(0));
        }
        assert_eq!((fetches.load(Ordering::Relaxed), cache.get(key(1)).await), (1, Some(0)));
    }

    #[tokio::test]
    async fn the_next_asks_if_the_one_who_asks_goes_away() {
        let (cache, fetches) = (Arc::new(Cache::new(|_| 0)), Arc::<AtomicU32>::default());
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let first = spawn_fetch(&cache, &fetches, &gate, Ok(1));
        let second = spawn_fetch(&cache, &fetches, &gate, Ok(2));
        tokio::task::yield_now().await;
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(2));
        assert_eq!(fetches.load(Ordering::Relaxed), 2);
    }
}
