//! Limits of connections: how many one address has, how often it connects, and how often all clients of a listener do.
//! Enters: an address. Leaves: a permit, a rejection, or how long a connection has to wait. Bounded in memory whatever the
//! number of addresses.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::addresses::host_of;
use super::paced::{Paced, Tokens};
use super::{Bucket, FairSlots};
use crate::config::tables::{self, Rate};
use crate::peer::PeerAddress;
use crate::util::weak_map::WeakMap;

/// Addresses whose rate is counted, about 50 bytes each: 5 MB.
const MAX_ADDRESSES: usize = 100_000;
/// So many connections may always wait for `connect_rate`, and no more than the second number.
const WAITING: (u128, u128) = (128, 65_536);

/// The limits of a listener.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    per_address: Option<u32>,
    rate_per_address: Option<Rate>,
    rate: Option<Rate>,
    /// The connections over `rate`.
    queue: Paced,
    /// How long a connection waits in it.
    patience: Duration,
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
    /// For `connect_rate`.
    connects: Tokens,
}

/// The rates of addresses. An address whose bucket is full is forgotten.
#[derive(Debug)]
struct Rates {
    by_address: HashMap<IpAddr, Bucket>,
    cleaned_at: Instant,
}

/// The permit of an open connection; `None`: one over a limit, served only as far as CONNECT, to answer it.
#[derive(Debug, Default)]
#[must_use = "dropping it releases the permit"]
pub(crate) struct AddressPermit(Option<Box<(Arc<ConnectionCounts>, IpAddr)>>);

impl Default for ConnectionCounts {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            open: Mutex::default(),
            rates: Mutex::new(Rates { by_address: HashMap::new(), cleaned_at: now }),
            connects: Tokens::default(),
        }
    }
}

impl ConnectionLimits {
    /// `patience`: how long a connection over `connect_rate` waits. As many may wait as can be served in that time.
    pub(crate) fn new(
        limits: tables::ConnectionLimits,
        patience: Duration,
        listener: &str,
        counts: &AllConnectionCounts,
    ) -> Self {
        let served = |rate: Rate| patience.as_nanos() * u128::from(rate.amount) / rate.per.as_nanos().max(1);
        let waiting = limits.rate.map_or(0, served).clamp(WAITING.0, WAITING.1);
        Self {
            per_address: limits.per_address,
            rate_per_address: limits.rate_per_address,
            rate: limits.rate,
            queue: Paced::new(FairSlots::new(1, usize::try_from(waiting).unwrap_or(usize::MAX))),
            patience,
            counts: counts.0.get_or_insert_with(listener.to_owned(), ConnectionCounts::default),
        }
    }

