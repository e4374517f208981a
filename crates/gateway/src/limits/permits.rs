//! Permits that limit concurrency. Enters: a maximum. Leaves: a permit that is released when dropped, or none. The count
//! survives reloads: a reload may change the maximum while earlier permits are still held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of permits held.
#[derive(Debug, Default)]
pub(crate) struct Permits(AtomicU32);

/// A permit, released when dropped, also by a panic.
#[derive(Debug)]
#[must_use = "dropping it releases the permit"]
pub(crate) struct Permit(Arc<Permits>);

impl Permits {
    /// Takes a permit; `None` if `max` or more are held. Check and count are one atomic operation: never more than `max` are
    /// held, and no request is rejected while fewer are.
    pub(crate) fn take(self: &Arc<Self>, max: u32) -> Option<Permit> {
        let one_more = |taken: u32| (taken < max).then(|| taken + 1);
        // Relaxed: the counter does not order access to other memory.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Permit(Arc::clone(self)))
    }

    /// The number of permits held.
    pub(crate) fn taken(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn never_more_than_the_maximum_at_once() {
        const MAX: u32 = 3;
        let (permits, inside, granted) = (Arc::<Permits>::default(), AtomicU32::new(0), AtomicU32::new(0));
        let start = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        let Some(_permit) = permits.take(MAX) else { continue };
                        granted.fetch_add(1, Ordering::Relaxed);
                        let others = inside.fetch_add(1, Ordering::SeqCst);
                        assert!(others < MAX, "{others} others are inside");
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(permits.taken(), 0);
        assert!(granted.into_inner() > 0);
    }

    #[test]
    fn as_many_as_there_are_go_to_those_who_come_at_once() {
        let (permits, start) = (Arc::<Permits>::default(), Barrier::new(16));
        let held: Vec<Option<Permit>> = std::thread::scope(|scope| {
            let take = || {
                start.wait();
                permits.take(5)
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!((held.iter().flatten().count(), permits.taken()), (5, 5));
        drop(held);
        assert_eq!(permits.taken(), 0);
    }

    #[tokio::test]
    async fn given_back_by_a_panic_and_by_a_task_that_is_dropped() {
        let permits = Arc::<Permits>::default();
        let permit = permits.take(1);
        let panics = tokio::spawn(async move {
            let _permit = permit;
            panic!("on purpose");
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(permits.taken(), 0);
        let permit = permits.take(1);
        let waits = tokio::spawn(async move {
            let _permit = permit;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert!(permits.take(1).is_none());
        waits.abort();
        assert!(waits.await.unwrap_err().is_cancelled());
        assert_eq!(permits.taken(), 0);
    }

    #[test]
    fn a_lower_maximum_takes_nothing_away_and_grants_nothing() {
        let permits = Arc::<Permits>::default();
        let mut held: Vec<_> = (0..4).filter_map(|_| permits.take(4)).collect();
        assert!(permits.take(2).is_none());
        held.truncate(2);
        assert!(permits.take(2).is_none(), "two are still held");
        held.truncate(1);
        held.extend(permits.take(2));
        assert_eq!((held.len(), permits.taken()), (2, 2));
        assert!(permits.take(2).is_none());
        assert!(permits.take(3).is_some(), "a higher maximum grants more");
    }
}
