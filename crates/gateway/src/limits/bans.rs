//! Bans: clients that connect too often, or fail too often to authenticate themselves, are rejected for a while. Enters:
//! connects and failures. Leaves: whether a client is banned. Bounded in memory: banned clients are never evicted.
//!
//! Failures are counted by address only. By client ID, an attacker could ban a device by failing under its ID.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::addresses::host_of;
use super::window::{Slot, Window, slot_at};
use crate::config::Cidr;
use crate::config::tables::{BanEvent, BanKey, BanRule};
use crate::peer::PeerAddress;
use crate::util::clip::clip;
use crate::util::crypto::keyed_digest;
use crate::util::weak_map::WeakMap;

/// The limit of clients per rule, about 250 bytes each: 25 MB.
const MAX_CLIENTS: usize = 100_000;

/// The rules of a listener.
#[derive(Debug, Default)]
pub(crate) struct Bans {
    listener: Box<str>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    limits: Limits,
    except: Vec<Cidr>,
    clients: Arc<Clients>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Limits {
    by_address: bool,
    connects: bool,
    failures: bool,
    count: u32,
    window: Duration,
    duration: Duration,
}

/// The counters that survive reloads, by listener name, limits and exempted networks.
#[derive(Debug, Default)]
pub(crate) struct BanCounters(WeakMap<(String, Limits, String), Clients>);

/// The counters of one rule.
#[derive(Debug)]
struct Clients {
    since: Instant,
    counts: Mutex<HashMap<Client, Counts>>,
    /// The slot of the last eviction; `u64::MAX` before the first.
    last_eviction: AtomicU64,
}

impl Default for Clients {
    fn default() -> Self {
        Self { since: Instant::now(), counts: Mutex::default(), last_eviction: AtomicU64::new(u64::MAX) }
    }
}

/// A digest of the address or client ID. A client ID may have 64 KiB.
type Client = [u8; 32];

/// The recent events of one client.
#[derive(Clone, Copy, Debug)]
struct Counts {
    connects: Window,
    failures: Window,
    banned_until: Option<Instant>,
}

impl Bans {
    /// Compiles the rules of a listener. Rules that exist in `counters` keep their counters.
    pub(crate) fn new(rules: &[BanRule], listener: &str, counters: &BanCounters) -> Self {
        // Identical rules share their counters, which would count each event twice.
        let mut seen = HashSet::new();
        let rule = |rule: &BanRule| {
            let limits = Limits {
                by_address: rule.key == BanKey::Address,
                connects: rule.connects,
                failures: rule.failures,
                count: rule.count,
                window: rule.window,
                duration: rule.duration,
            };
            let key = (listener.to_owned(), limits.clone(), format!("{:?}", rule.except));
            seen.insert(key.clone()).then(|| Rule {
                limits,
                except: rule.except.clone(),
                clients: counters.0.get_or_insert_with(key, Clients::default),
            })
        };
        Self { listener: listener.into(), rules: rules.iter().filter_map(rule).collect() }
    }

    /// Counts a connection from an address. Returns whether it is rejected.
    pub(crate) fn rejects_connect(&self, address: PeerAddress) -> bool {
        self.count(BanEvent::Connect, address, None)
    }

    /// Counts a connection of an authenticated client with this ID. Returns whether it is rejected. An empty ID is not
    /// counted: the broker assigns each such client its own [MQTT-3.1.3-6].
    pub(crate) fn rejects_client(&self, address: PeerAddress, id: &str) -> bool {
        !id.is_empty() && self.count(BanEvent::Connect, address, Some(id))
    }

    /// Whether an address is banned. Counts nothing.
    pub(crate) fn is_banned(&self, address: PeerAddress) -> bool {
        let (now, Some(ip)) = (Instant::now(), address.ip()) else { return false };
        let applies = |rule: &&Rule| rule.limits.by_address && !rule.excepts(ip);
        self.rules.iter().filter(applies).any(|rule| rule.clients.is_banned(&of_address(ip), now))
    }

    /// Counts a failed authentication from an address.
    pub(crate) fn failed(&self, address: PeerAddress) {
        self.count(BanEvent::Failure, address, None);
    }

    /// By `id`, or else by the address. Clients of Unix sockets have no address of their own: one would ban all.
    fn count(&self, event: BanEvent, address: PeerAddress, id: Option<&str>) -> bool {
        let now = Instant::now();
        let mut is_rejected = false;
        for rule in self.rules.iter().filter(|rule| rule.limits.by_address == id.is_none()) {
            if address.ip().is_some_and(|ip| rule.excepts(ip)) {
                continue;
            }
            let client = match (id, address.ip()) {
                (Some(id), _) => keyed_digest(&[b"id", id.as_bytes()]),
                (None, Some(ip)) => of_address(ip),
                (None, None) => continue,
            };
            let (is_banned, begins) = rule.clients.count(client, event, &rule.limits, now);
            is_rejected |= is_banned;
            if begins {
                let duration = humantime::format_duration(rule.limits.duration).to_string();
                let client_id = id.map(clip);
                let address = address.host();
                tracing::info!(
                    listener = &*self.listener,
                    address,
                    client_id = client_id.as_deref(),
                    event = event.label(),
                    duration,
                    "client banned"
                );
            }
        }
        is_rejected
    }
}

impl Rule {
    fn excepts(&self, address: IpAddr) -> bool {
        self.except.iter().any(|net| net.0.contains(&address))
    }
}

fn of_address(address: IpAddr) -> Client {
    keyed_digest(&[b"address", host_of(address).to_string().as_bytes()])
}

impl Clients {
    fn is_banned(&self, client: &Client, now: Instant) -> bool {
        let clients = self.counts.lock();
        clients.get(client).is_some_and(|counts| counts.banned_until.is_some_and(|until| now < until))
    }

