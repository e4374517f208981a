//! A circuit breaker that no single client can keep open. Enters: how requests ended. Leaves: whether further ones may
//! be sent.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::failure::Failure;
use crate::util::client_network::ClientNetwork;

/// Responses with errors open the breaker only if they concern clients of this many networks: a client may have found a
/// request on which the service fails.
pub(super) const MIN_NETWORKS: usize = 3;

/// Why the breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Requests for clients of several networks failed, or connections were refused.
    Failing,
    /// No response to requests for clients of few networks: one of them may have found a request that takes the service long. A
    /// probe has to confirm it at once.
    Suspected,
}

/// If the last failure is this old, all are forgotten.
const WINDOW: Duration = Duration::from_secs(60);

/// Closed, it lets requests pass. It opens after `after` failures in a row, of which those that a client may have caused need
/// three networks, and stays open until a probe succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    after: u32,
    period: Duration,
    is_open: AtomicBool,
    failures: Mutex<Failures>,
}

/// Failures since the last success.
#[derive(Debug, Default)]
struct Failures {
    last: Option<Instant>,
    refused: u32,
    silent: u32,
    errors: u32,
    /// At most [`MIN_NETWORKS`].
    networks: HashSet<ClientNetwork>,
}

impl Breaker {
    /// `period`: the time between probes.
    pub(super) fn new(after: u32, period: Duration) -> Self {
        Self { after, period, is_open: AtomicBool::new(false), failures: Mutex::default() }
    }

    pub(super) const fn period(&self) -> Duration {
        self.period
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Records a decision of the service.
    pub(super) fn succeeded(&self) {
        *self.failures.lock() = Failures::default();
    }

    /// Records a failed request for the client at `address`. Returns why the breaker opens, if it does: after failures
    /// to get any response, or after errors for clients of several networks.
    pub(super) fn failed(&self, failure: Failure, address: IpAddr) -> Option<Opening> {
        let mut failures = self.failures.lock();
        if failures.last.is_some_and(|last| last.elapsed() > WINDOW) {
            *failures = Failures::default();
        }
        match failure {
            Failure::OwnShortage => return None,
            // The service is well.
            Failure::Rejected => {
                *failures = Failures::default();
                return None;
            }
            Failure::Unreachable => failures.refused = failures.refused.saturating_add(1),
            Failure::Timeout => failures.silent = failures.silent.saturating_add(1),
            Failure::Overload | Failure::Error => failures.errors = failures.errors.saturating_add(1),
        }
        if failures.networks.len() < MIN_NETWORKS {
            failures.networks.insert(ClientNetwork::of(address));
        }
        failures.last = Some(Instant::now());
        let no_response = failures.silent.saturating_add(failures.refused);
        let all = no_response.saturating_add(failures.errors);
        let opening =
            if failures.refused >= self.after || (all >= self.after && failures.networks.len() >= MIN_NETWORKS) {
                Opening::Failing
            } else if no_response >= self.after {
                Opening::Suspected
            } else {
                return None;
            };
        (!self.is_open.swap(true, Ordering::Relaxed)).then_some(opening)
    }

    /// Closes it: a probe has succeeded.
    pub(super) fn close(&self) {
        self.succeeded();
        self.is_open.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn from(host: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, host))
    }

    fn breaker() -> Breaker {
        Breaker::new(4, Duration::from_secs(10))
    }

    #[test]
    fn no_client_opens_it_by_what_it_sends() {
        for failure in [Failure::Error, Failure::Overload, Failure::Rejected, Failure::OwnShortage] {
            let breaker = breaker();
            for n in 0..100 {
                let network: IpAddr = format!("2001:db8:7:{n:x}::1").parse().unwrap();
                let opening = (breaker.failed(failure, from(1)), breaker.failed(failure, network));
                assert_eq!(opening, (None, None), "{failure:?}");
            }
        }
    }

    #[test]
    fn errors_for_clients_of_several_networks_open_it() {
        let breaker = breaker();
        let opened: Vec<_> = (1..=5).map(|host| breaker.failed(Failure::Error, from(host))).collect();
        assert_eq!(opened, [None, None, None, Some(Opening::Failing), None], "it says so once");
        breaker.close();
        assert!(!breaker.is_open() && breaker.failed(Failure::Error, from(1)).is_none(), "and starts anew");
    }

    #[test]
    fn silence_opens_it_and_is_confirmed_if_few_asked() {
        use Failure::{Timeout, Unreachable};
        let opening = |failures: [Failure; 4], hosts: [u8; 4]| {
            let breaker = breaker();
            let opened: Vec<_> =
                failures.iter().zip(hosts).map(|(failure, host)| breaker.failed(*failure, from(host))).collect();
            assert_eq!(opened[..3], [None; 3]);
            opened[3]
        };
        assert_eq!(opening([Unreachable; 4], [1; 4]), Some(Opening::Failing));
        assert_eq!(opening([Timeout; 4], [1, 2, 3, 1]), Some(Opening::Failing));
        assert_eq!(opening([Timeout; 4], [1, 2, 2, 1]), Some(Opening::Suspected));
        assert_eq!(opening([Timeout, Timeout, Unreachable, Timeout], [1; 4]), Some(Opening::Suspected));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_expire() {
        let breaker = breaker();
        for _ in 0..10 {
            assert!((1..=3).all(|host| breaker.failed(Failure::Unreachable, from(host)).is_none()));
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        }
    }

    #[test]
    fn any_decision_shows_that_the_service_works() {
        let breaker = breaker();
        for _ in 0..10 {
            assert!((1..=3).all(|host| breaker.failed(Failure::Timeout, from(host)).is_none()));
            breaker.succeeded();
        }
    }
}
