//! Whether the client or the service caused an error. Enters: how requests ended, by network. Leaves: whether the error
//! counts towards bans. A client that finds a request on which the service fails should be banned; a network of many devices
//! should not, because the service fails for everybody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::MIN_NETWORKS;
use crate::util::client_network::ClientNetwork;

/// What happened this long ago says nothing about the service.
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
    /// The last failure of each network, within [`WINDOW`].
    failures: HashMap<ClientNetwork, Instant>,
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
        let is_recent = |at: &Instant| now.duration_since(*at) < WINDOW;
        let State { decided, failures } = &mut *self.state.lock();
        let decided = decided.of_others(network).filter(is_recent);
        if failures.len() >= MAX_NETWORKS {
            failures.retain(|_, at| is_recent(at));
        }
        let previous = failures.get(&network).copied();
        // If there is no room, many networks have failed, and that is the answer for this one, too.
        if failures.len() < MAX_NETWORKS || previous.is_some() {
            failures.insert(network, now);
        }
        let others = failures.iter().filter(|(other, at)| **other != network && is_recent(at)).map(|(_, at)| *at);
        let others: Vec<Instant> = others.take(MIN_NETWORKS - 1).collect();
        if others.len() == MIN_NETWORKS - 1 {
            return Cause::Service;
        }
        match (decided, others.first()) {
            (Some(decided), _) if previous.is_none_or(|previous| decided > previous) => Cause::Client,
            (Some(decided), Some(failed)) if *failed > decided => Cause::Service,
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
    async fn some_replicas_or_tenants_that_fail_are_the_services_fault() {
        let causes = Causes::default();
        let tick = || tokio::time::advance(Duration::from_millis(10));
        let mut counted = 0;
        for _ in 0..20 {
            for host in 1..=4 {
                causes.decided(from(host));
                tick().await;
                counted += usize::from(causes.failed(from(host)) == Cause::Client);
                tick().await;
            }
        }
        assert!(counted <= 2, "{counted}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_more_networks_than_are_remembered_none_is_to_blame() {
        let causes = Causes::default();
        causes.decided(IpAddr::from([10, 0, 0, 1]));
        causes.decided(IpAddr::from([10, 0, 0, 2]));
        let mut counted = 0;
        for _ in 0..5 {
            for network in 0..2000u32 {
                tokio::time::advance(Duration::from_micros(10)).await;
                counted += usize::from(causes.failed(IpAddr::V4(network.into())) == Cause::Client);
            }
        }
        assert!(counted <= 2, "{counted}");
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
        assert!(causes.state.lock().failures.len() <= MAX_NETWORKS);
    }
}
