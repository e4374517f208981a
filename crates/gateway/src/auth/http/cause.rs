//! Whether the client or the service caused an error. Enters: how requests ended, by network. Leaves: whether the error
//! counts towards bans. A client that finds a request on which the service fails should be banned; a network of many devices
//! should not, because the service fails for everybody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits::ClientNetwork;

/// Failures of other networks this old say nothing about the service.
const WINDOW: Duration = Duration::from_secs(60);
/// Networks whose last failure is remembered.
const MAX_NETWORKS: usize = 1024;
/// How long the result of a probe holds.
const PROBED_FOR: Duration = Duration::from_secs(1);

/// Who caused an error, as far as requests for clients show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The client: the service decides for others meanwhile.
    Client,
    /// The service: it fails for others, too.
    Service,
    /// There are no others to compare with. A probe has to tell.
    Unknown,
}

/// How requests ended lately.
#[derive(Debug, Default)]
pub(super) struct Causes {
    state: Mutex<State>,
    probed: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

#[derive(Debug, Default)]
struct State {
    decided: LastOfTwo,
    failed: LastOfTwo,
    last_failures: HashMap<ClientNetwork, Instant>,
}

/// The last events of the last two networks, so that there is one of another network for each.
#[derive(Debug, Default)]
struct LastOfTwo {
    last: Option<(ClientNetwork, Instant)>,
    other: Option<(ClientNetwork, Instant)>,
}

impl LastOfTwo {
    fn record(&mut self, network: ClientNetwork, at: Instant) {
        if self.last.is_some_and(|(last, _)| last != network) {
            self.other = self.last;
        }
        self.last = Some((network, at));
    }

    /// The time of the last event of another network.
    fn of_others(&self, network: ClientNetwork) -> Option<Instant> {
        [self.last, self.other].into_iter().flatten().find(|(of, _)| *of != network).map(|(_, at)| at)
    }
}

impl Causes {
    /// Records a decision about the client at `address`.
    pub(super) fn decided(&self, address: IpAddr) {
        self.state.lock().decided.record(ClientNetwork::of(address), Instant::now());
    }

    /// Records a failed request for the client at `address`. Returns who caused it.
    pub(super) fn failed(&self, address: IpAddr) -> Cause {
        let (network, now) = (ClientNetwork::of(address), Instant::now());
        let mut state = self.state.lock();
        if state.last_failures.len() >= MAX_NETWORKS {
            state.last_failures.clear();
        }
        let previous = state.last_failures.insert(network, now);
        let decided = state.decided.of_others(network);
        let failed = state.failed.of_others(network).filter(|at| now.duration_since(*at) < WINDOW);
        state.failed.record(network, now);
        match (decided, failed) {
            (Some(decided), _) if previous.is_none_or(|previous| decided > previous) => Cause::Client,
            (Some(decided), Some(failed)) if failed > decided => Cause::Service,
            (None, Some(_)) => Cause::Service,
            _ => Cause::Unknown,
        }
    }

    /// The result of `probe`: whether the service fails on the gateway's own request. At most one probe runs at once, and its
    /// result holds for a second.
    pub(super) async fn probe(&self, probe: impl Future<Output = bool>) -> bool {
        let mut probed = self.probed.lock().await;
        if let Some((at, is_failing)) = *probed
            && at.elapsed() < PROBED_FOR
        {
            return is_failing;
        }
        let is_failing = probe.await;
        *probed = Some((Instant::now(), is_failing));
        is_failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn from(host: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, host))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_causes_what_does_not_happen_to_others() {
        let causes = Causes::default();
        let tick = || tokio::time::advance(Duration::from_millis(10));
        for _ in 0..3 {
            causes.decided(from(2));
            tick().await;
            assert_eq!(causes.failed(from(1)), Cause::Client);
            tick().await;
        }
        // Several failures between two decisions.
        assert_eq!(causes.failed(from(1)), Cause::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn the_service_causes_what_happens_to_all() {
        let causes = Causes::default();
        let tick = || tokio::time::advance(Duration::from_millis(10));
        causes.decided(from(1));
        causes.decided(from(2));
        tick().await;
        causes.failed(from(2));
        tick().await;
        causes.failed(from(1));
        for _ in 0..20 {
            tick().await;
            assert_eq!(causes.failed(from(1)), Cause::Service);
            assert_eq!(causes.failed(from(2)), Cause::Service);
        }
        tokio::time::advance(WINDOW).await;
        assert_eq!(causes.failed(from(1)), Cause::Unknown, "nobody else fails any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_network_cannot_tell() {
        let causes = Causes::default();
        for _ in 0..3 {
            causes.decided(from(1));
            assert_eq!(causes.failed(from(1)), Cause::Unknown);
        }
    }

    #[test]
    fn the_number_of_networks_is_bounded() {
        let causes = Causes::default();
        for n in 0..5000u32 {
            causes.failed(IpAddr::V4(n.into()));
        }
        assert!(causes.state.lock().last_failures.len() <= MAX_NETWORKS);
    }
}
