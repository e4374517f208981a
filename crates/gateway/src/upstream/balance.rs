//! Load balancing. Enters: the endpoints of an upstream and a key. Leaves: the order in which to try them for a session.
//!
//! The hash ring is ketama's: 160 points per unit of weight, over resolved addresses. A server that is down stays on the
//! ring. Only its keys move to other servers, and they return when it is up again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora_ketama::{Bucket, Continuum};
use rand::Rng;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use crate::config::tables::{Balance, Service};

/// The points on the hash ring per unit of weight, as in NGINX.
const POINTS_A_WEIGHT: usize = 160;

/// The input of a choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    /// Hashed by `balance = "hash"`. An empty key, such as an empty client ID, identifies no client: the server is random.
    pub(super) key: &'a [u8],
}

/// The endpoints of an upstream in the order of its configuration, and the state of the balancing method.
#[derive(Default)]
pub(super) struct Balancer {
    balance: Balance,
    endpoints: Vec<Arc<Endpoint>>,
    /// Indexes of the endpoints that are not backups.
    primaries: Vec<usize>,
    ring: Option<Continuum>,
    /// The maximum number of points on the ring.
    points: usize,
    /// For round robin: indexes, each repeated by its weight and evenly mixed.
    sequence: Vec<usize>,
    cursor: AtomicUsize,
}

impl std::fmt::Debug for Balancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.endpoints.iter().map(|endpoint| &endpoint.label)).finish()
    }
}

impl Balancer {
    pub(super) fn new(balance: Balance, endpoints: Vec<Arc<Endpoint>>) -> Self {
        let primaries: Vec<usize> = (0..endpoints.len()).filter(|position| !endpoints[*position].backup).collect();
        let bucket = |position: &usize| Bucket::new(endpoints[*position].target.on_ring(), endpoints[*position].weight);
        let ring = (balance == Balance::Hash && primaries.len() > 1)
            .then(|| Continuum::new(&primaries.iter().map(bucket).collect::<Vec<_>>()));
        let weights: usize = primaries.iter().map(|position| endpoints[*position].weight as usize).sum();
        let sequence =
            if balance == Balance::RoundRobin { smooth_sequence(&endpoints, &primaries) } else { Vec::new() };
        let points = POINTS_A_WEIGHT * weights;
        Self { balance, endpoints, primaries, ring, points, sequence, cursor: AtomicUsize::new(0) }
    }

