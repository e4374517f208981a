//! Limits of connections: how many one address has, how often it connects, and how often all clients of a listener do.
//! Enters: an address. Leaves: a permit, a rejection, or how long a connection has to wait. Bounded in memory whatever the
//! number of addresses.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::addresses::network_of;
use super::{Bucket, ClientNetwork};
use crate::config::tables::{Limits, Rate};
use crate::util::weak_map::WeakMap;

/// Addresses whose rate is counted, about 50 bytes each: 5 MB.
const MAX_ADDRESSES: usize = 100_000;
/// Connections of one client network may always wait, if they are no more than this.
const MIN_SHARE: u32 = 32;

/// The limits of a listener.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    per_address: Option<u32>,
    rate_per_address: Option<Rate>,
    rate: Option<Rate>,
    counts: Arc<ConnectionCounts>,
}

/// The counts of all listeners, which survive reloads, by listener name.
#[derive(Debug, Default)]
pub(crate) struct AllConnectionCounts(WeakMap<String, ConnectionCounts>);

/// The counts of one listener.
#[derive(Debug)]
pub(crate) struct ConnectionCounts {
    /// Open connections by address; of IPv6, by its first 64 bits.
    open: Mutex<HashMap<IpAddr, u32>>,
    rates: Mutex<Rates>,
    turns: Mutex<Turns>,
}

/// The rates of addresses. An address whose bucket is full is forgotten.
#[derive(Debug)]
struct Rates {
    by_address: HashMap<IpAddr, Bucket>,
    cleaned_at: Instant,
}

/// The queue of connections that wait because of `connect_rate`.
#[derive(Debug)]
struct Turns {
    bucket: Bucket,
    waiting: HashMap<ClientNetwork, u32>,
}

/// The permit of an open connection; `None`: they are not limited.
#[derive(Debug, Default)]
#[must_use = "dropping it releases the permit"]
pub(crate) struct AddressPermit(Option<Box<(Arc<ConnectionCounts>, IpAddr)>>);

impl Default for ConnectionCounts {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            open: Mutex::default(),
            rates: Mutex::new(Rates { by_address: HashMap::new(), cleaned_at: now }),
            turns: Mutex::new(Turns { bucket: Bucket::new(now), waiting: HashMap::new() }),
        }
    }
}

impl ConnectionLimits {
    pub(crate) fn new(limits: &Limits, listener: &str, counts: &AllConnectionCounts) -> Self {
        Self {
            per_address: limits.connections_per_address,
            rate_per_address: limits.connect_rate_per_address,
            rate: limits.connect_rate,
            counts: counts.0.get_or_insert_with(listener.to_owned(), ConnectionCounts::default),
        }
    }

    /// Counts a connection from an address.
    ///
    /// # Errors
    /// The name of the limit that it exceeds.
    pub(crate) fn take(&self, address: IpAddr) -> Result<AddressPermit, &'static str> {
        let address = network_of(address);
        if let Some(rate) = self.rate_per_address
            && !self.counts.rates.lock().try_take(address, rate, Instant::now())
        {
            return Err("connect_rate_per_address");
        }
        let Some(max) = self.per_address else { return Ok(AddressPermit(None)) };
        let mut open = self.counts.open.lock();
        let count = open.entry(address).or_default();
        if *count >= max {
            return Err("connections_per_address");
        }
        *count += 1;
        Ok(AddressPermit(Some(Box::new((Arc::clone(&self.counts), address)))))
    }

    /// Waits until `connect_rate` allows another connection, at most for `patience`.
    ///
    /// # Errors
    /// The name of the limit: it would take longer, or too many connections of the same network wait.
    pub(crate) async fn wait(&self, address: IpAddr, patience: Duration) -> Result<(), &'static str> {
        const LIMIT: &str = "connect_rate";
        let Some(rate) = self.rate else { return Ok(()) };
        let (network, now) = (ClientNetwork::of(address), Instant::now());
        let at = {
            let mut turns = self.counts.turns.lock();
            turns.bucket.limit_debt(rate, patience, now);
            let at = turns.bucket.ready_at(rate, 1);
            if at <= now {
                turns.bucket.take(rate, 1, now);
                return Ok(());
            }
            // A queue in the order of arrival belongs to whoever sends most: one network gets a quarter of it.
            let capacity = patience.as_nanos() * u128::from(rate.amount) / rate.per.as_nanos().max(1);
            let share = u32::try_from(capacity / 4).unwrap_or(u32::MAX).max(MIN_SHARE);
            let waiting = turns.waiting.get(&network).copied().unwrap_or(0);
            if at > now + patience || waiting >= share {
                return Err(LIMIT);
            }
            turns.bucket.take(rate, 1, now);
            turns.waiting.insert(network, waiting + 1);
            at
        };
        let _waiting = Waiting { counts: &self.counts, network };
        sleep_until(at).await;
        Ok(())
    }
}

