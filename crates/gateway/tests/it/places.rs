//! Where a session runs: what is tested in both places.

use std::thread;

use portcullis_testkit::TestGateway;
use tokio::runtime::Builder;

use crate::relay_threads::moved;

/// Where the sessions of a test run. The clocks of both are real: that of a thread that relays cannot be advanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where connections begin.
    Connecting,
    /// On a thread that relays, since they have lasted a second.
    Relay,
}

impl Place {
    /// Runs a test in both places at once.
    pub(crate) fn both(test: impl AsyncFn(Self) + Sync) {
        thread::scope(|scope| {
            for place in [Self::Connecting, Self::Relay] {
                let (test, name) = (&test, format!("{place:?}"));
                let run = move || place.runtime().block_on(test(place));
                // The name is that of a panic.
                thread::Builder::new().name(name).spawn_scoped(scope, run).unwrap();
            }
        });
    }

    fn runtime(self) -> tokio::runtime::Runtime {
        let mut builder = match self {
            // Its gateways have no threads that relay.
            Self::Connecting => Builder::new_current_thread(),
            Self::Relay => Builder::new_multi_thread(),
        };
        builder.worker_threads(1).enable_all().build().unwrap()
    }

    /// Waits until all `count` sessions of the gateway are in this place.
    pub(crate) async fn reached(self, gateway: &TestGateway, count: usize) {
        match self {
            Self::Connecting => assert_eq!(gateway.gateway.relayed_sessions(), 0),
            Self::Relay => moved(gateway, count).await,
        }
    }
}