    /// Counts an event, if the limits include its kind. Returns whether the client is banned, and whether the ban starts with
    /// this event.
    fn count(&self, client: Client, event: BanEvent, limits: &Limits, now: Instant) -> (bool, bool) {
        let mut clients = self.counts.lock();
        let slot = slot_at(now.saturating_duration_since(self.since), limits.window);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            // At most once per slot: a full scan for every connection would help an attacker.
            if self.last_eviction.swap(slot, Ordering::Relaxed) != slot {
                evict(&mut clients, slot, now);
                if clients.len() >= MAX_CLIENTS {
                    tracing::warn!(
                        banned = clients.len(),
                        "a ban rule has reached its limit of banned clients: others are not counted"
                    );
                }
            }
            if clients.len() >= MAX_CLIENTS {
                return (false, false);
            }
        }
        let is_counted = match event {
            BanEvent::Connect => limits.connects,
            BanEvent::Failure => limits.failures,
        };
        let fresh = Counts { connects: Window::new(slot), failures: Window::new(slot), banned_until: None };
        let counts = match clients.entry(client) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if !is_counted => return (false, false),
            Entry::Vacant(entry) => entry.insert(fresh),
        };
        if let Some(until) = counts.banned_until {
            if now < until {
                return (true, false);
            }
            // The ban has expired: start with fresh counters.
            *counts = fresh;
        }
        if !is_counted || counts.window(event).count(slot) <= u64::from(limits.count) {
            return (false, false);
        }
        counts.banned_until = Some(now + limits.duration);
        (true, true)
    }
}

impl Counts {
    const fn window(&mut self, event: BanEvent) -> &mut Window {
        match event {
            BanEvent::Connect => &mut self.connects,
            BanEvent::Failure => &mut self.failures,
        }
    }
}

/// Removes clients whose window or ban has expired; if that is not enough, some that are not banned.
fn evict(clients: &mut HashMap<Client, Counts>, slot: Slot, now: Instant) {
    clients.retain(|_, counts| match counts.banned_until {
        Some(until) => now < until,
        None => !(counts.connects.is_over(slot) && counts.failures.is_over(slot)),
    });
    if clients.len() >= MAX_CLIENTS {
        // In the order of the hash table, which clients cannot predict.
        let mut nth = 0;
        clients.retain(|_, counts| {
            nth += 1;
            counts.banned_until.is_some() || nth % 8 != 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        by_address: true,
        connects: true,
        failures: true,
        count: 3,
        window: Duration::from_secs(60),
        duration: Duration::from_secs(300),
    };

    fn client(n: u32) -> Client {
        of_address(IpAddr::V4(n.into()))
    }

    #[test]
    fn more_than_so_many_within_the_window_are_too_many() {
        let (clients, start) = (Clients::default(), Instant::now());
        let note = |event, seconds| clients.count(client(1), event, &LIMITS, start + Duration::from_secs(seconds)).0;
        for second in 0..3 {
            assert!(
                !note(BanEvent::Connect, second) && !note(BanEvent::Failure, second),
                "each kind is counted separately"
            );
        }
        assert!(note(BanEvent::Failure, 3));
        assert!(note(BanEvent::Connect, 4), "a ban rejects all connects");
        assert!(!clients.count(client(2), BanEvent::Connect, &LIMITS, start).0, "others are not");
        assert!(note(BanEvent::Connect, 302));
        assert!(!note(BanEvent::Connect, 304), "the ban has expired; counting starts again");
        assert!(!note(BanEvent::Connect, 305) && !note(BanEvent::Connect, 306) && note(BanEvent::Connect, 307));
    }

    #[test]
    fn a_rule_that_is_there_twice_counts_once() {
        let location = crate::config::Location::default();
        let rule = |count| BanRule {
            table: location.clone(),
            key: BanKey::Address,
            connects: true,
            failures: false,
            count,
            window: LIMITS.window,
            duration: LIMITS.duration,
            except: Vec::new(),
        };
        let bans = Bans::new(&[rule(4), rule(4), rule(100)], "devices", &BanCounters::default());
        let address = ([192, 0, 2, 1], 1).into();
        let rejected: Vec<bool> = (0..5).map(|_| bans.rejects_connect(address)).collect();
        assert_eq!(rejected, [false, false, false, false, true]);
    }

    #[test]
    fn the_window_slides() {
        let (clients, start) = (Clients::default(), Instant::now());
        let note =
            |seconds| clients.count(client(1), BanEvent::Connect, &LIMITS, start + Duration::from_secs(seconds)).0;
        assert!(!note(0) && !note(58) && !note(59), "three");
        assert!(!note(61), "the first has left the window");
        assert!(note(62), "the others have not");
        let slow = Clients::default();
        for n in 0..100 {
            let at = start + Duration::from_millis(n * 20_000 + 1);
            assert!(!slow.count(client(1), BanEvent::Connect, &LIMITS, at).0, "{n}: fewer than three a minute");
        }
    }

    #[test]
    fn the_table_is_bounded_and_forgets_nobody_who_is_banned() {
        let (clients, now) = (Clients::default(), Instant::now());
        while !clients.count(client(0), BanEvent::Failure, &LIMITS, now).0 {}
        for n in 1..u32::try_from(MAX_CLIENTS + 5000).unwrap() {
            clients.count(client(n), BanEvent::Connect, &LIMITS, now);
        }
        assert!(clients.counts.lock().len() <= MAX_CLIENTS);
        assert!(clients.count(client(0), BanEvent::Connect, &LIMITS, now).0);
    }
}
