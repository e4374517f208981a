//! Counts the certificates of connected devices. Its size depends on the number of issuers and days, not of sessions.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::pki::{IssuerId, VerifiedChain};

/// The numbers of days of [`Inventory::expiring`].
const EXPIRING_WITHIN: [u32; 6] = [1, 7, 30, 90, 365, 3650];
const DAY: i64 = 24 * 60 * 60;

/// The certificates of connected devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The number of sessions by the issuer of their certificates.
    pub by_issuer: Vec<(IssuerId, usize)>,
    /// The number of sessions whose certificate expires within a number of days, cumulative.
    pub expiring: Vec<(u32, usize)>,
}

/// The number of sessions by issuer and by the day their certificate expires, in days since 1970.
#[derive(Debug, Default)]
pub(super) struct Certificates(Mutex<BTreeMap<(IssuerId, i64), usize>>);

impl Certificates {
    /// Counts a session with this chain.
    pub(super) fn add(&self, chain: &VerifiedChain) {
        *self.0.lock().entry(key_of(chain)).or_default() += 1;
    }

    /// A session with this chain has ended.
    pub(super) fn remove(&self, chain: &VerifiedChain) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(&key_of(chain)) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&key_of(chain));
            }
        }
    }

    /// The counts. `now` is in seconds since 1970.
    pub(super) fn inventory(&self, now: i64) -> Inventory {
        let by_day = self.0.lock().clone();
        let mut by_issuer: BTreeMap<IssuerId, usize> = BTreeMap::new();
        for ((issuer, _), count) in &by_day {
            *by_issuer.entry(*issuer).or_default() += count;
        }
        let within = |days: u32| {
            let due = by_day.iter().filter(|((_, day), _)| *day <= now / DAY + i64::from(days));
            (days, due.map(|(_, count)| count).sum())
        };
        Inventory { by_issuer: by_issuer.into_iter().collect(), expiring: EXPIRING_WITHIN.map(within).to_vec() }
    }
}

fn key_of(chain: &VerifiedChain) -> (IssuerId, i64) {
    (chain.issuer(), chain.not_after() / DAY)
}
