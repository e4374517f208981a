//! Handshakes in a storm: how many are in progress at once, and in which order the others wait. Enters: a client that is about
//! to be paid for with the gateway's CPU. Leaves: its turn, or a rejection. Not here: that sessions do not wait
//! behind handshakes, for which they have threads of their own (`relay/threads.rs`).
//!
//! - **In progress.** A handshake takes a slot when the gateway has something to compute for it, and gives it back while it waits
//!   for its client: the time that clients take costs nobody a slot, however slow they are.
//! - **Order.** Those for which the gateway has computed already continue first, then clients that were connected lately or
//!   have a ticket of the gateway: their handshakes are cheap or likely to succeed. Within a class, networks take turns, and the
//!   oldest of a network is first. What only the client has begun, by half a ClientHello, counts for nothing.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::addresses::host_of;
use super::fair::{Class, FairSlots, Slot};
use crate::util::recent::{Key, Recent};

/// The limit of addresses that are remembered as recently connected.
const MAX_RECENT: usize = 100_000;

/// The handshakes of all listeners.
#[derive(Debug)]
pub(crate) struct Handshakes {
    slots: FairSlots,
}

/// Addresses of clients that had a session lately. Survives reloads.
#[derive(Debug)]
pub(crate) struct RecentClients(Recent<()>);

/// A handshake has no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooManyHandshakes {
    /// `handshake_queue` wait already, and its client network has no fewer of them than others.
    QueueFull,
    /// It has waited until its deadline.
    Late,
}

impl std::fmt::Display for TooManyHandshakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::QueueFull => "handshake_queue is full",
            Self::Late => "no turn within handshake_timeout",
        })
    }
}

impl std::error::Error for TooManyHandshakes {}

/// The turn of one handshake.
#[derive(Debug)]
pub(crate) struct Turn {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
    /// When `handshake_timeout` ends.
    deadline: Instant,
    slot: Option<Slot>,
    /// The gateway has computed for it.
    has_begun: bool,
}

impl Handshakes {
    /// `max`: how many may be in progress at once; `max_waiting`: how many more may wait.
    pub(crate) fn new(max: usize, max_waiting: usize) -> Self {
        Self { slots: FairSlots::new(max, max_waiting).shared_by_all() }
    }

    /// Whether clients wait for their turn.
    pub(crate) fn is_busy(&self) -> bool {
        self.slots.has_waiting()
    }

    /// The turn of a client, until `deadline`.
    pub(crate) const fn turn(self: Arc<Self>, address: IpAddr, deadline: Instant) -> Turn {
        Turn { handshakes: self, address, deadline, slot: None, has_begun: false }
    }
}

impl Turn {
    /// Waits until the handshake is one of those in progress. `is_known`: whether the client was connected lately; only
    /// asked if it has to wait. Returns whether it had to.
    ///
    /// # Errors
    /// Too many wait, or it has waited too long.
    pub(crate) async fn begin(&mut self, is_known: impl FnOnce() -> bool) -> Result<bool, TooManyHandshakes> {
        if self.slot.is_some() {
            return Ok(false);
        }
        let (has_begun, mut has_waited) = (self.has_begun, false);
        let class = || {
            has_waited = true;
            match has_begun {
                true => Class::Begun,
                false if is_known() => Class::Known,
                false => Class::Unknown,
            }
        };
        let slot = timeout_at(self.deadline, self.handshakes.slots.take_as(self.address, class)).await;
        self.slot = Some(slot.map_err(|_| TooManyHandshakes::Late)?.ok_or(TooManyHandshakes::QueueFull)?);
        Ok(has_waited)
    }

    /// Records that the gateway has computed for the handshake, so that it goes on before others.
    pub(crate) const fn has_computed(&mut self) {
        self.has_begun = true;
    }

    /// Waits for the client, without a slot unless it has answered already.
    pub(crate) async fn wait_for<T>(&mut self, client: impl Future<Output = T>) -> T {
        let mut client = std::pin::pin!(client);
        std::future::poll_fn(|cx| {
            let polled = client.as_mut().poll(cx);
            if polled.is_pending() {
                self.slot = None;
            }
            polled
        })
        .await
    }
}

impl RecentClients {
    /// Remembers that a client at this address has a session.
    pub(crate) fn add(&self, address: IpAddr) {
        self.0.add(key(address), (), 1);
    }

    /// Whether a client at this address had a session lately.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.0.get(&key(address)).is_some()
    }
}

impl Default for RecentClients {
    fn default() -> Self {
        Self(Recent::new(MAX_RECENT))
    }
}

