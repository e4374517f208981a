//! Sizes of sessions, and who takes a place that the memory guard gives.

use std::fs;
use std::net::Ipv4Addr;

use arc_swap::ArcSwap;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::*;
use crate::edge::Acceptor;
use crate::net::Inherited;
use crate::runtime::Runtime;
use crate::state::ProcessState;

/// An established session costs this much besides its sockets, TLS state and record.
#[test]
fn an_established_session_is_small() {
    assert!(size_of::<Session>() <= 376, "{} bytes", size_of::<Session>());
}

const MIB: usize = 1 << 20;
/// Where clients are rejected in each way.
const DENIED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const BANNED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const OVER_LIMIT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
const FREE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

/// A gateway as far as clients arrive at it.
struct Door {
    _dir: TempDir,
    shared: Shared,
    listener: Arc<Listener>,
    socket: Acceptor,
}

impl Door {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portcullis.toml");
        let configuration = format!(
            "[[listener]]\nname = \"devices\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"brokers\"\n\
             deny = [\"{DENIED}\"]\nmax_connections = 4\n[listener.limits]\nconnections_per_address = 1\n\
             [[listener.ban]]\non = [\"failure\"]\ncount = 1\n\
             [[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1\"]\nhealth = {{ mode = \"off\" }}\n"
        );
        fs::write(&path, configuration).unwrap();
        let state = ProcessState::new();
        let loaded = Runtime::load(&path, &state).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let listener = Arc::clone(&loaded.runtime.listeners[0]);
        let relays = Arc::new(RelayThreads::start(0, TaskTracker::new()).unwrap());
        let socket = listener.endpoints[0].bind(&listener.socket, &mut Inherited::default()).unwrap();
        let shared = Shared { runtime: ArcSwap::from_pointee(loaded.runtime), state, relays };
        Self { _dir: dir, shared, listener, socket }
    }

    /// Lets the process have more memory than its limit for so long that some connections are accepted.
    fn exceed_memory(&self) {
        let begin = Instant::now();
        for after in [0, 11] {
            self.shared.state.memory.update(150 * MIB, Some(100 * MIB), begin + Duration::from_secs(after));
        }
    }

    /// The number of places that the memory guard has left, which are taken by this call.
    fn places(&self) -> usize {
        (0..=u8::MAX).take_while(|n| self.shared.state.memory.accepts([10, 9, 8, *n].into(), true)).count()
    }

    /// A client from this address arrives.
    async fn arrives(&self, from: Ipv4Addr) -> (Result<Admission, Reject>, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let client =
            socket.connect(self.socket.address(&self.listener.endpoints[0]).unwrap().ip().unwrap()).await.unwrap();
        let accepted = self.socket.accept().await.unwrap();
        let info = info_of(&accepted, &self.listener, &self.shared);
        let (observer, metrics) = (Arc::clone(&self.shared.state.observer), Arc::clone(&self.listener.metrics));
        let record = Record::open(observer, metrics, info);
        (arrive(accepted, &self.listener, &self.shared, &record).await, client)
    }

    async fn rejection(&self, from: Ipv4Addr) -> Option<Reject> {
        self.arrives(from).await.0.err()
    }
}

#[tokio::test]
async fn clients_that_are_rejected_anyway_take_no_place_of_the_memory_guard() {
    let door = Door::new();
    for _ in 0..2 {
        door.listener.bans.failed((BANNED, 1).into());
    }
    let (held, _client) = door.arrives(OVER_LIMIT).await;
    let held = held.unwrap();
    door.exceed_memory();
    let all = door.places();
    assert!(all > 0);
    for _ in 0..3 {
        for (from, reject) in [
            (DENIED, Reject::AddressDenied),
            (BANNED, Reject::Banned),
            // It would only be told that it has too many, for which there is no memory.
            (OVER_LIMIT, Reject::MemoryLimit),
        ] {
            door.exceed_memory();
            assert_eq!(door.rejection(from).await, Some(reject));
            assert_eq!(door.places(), all, "{reject:?}");
        }
    }
    door.exceed_memory();
    let (admitted, _client) = door.arrives(FREE).await;
    assert!(admitted.is_ok_and(|admission| admission.of_address.is_ok()));
    assert_eq!(door.places(), all - 1);
    // None is left.
    assert_eq!(door.rejection(FREE).await, Some(Reject::MemoryLimit));

    // The listener is full: `max_connections`.
    door.exceed_memory();
    let _taken: Vec<_> = std::iter::repeat_with(|| door.listener.permits.take(4)).map_while(|permit| permit).collect();
    assert_eq!(door.rejection(FREE).await, Some(Reject::TooManyConnections));
    assert_eq!(door.places(), all);
    drop(held);
}

#[tokio::test]
async fn a_network_with_too_many_handshakes_takes_no_place_of_the_memory_guard() {
    let door = Door::new();
    let fill = || Fill { taken: 0, max: 4 };
    let pending = &door.shared.state.pending;
    let _pending: Vec<_> = std::iter::repeat_with(|| pending.take(FREE.into(), false, [fill(), fill()]))
        .map_while(|permit| permit)
        .collect();
    door.exceed_memory();
    let all = door.places();
    door.exceed_memory();
    assert_eq!(door.rejection(FREE).await, Some(Reject::TooManyPending));
    assert_eq!(door.places(), all);
}
