//! A rate that clients wait for. Enters: the address of a client. Leaves: its turn within the rate, or the end of its patience.
//! Networks take turns: a queue in the order of arrival would belong to whoever connects most.

use std::net::IpAddr;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Bucket, FairSlots};
use crate::config::tables::Rate;

/// Clients that wait for a rate. Who is first waits for a token; the others wait for being first.
#[derive(Debug)]
pub(crate) struct Paced(FairSlots);

/// The tokens of a rate.
#[derive(Debug)]
pub(crate) struct Tokens(Mutex<Bucket>);

/// Too many clients wait, or the client has waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyWait;

impl Default for Tokens {
    fn default() -> Self {
        Self(Mutex::new(Bucket::new(Instant::now())))
    }
}

impl Paced {
    /// The clients that get slots of `queue`, which has one.
    pub(crate) const fn new(queue: FairSlots) -> Self {
        Self(queue)
    }

    /// Waits until the rate allows another one, or `deadline`. A client that is given up meanwhile takes no token. `tokens` may
    /// be shared with the queue of another configuration.
    ///
    /// # Errors
    /// It would take too long, or too many wait.
    pub(crate) async fn wait(
        &self,
        Tokens(tokens): &Tokens,
        rate: Rate,
        address: IpAddr,
        deadline: Instant,
    ) -> Result<(), TooManyWait> {
        let turn = async {
            let _first = self.0.take(address).await.ok_or(TooManyWait)?;
            while !tokens.lock().try_take(rate, Instant::now()) {
                let ready = tokens.lock().ready_at(rate, 1);
                sleep_until(ready).await;
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
}