    /// All endpoints, in the order of the configuration.
    pub(super) fn all(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Whether a balancer built from these arguments would be the same.
    pub(super) fn is_of(&self, endpoints: &[Arc<Endpoint>], balance: Balance) -> bool {
        let same = |a: &Arc<Endpoint>, b: &Arc<Endpoint>| {
            a.label == b.label
                && a.host == b.host
                && a.weight == b.weight
                && a.backup == b.backup
                && a.service == b.service
                && Arc::ptr_eq(&a.state, &b.state)
        };
        self.balance == balance
            && self.endpoints.len() == endpoints.len()
            && self.endpoints.iter().zip(endpoints).all(|(a, b)| same(a, b))
    }

    /// The endpoints that take sessions, best first: those that are up, in the order of the balancing method; then backups that are up; then
    /// those that are down, because trying a server that may be down is better than rejecting the client.
    pub(super) fn candidates(&self, choice: Choice<'_>, now: Instant) -> Vec<Arc<Endpoint>> {
        let mut order = self.order(choice, now);
        order.extend((0..self.endpoints.len()).filter(|position| self.endpoints[*position].backup));
        order.retain(|position| self.endpoints[*position].service == Service::Active);
        // The sort is stable: it keeps the order within both groups.
        order.sort_by_key(|position| !self.endpoints[*position].state.health.is_up(now));
        order.into_iter().map(|position| Arc::clone(&self.endpoints[position])).collect()
    }

    /// The indexes of the primaries in the order in which they are tried.
    fn order(&self, choice: Choice<'_>, now: Instant) -> Vec<usize> {
        if self.primaries.len() < 2 {
            return self.primaries.clone();
        }
        match self.balance {
            Balance::Hash if choice.key.is_empty() => self.by_hash(&rand::rng().random::<[u8; 16]>()),
            Balance::Hash => self.by_hash(choice.key),
            Balance::LeastConnections => self.least_loaded(now),
            Balance::RandomTwo => self.random_two(now),
            Balance::RoundRobin => self.round_robin(now),
        }
    }

    fn by_hash(&self, key: &[u8]) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.primaries.len());
        // Bounded, because the iterator is endless and two addresses may share all their points.
        for address in self.ring.iter().flat_map(|ring| ring.node_iter(key).take(self.points)) {
            let of_address = |position: &&usize| self.endpoints[**position].target.on_ring() == *address;
            if let Some(position) = self.primaries.iter().find(of_address)
                && !order.contains(position)
            {
                order.push(*position);
                if order.len() == self.primaries.len() {
                    return order;
                }
            }
        }
        let missing: Vec<usize> = self.primaries.iter().copied().filter(|position| !order.contains(position)).collect();
        order.extend(missing);
        order
    }

    /// Sessions per weight, counting the new one, so that idle endpoints are compared by weight.
    fn load(&self, position: usize, now: Instant) -> f64 {
        f64::from(self.endpoints[position].active() + 1) / self.weight(position, now)
    }

    fn least_loaded(&self, now: Instant) -> Vec<usize> {
        let mut order = self.rotated(self.cursor.fetch_add(1, Ordering::Relaxed));
        let load: Vec<f64> = (0..self.endpoints.len()).map(|position| self.load(position, now)).collect();
        order.sort_by(|a, b| load[*a].total_cmp(&load[*b]));
        order
    }

    fn random_two(&self, now: Instant) -> Vec<usize> {
        let mut order = self.rotated(rand::rng().random_range(0..self.primaries.len()));
        order.sort_by_key(|position| !self.is_up(*position, now));
        let up = order.iter().filter(|position| self.is_up(**position, now)).count();
        for slot in 0..up.min(2) {
            let drawn = self.draw(&order[slot..up], now);
            order.swap(slot, slot + drawn);
        }
        if up > 1 && self.load(order[1], now) < self.load(order[0], now) {
            order.swap(0, 1);
        }
        order
    }

    /// Draws an endpoint at random by weight; returns its position in `of`.
    fn draw(&self, of: &[usize], now: Instant) -> usize {
        let weight = |position: &usize| self.weight(*position, now);
        let mut left = rand::rng().random::<f64>() * of.iter().map(weight).sum::<f64>();
        let passed = |position: &usize| {
            left -= weight(position);
            left < 0.0
        };
        of.iter().position(passed).unwrap_or(0)
    }

    fn is_up(&self, position: usize, now: Instant) -> bool {
        self.endpoints[position].state.health.is_up(now)
    }

    /// The current weight, reduced during `slow_start`.
    fn weight(&self, position: usize, now: Instant) -> f64 {
        let endpoint = &self.endpoints[position];
        f64::from(endpoint.weight) * endpoint.state.health.slow_start_factor(now)
    }

    fn round_robin(&self, now: Instant) -> Vec<usize> {
        // Skip the turns of a server that is down: given to the next server, they would double its share.
        let up: Vec<usize> = self.sequence.iter().copied().filter(|position| self.is_up(*position, now)).collect();
        let turns = if up.is_empty() { &self.sequence } else { &up };
        let turn = |cursor: usize| turns[cursor % turns.len()];
        let mut cursor = self.cursor.fetch_add(1, Ordering::Relaxed);
        // During `slow_start`, a server passes on some of its turns.
        if rand::rng().random::<f64>() > self.endpoints[turn(cursor)].state.health.slow_start_factor(now) {
            cursor = self.cursor.fetch_add(1, Ordering::Relaxed);
        }
        let mut order = Vec::with_capacity(self.primaries.len());
        let upcoming = (0..turns.len()).map(|ahead| turn(cursor.wrapping_add(ahead)));
        for position in upcoming.chain(self.primaries.iter().copied()) {
            if !order.contains(&position) {
                order.push(position);
            }
        }
        order
    }

    /// The primaries, rotated to start at the nth.
    fn rotated(&self, by: usize) -> Vec<usize> {
        let mut order = self.primaries.clone();
        order.rotate_left(by % self.primaries.len());
        order
    }
}