/// An address, not a digest: whoever has many addresses can fill one part of the map, and then replaces others there.
fn key(address: IpAddr) -> Key {
    let octets = match host_of(address) {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let mut key = Key::default();
    key[1..17].copy_from_slice(&octets);
    key[0] = octets.iter().fold(0, |sum, octet| sum ^ octet);
    key
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn address(network: u8) -> IpAddr {
        [192, 0, network, 1].into()
    }

    fn turn(handshakes: &Arc<Handshakes>, network: u8) -> Turn {
        Arc::clone(handshakes).turn(address(network), Instant::now() + PATIENCE)
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_have_begun_come_first_then_those_that_are_known_then_the_oldest() {
        let handshakes = Arc::new(Handshakes::new(1, 100));
        let mut first = turn(&handshakes, 1);
        first.begin(|| false).await.unwrap();
        assert!(!handshakes.is_busy());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (network, is_known) in [(2, false), (3, false), (4, true), (5, true)] {
            let (mut turn, order) = (turn(&handshakes, network), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                turn.begin(|| is_known).await.unwrap();
                order.lock().push(network);
            }));
            sleep(Duration::from_millis(1)).await;
        }
        assert!(handshakes.is_busy());
        // It waits for its client, so another one is served; then it answers.
        first.has_computed();
        first.wait_for(sleep(Duration::from_millis(1))).await;
        assert!(first.slot.is_none());
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), [4, 5, 2, 3]);

        let mut other = turn(&handshakes, 6);
        other.begin(|| false).await.unwrap();
        let (waiting, order) = (Arc::clone(&order), Arc::clone(&order));
        let mut known = turn(&handshakes, 7);
        let known = tokio::spawn(async move {
            known.begin(|| true).await.unwrap();
            waiting.lock().push(7);
        });
        sleep(Duration::from_millis(1)).await;
        let again = tokio::spawn(async move {
            first.begin(|| false).await.unwrap();
            order.lock().push(1);
            order
        });
        sleep(Duration::from_millis(1)).await;
        drop(other);
        known.await.unwrap();
        assert_eq!(again.await.unwrap().lock()[4..], [1, 7], "what has begun goes on first");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_clients_are_not_starved() {
        let handshakes = Arc::new(Handshakes::new(1, 1000));
        let mut first = turn(&handshakes, 1);
        first.begin(|| false).await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..40 {
            let (mut turn, served) = (turn(&handshakes, n + 2), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                turn.begin(|| n != 20).await.unwrap();
                served.lock().push(n);
            }));
        }
        sleep(Duration::from_millis(1)).await;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let place = served.lock().iter().position(|n| *n == 20).unwrap();
        assert!((1..20).contains(&place), "{place}");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_go_on_do_not_starve_those_that_are_known() {
        let handshakes = Arc::new(Handshakes::new(1, 1000));
        let mut first = turn(&handshakes, 1);
        first.begin(|| false).await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..100 {
            let (mut turn, served) = (turn(&handshakes, n + 2), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                match n {
                    98 => turn.begin(|| false).await.unwrap(),
                    99 => turn.begin(|| true).await.unwrap(),
                    _ => {
                        turn.has_computed();
                        turn.begin(|| false).await.unwrap()
                    }
                };
                served.lock().push(n);
            }));
        }
        sleep(Duration::from_millis(1)).await;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let place = |n| served.lock().iter().position(|other| *other == n).unwrap();
        assert!(place(98) < 20 && place(99) < 20, "{} {}", place(98), place(99));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_and_the_queue_are_bounded() {
        let handshakes = Arc::new(Handshakes::new(1, 2));
        let mut first = turn(&handshakes, 1);
        first.begin(|| false).await.unwrap();
        let begin = |network| {
            let mut turn = turn(&handshakes, network);
            tokio::spawn(async move { turn.begin(|| false).await })
        };
        let (second, third) = (begin(2), begin(3));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(begin(4).await.unwrap(), Err(TooManyHandshakes::QueueFull));
        let before = Instant::now();
        let late = Err(TooManyHandshakes::Late);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (late, late));
        assert!(before.elapsed() < PATIENCE);
    }

    #[test]
    fn clients_are_remembered_by_their_host() {
        let recent = RecentClients::default();
        recent.add("192.0.2.1".parse().unwrap());
        recent.add("2001:db8::1".parse().unwrap());
        let has = |address: &str| recent.has(address.parse().unwrap());
        assert!(has("192.0.2.1") && has("::ffff:192.0.2.1") && has("2001:db8::2"));
        assert!(!has("192.0.2.2") && !has("2001:db8:0:1::1"));
    }
}
