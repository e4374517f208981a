//! Answers of a moment ago. Enters: a question, and how long its answer may be used. Leaves: the answer, until then.
//! Questions are kept as a digest with a key of this process, so that no password stands in memory and none can be
//! looked for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache as Moka;

use crate::outcome::Reject;
use crate::util::crypto::keyed_digest;

/// Entries at most.
const MAX_ENTRIES: u64 = 65_536;
/// What an entry costs besides the texts of its answer: 400 bytes for the key and moka's bookkeeping, measured, and an
/// answer without texts.
const ENTRY_LEN: u64 = 512;
/// Bytes at most: 32 MiB.
const MAX_BYTES: u64 = MAX_ENTRIES * ENTRY_LEN;

/// The digest of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question([u8; 32]);

impl Question {
    /// Of several fields; where one ends and the next begins counts, too.
    pub(super) fn of(fields: &[&[u8]]) -> Self {
        Self(keyed_digest(fields))
    }
}

/// Answers by question, each for a time. When it is full, those that are asked for least leave first, so that a flood
/// of new questions does not drive out the answers that are in use.
pub(super) struct Cache<V>(Moka<Question, Entry<V>>);

#[derive(Clone)]
struct Entry<V> {
    answer: V,
    period: Duration,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// `heap_len`: the bytes that an answer holds besides itself.
    pub(super) fn new(heap_len: fn(&V) -> usize) -> Self {
        let weigh = move |_: &Question, entry: &Entry<V>| {
            u32::try_from(ENTRY_LEN as usize + heap_len(&entry.answer)).unwrap_or(u32::MAX)
        };
        Self(Moka::builder().max_capacity(MAX_BYTES).weigher(weigh).expire_after(ByEntry).build())
    }

    /// The answer to a question, if it is known.
    pub(super) async fn get(&self, question: Question) -> Option<V> {
        self.0.get(&question).await.map(|entry| entry.answer)
    }

    /// Keeps an answer for a while; not at all if that is zero.
    pub(super) async fn put(&self, question: Question, answer: V, period: Duration) {
        if !period.is_zero() {
            self.0.insert(question, Entry { answer, period }).await;
        }
    }

    /// The answer to a question: if it is not known, what `ask` finds out, and for how long.
    ///
    /// # Errors
    /// Those of `ask`, which are not kept.
    pub(super) async fn get_or_ask(
        &self,
        question: Question,
        ask: impl Future<Output = Result<(V, Duration), Reject>>,
    ) -> Result<V, Reject> {
        if let Some(answer) = self.get(question).await {
            return Ok(answer);
        }
        let (answer, period) = ask.await?;
        self.put(question, answer.clone(), period).await;
        Ok(answer)
    }

