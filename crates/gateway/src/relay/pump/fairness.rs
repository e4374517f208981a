//! Sessions share their thread: a flood in one keeps no other waiting. Counted in polls, not timed.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;
use crate::net::Socket;
use crate::relay::opaque::Opaque;

/// What waits to be moved, in 32 polls: a task that wakes itself may have 61 of them before tokio looks at sockets again.
const FLOOD: usize = 32 * MAX_CHUNKS * CHUNK;
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a session on the thread of the test. `after_poll` gets the bytes that a poll has moved.
fn spawn(client: Stream, broker: Stream, mut after_poll: impl FnMut(u64) + Send + 'static) -> JoinHandle<CloseReason> {
    let ends = Ends { client, broker, broker_first: Vec::new(), max_disconnect: 0 };
    let mut pump = Pump::new(ends, Opaque::default());
    tokio::spawn(poll_fn(move |cx| {
        let poll = pump.poll(cx, Until::AllClosed);
        let (received, sent) = pump.take_counts();
        after_poll(received.max(sent));
        poll
    }))
}

/// A socket of a session, and its far end, which waits for nothing.
async fn connected() -> (net::TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_nonblocking(true).unwrap();
    (far, Socket::Tcp(listener.accept().await.unwrap().0))
}

#[tokio::test]
async fn a_flood_keeps_no_other_session_of_its_thread_waiting() {
    for from in [Direction::ToBroker, Direction::ToClient] {
        let ((mut client, near_client), (mut broker, near_broker)) = (connected().await, connected().await);
        let quiet = spawn(Stream::Plain(near_client), Stream::Plain(near_broker), |_| ());
        client.write_all(b"a").unwrap();
        let arrives = async {
            while broker.read(&mut [0]).is_err() {
                yield_now().await;
            }
        };
        timeout(PATIENCE, arrives).await.expect("a byte that does not come");

        let ((mut source, near_source), (mut sink, near_sink)) = (duplex(FLOOD), duplex(FLOOD));
        source.write_all(&vec![b'x'; FLOOD]).await.unwrap();
        let (near_source, near_sink) = (Stream::Memory(near_source), Stream::Memory(near_sink));
        let (send, moved) = std::sync::mpsc::channel();
        // Whether the byte of the other session has arrived, after each poll of the flood.
        let after_poll = move |bytes| send.send((bytes, broker.read(&mut [0]).is_ok())).unwrap();
        // Its socket has something to read, but nobody has looked.
        client.write_all(b"b").unwrap();
        let flood = match from {
            Direction::ToBroker => spawn(near_source, near_sink, after_poll),
            Direction::ToClient => spawn(near_sink, near_source, after_poll),
        };
        let mut flooded = vec![0; FLOOD];
        timeout(PATIENCE, sink.read_exact(&mut flooded)).await.expect("a flood that does not arrive").unwrap();
        assert!(flooded.iter().all(|byte| *byte == b'x'));
        let polls: Vec<(u64, bool)> = moved.try_iter().collect();
        let most = polls.iter().map(|(bytes, _)| *bytes).max();
        let share = (MAX_CHUNKS * CHUNK) as u64..=(MAX_CHUNKS * (CHUNK + TYPE)) as u64;
        assert!(most.is_some_and(|most| share.contains(&most)), "{polls:?}");
        let waited = polls.iter().position(|(_, has_arrived)| *has_arrived);
        assert!(waited.is_some_and(|waited| waited <= 2), "{waited:?} polls of {}", polls.len());
        quiet.abort();
        flood.abort();
    }
}

/// Takes longer than sessions may for each chunk.
#[derive(Default)]
struct Slow(Opaque);

impl Codec for Slow {
    const INSPECTS: bool = true;

    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending> {
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(1) {}
        self.0.take(direction, chunk, injected)
    }

    fn disconnected(&self) -> Option<Direction> {
        self.0.disconnected()
    }

    fn is_between_packets_to_broker(&self) -> bool {
        self.0.is_between_packets_to_broker()
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        self.0.boundary(chunk)
    }

    fn set_rules(&mut self, rules: Arc<PacketRules>) -> Result<(), Ending> {
        self.0.set_rules(rules)
    }
}

#[tokio::test]
async fn a_turn_ends_when_its_packets_take_long() {
    let ((mut source, near_source), (_sink, near_sink)) = (duplex(FLOOD), duplex(FLOOD));
    source.write_all(&vec![b'x'; FLOOD]).await.unwrap();
    let (client, broker) = (Stream::Memory(near_source), Stream::Memory(near_sink));
    let ends = Ends { client, broker, broker_first: Vec::new(), max_disconnect: 0 };
    let mut pump = Pump::new(ends, Slow::default());
    let mut moved = Vec::new();
    for _ in 0..4 {
        assert!(poll_fn(|cx| Poll::Ready(pump.poll(cx, Until::AllClosed).is_pending())).await);
        moved.push(pump.take_counts().0);
    }
    let expected = [CHUNK, CHUNK / 2, CHUNK / 4, CHUNK / 4].map(|chunk| (chunk + TYPE) as u64);
    assert_eq!(moved, expected, "one chunk each turn, and smaller ones");
}