/// Indexes repeated by their weights and evenly mixed, by NGINX's smooth weighted round robin: in each step every endpoint
/// gains its weight; the one with the most is taken and loses the sum of all weights.
fn smooth_sequence(endpoints: &[Arc<Endpoint>], primaries: &[usize]) -> Vec<usize> {
    let divisor = primaries.iter().fold(0, |divisor, position| gcd(divisor, endpoints[*position].weight));
    let weight = |position: usize| i64::from(endpoints[position].weight / divisor.max(1));
    let total: i64 = primaries.iter().map(|position| weight(*position)).sum();
    let mut gained = vec![0; endpoints.len()];
    (0..total)
        .filter_map(|_| {
            primaries.iter().for_each(|position| gained[*position] += weight(*position));
            let richest =
                primaries.iter().copied().max_by_key(|position| (gained[*position], usize::MAX - position))?;
            gained[richest] -= total;
            Some(richest)
        })
        .collect()
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        (1..).zip(weights).map(|(n, weight)| Endpoint::for_test(&format!("10.0.0.{n}:1883"), *weight, false)).collect()
    }

    fn first(balancer: &Balancer, key: &str) -> Arc<str> {
        let choice = Choice { key: key.as_bytes() };
        Arc::clone(&balancer.candidates(choice, Instant::now())[0].label)
    }

    fn take_down(endpoint: &Endpoint) {
        endpoint.state.health.checked(false, &super::super::health::Check::off(), Instant::now());
        assert!(!endpoint.state.health.is_up(Instant::now()));
    }

    fn counts(balancer: &Balancer, rounds: usize, hold: bool) -> HashMap<Arc<str>, usize> {
        let (mut counts, mut leases) = (HashMap::new(), Vec::new());
        for _ in 0..rounds {
            let chosen = balancer.candidates(Choice { key: b"" }, Instant::now()).swap_remove(0);
            *counts.entry(Arc::clone(&chosen.label)).or_default() += 1;
            leases.extend(chosen.lease().filter(|_| hold));
        }
        counts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_server_that_goes_takes_only_its_own_share_along(count in 2_usize..9, gone in any::<prop::sample::Index>()) {
            let all = endpoints(&vec![1; count]);
            let gone = gone.index(count);
            let balancer = Balancer::new(Balance::Hash, all.clone());
            let keys: Vec<String> = (0..2000).map(|n| format!("thing{n:04}")).collect();
            let before: Vec<_> = keys.iter().map(|key| first(&balancer, key)).collect();
            // Down, but on the ring: only its keys move.
            take_down(&all[gone]);
            for (key, before) in keys.iter().zip(&before) {
                let after = first(&balancer, key);
                prop_assert_eq!(after != *before, *before == all[gone].label, "{} {} {}", key, before, after);
            }
            // Removed from the configuration: likewise.
            let mut rest = all.clone();
            rest.remove(gone);
            let without = Balancer::new(Balance::Hash, rest);
            let moved = keys.iter().zip(&before).filter(|(key, before)| first(&without, key) != **before).count();
            let share = before.iter().filter(|label| **label == all[gone].label).count();
            prop_assert_eq!(moved, share);
            // Its share corresponds to its weight.
            prop_assert!(share < 2 * 2000 / count + 200, "{} of {}", share, count);
        }
    }

    #[test]
    fn a_server_that_returns_takes_back_its_own_share_only() {
        let all = endpoints(&[1, 1, 1]);
        let balancer = Balancer::new(Balance::Hash, all.clone());
        let keys: Vec<String> = (0..500).map(|n| format!("thing{n:04}")).collect();
        let before: Vec<_> = keys.iter().map(|key| first(&balancer, key)).collect();
        take_down(&all[1]);
        all[1].state.health.checked(true, &super::super::health::Check::off(), Instant::now());
        assert_eq!(keys.iter().map(|key| first(&balancer, key)).collect::<Vec<_>>(), before);
    }

    #[test]
    fn weights_are_kept() {
        let balancer = Balancer::new(Balance::Hash, endpoints(&[1, 3]));
        let keys = (0..4000).map(|n| first(&balancer, &format!("thing{n:04}")));
        let heavy = keys.filter(|label| &**label == "10.0.0.2:1883").count();
        assert!((2700..3300).contains(&heavy), "{heavy} of 4000");
        let turns = counts(&Balancer::new(Balance::RoundRobin, endpoints(&[1, 2, 5])), 80, false);
        assert_eq!(turns.values().sum::<usize>(), 80);
        assert_eq!(turns["10.0.0.3:1883"], 50);
        let held = counts(&Balancer::new(Balance::LeastConnections, endpoints(&[1, 3])), 400, true);
        assert!((295..=305).contains(&held["10.0.0.2:1883"]), "{held:?}");
        let held = counts(&Balancer::new(Balance::RandomTwo, endpoints(&[1, 1, 1, 10])), 1300, true);
        assert!((900..=1100).contains(&held["10.0.0.4:1883"]), "{held:?}");
        let down = endpoints(&[1, 1, 1]);
        take_down(&down[1]);
        let turns = counts(&Balancer::new(Balance::RoundRobin, down), 100, false);
        assert_eq!((turns["10.0.0.1:1883"], turns["10.0.0.3:1883"]), (50, 50), "no server gets a double share");
        let held = counts(&Balancer::new(Balance::RandomTwo, endpoints(&[1, 1, 1, 1])), 400, true);
        assert!(held.values().all(|count| (90..=110).contains(count)), "{held:?}");
    }

    #[test]
    fn addresses_that_share_points_on_the_ring_are_all_tried() {
        let all = ["[fe80::1%2]:1883", "[fe80::1%3]:1883"].map(|address| Endpoint::for_test(address, 1, false));
        let balancer = Balancer::new(Balance::Hash, all.to_vec());
        assert_eq!(balancer.candidates(Choice { key: b"thing001" }, Instant::now()).len(), 2);
    }

    #[test]
    fn an_empty_key_goes_anywhere() {
        let spread = counts(&Balancer::new(Balance::Hash, endpoints(&[1, 1])), 200, false);
        assert!(spread.len() == 2 && spread.values().all(|count| *count > 50), "{spread:?}");
    }

    #[test]
    fn backups_come_after_all_others_that_are_up() {
        for balance in [Balance::Hash, Balance::LeastConnections, Balance::RandomTwo, Balance::RoundRobin] {
            let mut all = endpoints(&[1, 1, 1]);
            all.push(Endpoint::for_test("10.0.0.9:1883", 1, true));
            let balancer = Balancer::new(balance, all.clone());
            let order = |()| {
                let candidates = balancer.candidates(Choice { key: b"thing001" }, Instant::now());
                candidates.iter().map(|endpoint| endpoint.label.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(order(())[3], "10.0.0.9:1883");
            take_down(&all[0]);
            assert_eq!(order(())[2..], ["10.0.0.9:1883", "10.0.0.1:1883"], "{balance:?}");
            take_down(&all[1]);
            take_down(&all[2]);
            assert_eq!(order(())[0], "10.0.0.9:1883");
            assert_eq!(order(()).len(), 4, "servers that are down are tried last");
        }
    }
}