impl Rates {
    fn try_take(&mut self, address: IpAddr, rate: Rate, now: Instant) -> bool {
        // At most once a second: a scan for every connection would help an attacker.
        if self.by_address.len() >= MAX_ADDRESSES && now >= self.cleaned_at + Duration::from_secs(1) {
            self.cleaned_at = now;
            self.by_address.retain(|_, bucket| !bucket.is_full(now));
        }
        let is_full = self.by_address.len() >= MAX_ADDRESSES;
        match self.by_address.entry(address) {
            Entry::Occupied(mut bucket) => bucket.get_mut().try_take(rate, now),
            // So many addresses at once are not slowed down by a rate of each.
            Entry::Vacant(_) if is_full => true,
            Entry::Vacant(vacant) => vacant.insert(Bucket::new(now)).try_take(rate, now),
        }
    }
}

/// A connection in the queue.
struct Waiting<'a> {
    counts: &'a ConnectionCounts,
    network: ClientNetwork,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        release(&mut self.counts.turns.lock().waiting, &self.network);
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            release(&mut permit.0.open.lock(), &permit.1);
        }
    }
}

fn release<K: std::hash::Hash + Eq + Copy>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Entry::Occupied(mut count) = counts.entry(*key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(amount: u64, burst: u64) -> Rate {
        Rate { amount, per: Duration::from_secs(1), burst }
    }

    fn limits(limits: &Limits) -> ConnectionLimits {
        ConnectionLimits::new(limits, "l", &AllConnectionCounts::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_connections_and_gets_them_back() {
        let limits = limits(&Limits { connections_per_address: Some(2), ..Limits::default() });
        let mut held: Vec<_> = (0..2).map(|_| limits.take(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(limits.take(ip("192.0.2.1")).unwrap_err(), "connections_per_address");
        assert_eq!(limits.take(ip("::ffff:192.0.2.1")).unwrap_err(), "connections_per_address");
        held.push(limits.take(ip("192.0.2.2")).unwrap());
        held.push(limits.take(ip("2001:db8::1")).unwrap());
        held.push(limits.take(ip("2001:db8::2")).unwrap());
        assert!(limits.take(ip("2001:db8::3")).is_err(), "a /64 is one address");
        drop(held);
        assert!(limits.counts.open.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rates_of_any_number_of_addresses_take_bounded_memory() {
        let limits = limits(&Limits { connect_rate_per_address: Some(rate(1, 1)), ..Limits::default() });
        for number in 0..200_000_u32 {
            let _ = limits.take(IpAddr::from(number.to_be_bytes()));
        }
        assert_eq!(limits.counts.rates.lock().by_address.len(), MAX_ADDRESSES);
        assert!(limits.take(IpAddr::from(7_u32.to_be_bytes())).is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(limits.take(ip("198.51.100.1")).is_ok() && limits.take(ip("198.51.100.1")).is_err());
        assert_eq!(limits.counts.rates.lock().by_address.len(), 1, "the others are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_over_the_rate_wait_and_one_network_cannot_take_the_queue() {
        let limits = Arc::new(limits(&Limits { connect_rate: Some(rate(100, 1)), ..Limits::default() }));
        let (start, patience) = (Instant::now(), Duration::from_secs(4));
        let wait = |address: &str| {
            let (limits, address) = (Arc::clone(&limits), ip(address));
            tokio::spawn(async move { limits.wait(address, patience).await.map(|()| start.elapsed()) })
        };
        let flood: Vec<_> = (0..400).map(|_| wait("192.0.2.1")).collect();
        tokio::task::yield_now().await;
        let other = wait("192.0.2.2");
        let (mut admitted, mut last) = (0, Duration::ZERO);
        for task in flood {
            if let Ok(elapsed) = task.await.unwrap() {
                (admitted, last) = (admitted + 1, elapsed.max(last));
            }
        }
        assert_eq!(admitted, 1 + 100, "a quarter of four seconds' worth");
        assert!(last >= Duration::from_millis(990), "{last:?}");
        assert!(other.await.unwrap().is_ok_and(|elapsed| elapsed < Duration::from_millis(1100)));
        assert!(limits.counts.turns.lock().waiting.is_empty());
    }
}