    /// Counts a connection from an address.
    ///
    /// # Errors
    /// The name of the limit that it exceeds.
    pub(crate) fn take(&self, address: PeerAddress) -> Result<AddressPermit, &'static str> {
        // Clients of Unix sockets have no address of their own: the limit of one would be that of all.
        let Some(ip) = address.ip() else { return Ok(AddressPermit::default()) };
        let address = host_of(ip);
        if let Some(rate) = self.rate_per_address
            && !self.counts.rates.lock().try_take(address, rate, Instant::now())
        {
            return Err("connect_rate_per_address");
        }
        // Also without a limit: a reload may set one.
        let mut open = self.counts.open.lock();
        let count = open.entry(address).or_default();
        if self.per_address.is_some_and(|max| *count >= max) {
            return Err("connections_per_address");
        }
        *count += 1;
        Ok(AddressPermit(Some(Box::new((Arc::clone(&self.counts), address)))))
    }

    /// Applies `connect_rate` to those that wait since before a reload, too.
    pub(crate) fn set_in_use(&self) {
        self.counts.connects.set_rate(self.rate);
    }

    /// Waits until `connect_rate` allows another connection.
    ///
    /// # Errors
    /// The name of the limit: it would take too long, or too many connections wait.
    pub(crate) async fn wait(&self, address: IpAddr) -> Result<(), &'static str> {
        let Some(rate) = self.rate else { return Ok(()) };
        // After a reload, those in the queue of before take tokens, too.
        let deadline = Instant::now() + self.patience;
        self.queue.wait(&self.counts.connects, rate, address, deadline).await.map_err(|_| "connect_rate")
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

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let Some(permit) = self.0.take() else { return };
        let (counts, address) = *permit;
        if let Entry::Occupied(mut count) = counts.open.lock().entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(amount: u64, burst: u64) -> Rate {
        Rate { amount, per: Duration::from_secs(1), burst }
    }

    fn limits(limits: tables::ConnectionLimits) -> ConnectionLimits {
        ConnectionLimits::new(limits, Duration::from_secs(4), "l", &AllConnectionCounts::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn take(limits: &ConnectionLimits, ip: IpAddr) -> Result<AddressPermit, &'static str> {
        limits.take((ip, 1).into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_connections_and_gets_them_back() {
        let limits = limits(tables::ConnectionLimits { per_address: Some(2), ..Default::default() });
        let mut held: Vec<_> = (0..2).map(|_| take(&limits, ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(take(&limits, ip("192.0.2.1")).unwrap_err(), "connections_per_address");
        assert_eq!(take(&limits, ip("::ffff:192.0.2.1")).unwrap_err(), "connections_per_address");
        held.push(take(&limits, ip("192.0.2.2")).unwrap());
        held.push(take(&limits, ip("2001:db8::1")).unwrap());
        held.push(take(&limits, ip("2001:db8::2")).unwrap());
        assert!(take(&limits, ip("2001:db8::3")).is_err(), "a /64 is one address");
        drop(held);
        assert!(limits.counts.open.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_a_reload_sets_counts_what_is_open() {
        let counts = AllConnectionCounts::default();
        let limits = |per_address| {
            let limits = tables::ConnectionLimits { per_address, ..Default::default() };
            ConnectionLimits::new(limits, Duration::from_secs(4), "l", &counts)
        };
        let before = limits(None);
        let held: Vec<_> = (0..3).map(|_| take(&before, ip("192.0.2.1")).unwrap()).collect();
        let after = limits(Some(3));
        assert!(take(&after, ip("192.0.2.1")).is_err());
        drop(held);
        assert!(take(&after, ip("192.0.2.1")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rates_of_any_number_of_addresses_take_bounded_memory() {
        let limits = limits(tables::ConnectionLimits { rate_per_address: Some(rate(1, 1)), ..Default::default() });
        for number in 0..200_000_u32 {
            let _ = take(&limits, IpAddr::from(number.to_be_bytes()));
        }
        assert_eq!(limits.counts.rates.lock().by_address.len(), MAX_ADDRESSES);
        assert!(take(&limits, IpAddr::from(7_u32.to_be_bytes())).is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(take(&limits, ip("198.51.100.1")).is_ok() && take(&limits, ip("198.51.100.1")).is_err());
        assert_eq!(limits.counts.rates.lock().by_address.len(), 1, "the others are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_over_the_rate_wait_and_networks_take_turns() {
        let limits = Arc::new(limits(tables::ConnectionLimits { rate: Some(rate(100, 1)), ..Default::default() }));
        let start = Instant::now();
        let wait = |address: String| {
            let (limits, address) = (Arc::clone(&limits), ip(&address));
            tokio::spawn(async move { limits.wait(address).await.map(|()| start.elapsed()) })
        };
        // More networks than a share of the queue each would leave room for.
        let flood: Vec<_> = (0..1000).map(|number| wait(format!("192.0.2.{}", number % 8))).collect();
        tokio::task::yield_now().await;
        let other = wait("198.51.100.1".to_owned());
        let gone = wait("198.51.100.2".to_owned());
        tokio::task::yield_now().await;
        gone.abort();
        assert!(other.await.unwrap().is_ok_and(|elapsed| elapsed < Duration::from_millis(200)));
        let mut admitted = 0;
        for task in flood {
            admitted += u32::from(task.await.unwrap().is_ok_and(|elapsed| elapsed <= Duration::from_secs(4)));
        }
        assert!((390..=401).contains(&admitted), "{admitted} in four seconds, one of them of another network");
    }
}
