//! Sessions have threads of their own: what keeps the others busy delays no message.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use portcullis_testkit::{TestGateway, connack, connect, eventually};
use tokio::task::{JoinHandle, spawn_blocking};

/// Both ends of a session. They need no runtime, which the tests keep busy.
struct Ends {
    client: TcpStream,
    broker: TcpStream,
}

impl Ends {
    async fn connect(gateway: &TestGateway, broker: &TcpListener, client_id: &'static str) -> Self {
        let (address, broker) = (gateway.address(), broker.try_clone().unwrap());
        let connected = spawn_blocking(move || {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(&connect(client_id)).unwrap();
            let (broker, _) = broker.accept().unwrap();
            for socket in [&client, &broker] {
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            }
            let mut ends = Self { client, broker };
            expect(&mut ends.broker, &connect(client_id));
            ends.broker.write_all(&connack(4)).unwrap();
            expect(&mut ends.client, &connack(4));
            ends
        });
        connected.await.unwrap()
    }

    fn exchange(&mut self) {
        self.client.write_all(b"\xc0\x00").unwrap();
        expect(&mut self.broker, b"\xc0\x00");
        self.broker.write_all(b"\xd0\x00").unwrap();
        expect(&mut self.client, b"\xd0\x00");
    }
}

fn expect(socket: &mut TcpStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    socket.read_exact(&mut received).expect("bytes that do not come");
    assert_eq!(received, bytes);
}

/// So many sessions, once they are on the threads that relay.
async fn sessions(gateway: &TestGateway, broker: &TcpListener, count: usize) -> Vec<Ends> {
    let mut sessions = Vec::new();
    for client_id in ["thing001", "thing002", "thing003"].into_iter().take(count) {
        sessions.push(Ends::connect(gateway, broker, client_id).await);
    }
    moved(gateway, count).await;
    sessions
}

/// Waits until so many sessions are on the threads that relay.
pub(crate) async fn moved(gateway: &TestGateway, count: usize) {
    eventually("the move to the threads", || (gateway.gateway.relayed_sessions() == count).then_some(())).await;
}

/// Blocks the only thread that connects.
struct Busy {
    release: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl Busy {
    fn keep() -> Self {
        let (started, starts) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let task = tokio::spawn(async move {
            started.send(()).unwrap();
            let _ = released.recv();
        });
        starts.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { release, task }
    }

    async fn end(self) {
        drop(self.release);
        self.task.await.unwrap();
    }
}

/// `limits` are the listener's.
async fn gateway(limits: &str) -> (TestGateway, TcpListener) {
    let broker = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!(
        "{limits}[[upstream]]\nname = \"brokers\"\nservers = [\"{}\"]\nhealth = {{ mode = \"off\" }}\n[runtime]\nworker_threads = 2\n",
        broker.local_addr().unwrap()
    );
    (TestGateway::plain(&upstream).await, broker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delayed_client_goes_on_while_the_threads_that_connect_are_busy() {
    let rate = "[listener.limits]\nmessage_rate = { rate = \"2/s\", burst = 1 }\non_exceed = \"delay\"\n";
    let (gateway, broker) = gateway(rate).await;
    let mut sessions = [Ends::connect(&gateway, &broker, "thing001").await];
    let publish = b"\x30\x04\x00\x01aX".as_slice();
    // Its timer is set before the session moves, and after it.
    for _ in 0..2 {
        sessions[0].client.write_all(&publish.repeat(2)).unwrap();
        expect(&mut sessions[0].broker, &publish.repeat(2));
        moved(&gateway, 1).await;
        let busy = Busy::keep();
        sessions[0].client.write_all(&publish.repeat(2)).unwrap();
        expect(&mut sessions[0].broker, &publish.repeat(2));
        busy.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delayed_message_passes_from_the_thread_to_which_its_client_has_moved() {
    let rate = "[listener.limits]\nmessage_rate = { rate = \"1/s\", burst = 1 }\non_exceed = \"delay\"\n";
    let (gateway, broker) = gateway(rate).await;
    let mut sessions = sessions(&gateway, &broker, 2).await;
    gateway.gateway.use_all_relay_threads(true);
    let publish = b"\x30\x04\x00\x01aX".as_slice();
    for session in &mut sessions {
        session.client.write_all(&publish.repeat(2)).unwrap();
        expect(&mut session.broker, publish);
    }
    // The second message waits for its timer while deliveries let the session move.
    for _ in 0..16 {
        for session in &mut sessions {
            session.broker.write_all(publish).unwrap();
            expect(&mut session.client, publish);
        }
    }
    assert!(gateway.gateway.relays_on(1));
    sessions.iter_mut().for_each(|session| expect(&mut session.broker, publish));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn messages_pass_while_the_threads_that_connect_are_busy() {
    let (gateway, broker) = gateway("").await;
    gateway.gateway.use_all_relay_threads(true);
    // One on each of the threads that relay.
    let mut sessions = sessions(&gateway, &broker, 2).await;
    assert!(gateway.gateway.relays_on(0) && gateway.gateway.relays_on(1));
    let busy = Busy::keep();
    sessions.iter_mut().for_each(Ends::exchange);
    busy.end().await;
    drop(sessions);
    assert_eq!(gateway.lines(2).await.len(), 2, "they end where connections begin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_outlive_the_gateway_that_is_dropped() {
    let (gateway, broker) = gateway("").await;
    let mut sessions = sessions(&gateway, &broker, 1).await;
    let TestGateway { gateway, .. } = gateway;
    drop(gateway);
    sessions[0].exchange();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stop_ends_sessions_on_all_threads() {
    let (gateway, broker) = gateway("").await;
    gateway.gateway.use_all_relay_threads(true);
    let _sessions = sessions(&gateway, &broker, 3).await;
    assert!(gateway.gateway.relays_on(0) && gateway.gateway.relays_on(1));
    gateway.gateway.stop().await;
    let lines = gateway.lines(3).await;
    assert!(lines.iter().all(|line| line.ends_with(" drained")), "{lines:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_kernel_watches_both_connections_of_a_session_that_lasts() {
    let (gateway, broker) = gateway("").await;
    let session = sessions(&gateway, &broker, 1).await.remove(0);
    for (socket, peer) in [(&session.client, "client"), (&session.broker, "broker")] {
        assert!(has_keepalive_timer(socket.peer_addr().unwrap(), socket.local_addr().unwrap()), "{peer}");
    }
    // The test's own ends have none.
    assert!(!has_keepalive_timer(session.client.local_addr().unwrap(), session.client.peer_addr().unwrap()));
}

/// Whether the kernel lists the connection between these addresses with a keep-alive timer: the column `tr` is 2 (proc_net_tcp).
#[cfg(target_os = "linux")]
fn has_keepalive_timer(local: std::net::SocketAddr, remote: std::net::SocketAddr) -> bool {
    let port = |column: &str| u16::from_str_radix(column.rsplit(':').next().unwrap(), 16).unwrap();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let timers = rows.filter(|row| (port(row[1]), port(row[2])) == (local.port(), remote.port()));
    timers.map(|row| row[5].starts_with("02:")).next().expect("the connection is listed")
}
