//! A rate that clients wait for. Enters: the address of a client. Leaves: its turn within the rate, or a timeout.
//! Networks take turns: a queue in the order of arrival would belong to whoever connects most.

use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Bucket, FairSlots};
use crate::config::tables::Rate;

/// Clients that wait for a rate. Who is first waits for a token; the others wait for being first.
#[derive(Debug)]
pub(crate) struct Paced(FairSlots);

/// How soon a client that waits sees a rate that a reload has changed.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// The tokens of a rate. They survive reloads.
#[derive(Debug)]
pub(crate) struct Tokens(Mutex<State>);

#[derive(Debug)]
struct State {
    bucket: Bucket,
    in_use: InUse,
}

/// The rate of the configuration in use, which counts also for who began to wait before.
#[derive(Clone, Copy, Debug)]
enum InUse {
    /// That of who waits.
    NotSet,
    /// `None`: there is no limit.
    Rate(Option<Rate>),
}

/// Too many clients wait, or the client has waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyWait;

impl Default for Tokens {
    fn default() -> Self {
        Self(Mutex::new(State { bucket: Bucket::new(Instant::now()), in_use: InUse::NotSet }))
    }
}

impl Tokens {
    /// Sets the rate of the configuration that is in use from now on; `None`: nobody has to wait any more.
    pub(crate) fn set_rate(&self, rate: Option<Rate>) {
        self.0.lock().in_use = InUse::Rate(rate);
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; when to try again.
    fn try_take(&self, rate: Rate, now: Instant) -> Result<(), Instant> {
        let State { bucket, in_use } = &mut *self.0.lock();
        let rate = match *in_use {
            InUse::NotSet => rate,
            InUse::Rate(Some(rate)) => rate,
            InUse::Rate(None) => return Ok(()),
        };
        if bucket.try_take(rate, now) { Ok(()) } else { Err(bucket.ready_at(rate, 1).min(now + CHECK_AGAIN)) }
    }
}

impl Paced {
    /// The clients that get slots of `queue`, which has one.
    pub(crate) const fn new(queue: FairSlots) -> Self {
        Self(queue)
    }

    /// Waits until the rate allows another one, or `deadline`. A client that is given up meanwhile takes no token. `tokens` may
    /// be shared with the queue of another configuration. `rate`: until [`Tokens::set_rate`] knows better.
    ///
    /// # Errors
    /// It would take too long, or too many wait.
    pub(crate) async fn wait(
        &self,
        tokens: &Tokens,
        rate: Rate,
        address: IpAddr,
        deadline: Instant,
    ) -> Result<(), TooManyWait> {
        let turn = async {
            let _first = self.0.take(address).await.ok_or(TooManyWait)?;
            while let Err(again) = tokens.try_take(rate, Instant::now()) {
                sleep_until(again).await;
            }
            Ok(())
        };
        timeout_at(deadline, turn).await.unwrap_or(Err(TooManyWait))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fleet_comes_at_the_rate_and_nobody_waits_beyond_its_deadline() {
        let rate = Rate { amount: 100, per: Duration::from_secs(1), burst: 100 };
        let queue = Paced::new(FairSlots::new(1, 10_000));
        let (paced, begin) = (Arc::new((queue, Tokens::default())), Instant::now());
        let tasks: Vec<_> = (0..1000_u16)
            .map(|n| {
                let (paced, [high, low]) = (Arc::clone(&paced), n.to_be_bytes());
                let address = [10, 0, high, low].into();
                tokio::spawn(async move { paced.0.wait(&paced.1, rate, address, begin + Duration::from_secs(5)).await })
            })
            .collect();
        let mut served = 0;
        for task in tasks {
            served += usize::from(task.await.unwrap().is_ok());
        }
        // The burst, and 100 a second.
        assert!((595..=605).contains(&served), "{served}");
        assert!(begin.elapsed() <= Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_changes_the_rate_of_those_that_wait() {
        let rate = |amount| Rate { amount, per: Duration::from_secs(3600), burst: 1 };
        for (changed, expected) in
            [(Some(rate(3_600_000)), 100..=105), (None, 0..=1), (Some(rate(36_000)), 9_900..=11_100)]
        {
            let paced = Arc::new((Paced::new(FairSlots::new(1, 1000)), Tokens::default()));
            let tasks: Vec<_> = (0..101)
                .map(|_| {
                    let (paced, address) = (Arc::clone(&paced), [127, 0, 0, 1].into());
                    let deadline = Instant::now() + Duration::from_secs(3600);
                    tokio::spawn(async move { paced.0.wait(&paced.1, rate(1), address, deadline).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(500)).await;
            paced.1.set_rate(changed);
            let begin = Instant::now() + Duration::from_millis(500);
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let took = begin.elapsed().as_millis();
            assert!(expected.contains(&took), "{changed:?}: {took} ms");
        }
    }
}