    /// The same; who comes with the same question while one asks gets the same answer, or the same error. If the one
    /// who asks goes away, the next asks for itself.
    ///
    /// # Errors
    /// Those of `ask`, which are not kept.
    pub(super) async fn get_or_ask_once(
        &self,
        question: Question,
        ask: impl Future<Output = Result<(V, Duration), Reject>>,
    ) -> Result<V, Reject> {
        let ask = async { ask.await.map(|(answer, period)| Entry { answer, period }) };
        let found = self.0.try_get_with(question, ask).await;
        found.map(|entry| entry.answer).map_err(|reject: Arc<Reject>| *reject)
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

/// Each entry says itself how long it may be used.
struct ByEntry;

impl<V> Expiry<Question, Entry<V>> for ByEntry {
    fn expire_after_create(&self, _: &Question, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        Some(entry.period)
    }

    fn expire_after_update(&self, _: &Question, entry: &Entry<V>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.period)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn question(n: u64) -> Question {
        Question::of(&[&n.to_be_bytes()])
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert!(Question::of(&[b"ab", b"c"]) != Question::of(&[b"a", b"bc"]));
        assert!(Question::of(&[b"a", b""]) != Question::of(&[b"a"]));
        assert!(Question::of(&[b"a", b"b"]) == Question::of(&[b"a", b"b"]));
    }

    #[tokio::test]
    async fn each_answer_is_forgotten_in_its_own_time() {
        let cache = Cache::new(|_| 0);
        cache.put(question(0), 0, Duration::ZERO).await;
        assert_eq!(cache.get(question(0)).await, None);
        cache.put(question(0), 0, Duration::from_nanos(1)).await;
        cache.put(question(1), 1, LONG).await;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        assert_eq!((cache.get(question(0)).await, cache.get(question(1)).await), (None, Some(1)));
        cache.put(question(1), 2, Duration::from_nanos(1)).await;
        while begin.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert_eq!(cache.get(question(1)).await, None, "the time of the last answer counts");
        for _ in 0..2 {
            let asked = cache.get_or_ask(question(2), async { Ok((3, Duration::ZERO)) }).await;
            assert_eq!((asked, cache.get(question(2)).await), (Ok(3), None));
        }
    }

    #[tokio::test]
    async fn bounded_in_number_and_in_bytes() {
        let cache = Cache::new(|len: &usize| *len);
        for n in 0..MAX_ENTRIES + 5000 {
            cache.put(question(n), 0, LONG).await;
        }
        cache.0.run_pending_tasks().await;
        assert!(cache.0.entry_count() <= MAX_ENTRIES && cache.0.entry_count() > MAX_ENTRIES / 2);
        let cache = Cache::new(|len: &usize| *len);
        for n in 0..2000 {
            cache.put(question(n), 64 << 10, LONG).await;
        }
        cache.0.run_pending_tasks().await;
        assert!(cache.0.weighted_size() <= MAX_BYTES, "{}", cache.0.weighted_size());
        assert!((400..=512).contains(&cache.0.entry_count()), "{}", cache.0.entry_count());
    }

    /// Begins to ask a question, which is answered once `answer` says so.
    fn ask(
        cache: &Arc<Cache<u32>>,
        asked: &Arc<AtomicU32>,
        answer: &Arc<tokio::sync::Semaphore>,
        result: Result<u32, Reject>,
    ) -> tokio::task::JoinHandle<Result<u32, Reject>> {
        let (cache, asked, answer) = (Arc::clone(cache), Arc::clone(asked), Arc::clone(answer));
        tokio::spawn(async move {
            let ask = async {
                asked.fetch_add(1, Ordering::Relaxed);
                answer.acquire().await.unwrap().forget();
                Ok((result?, LONG))
            };
            cache.get_or_ask_once(question(1), ask).await
        })
    }

    #[tokio::test]
    async fn who_asks_the_same_at_the_same_time_gets_the_same() {
        let (cache, asked) = (Arc::new(Cache::new(|_| 0)), Arc::<AtomicU32>::default());
        let answer = Arc::new(tokio::sync::Semaphore::new(0));
        let failed: Vec<_> = (0..4).map(|_| ask(&cache, &asked, &answer, Err(Reject::AuthenticationBusy))).collect();
        tokio::task::yield_now().await;
        answer.add_permits(1);
        for task in failed {
            assert_eq!(task.await.unwrap(), Err(Reject::AuthenticationBusy));
        }
        assert_eq!((asked.swap(0, Ordering::Relaxed), cache.get(question(1)).await), (1, None));
        let good: Vec<_> = (0..4).map(|n| ask(&cache, &asked, &answer, Ok(n))).collect();
        tokio::task::yield_now().await;
        answer.add_permits(1);
        for task in good {
            assert_eq!(task.await.unwrap(), Ok(0));
        }
        assert_eq!((asked.load(Ordering::Relaxed), cache.get(question(1)).await), (1, Some(0)));
    }

    #[tokio::test]
    async fn the_next_asks_if_the_one_who_asks_goes_away() {
        let (cache, asked) = (Arc::new(Cache::new(|_| 0)), Arc::<AtomicU32>::default());
        let answer = Arc::new(tokio::sync::Semaphore::new(0));
        let first = ask(&cache, &asked, &answer, Ok(1));
        let second = ask(&cache, &asked, &answer, Ok(2));
        tokio::task::yield_now().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        answer.add_permits(1);
        assert_eq!(second.await.unwrap(), Ok(2));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
