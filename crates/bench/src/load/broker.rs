//! The broker of the comparison. Enters: connections of a proxy, with CONNECT. Leaves: CONNACK, PINGRESP, the numbers of
//! connects and bytes received, and a flood of messages to those who ask for it.
//!
//! It has a thread of its own, so that devices that are busy with cryptography do not keep it from accepting.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::mqtt;

/// Whoever publishes here gets messages of [`FLOOD_LEN`] bytes until the connection ends.
const FLOOD_TOPIC: &str = "flood/me";
/// How long what has been sent may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of payload of each message of the flood.
const FLOOD_LEN: usize = 64 << 10;
/// Connections that wait to be accepted. A storm must not wait for repeated SYNs.
pub(crate) const BACKLOG: u32 = 4096;

/// A running broker. It ends with the process.
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    closing: Arc<Notify>,
}

#[derive(Default)]
struct Counts {
    /// CONNECTs.
    connects: AtomicUsize,
    /// Bytes behind CONNECT.
    received: AtomicUsize,
    /// Connections that have ended.
    ended: AtomicUsize,
    /// Something else than `connects` has changed.
    changed: Notify,
}

impl Counts {
    fn add(&self, to: &AtomicUsize, count: usize) {
        to.fetch_add(count, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until a count is so high, or the deadline is over. Returns it.
    async fn wait_for(&self, of: &AtomicUsize, goal: usize) -> usize {
        let reached = async {
            loop {
                let changed = self.changed.notified();
                if of.load(Ordering::Relaxed) >= goal {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(DEADLINE, reached).await;
        of.load(Ordering::Relaxed)
    }
}

impl Broker {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let listener = {
            let _entered = runtime.enter();
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            socket.listen(BACKLOG).context("the broker cannot listen")?
        };
        let address = listener.local_addr()?;
        let (counts, closing) = (Arc::<Counts>::default(), Arc::<Notify>::default());
        let serving = accept(listener, Arc::clone(&counts), Arc::clone(&closing));
        let thread = std::thread::Builder::new().name("broker".to_owned());
        thread.spawn(move || runtime.block_on(serving))?;
        Ok(Self { address, counts, closing })
    }

    /// Bytes received behind CONNECT, over all connections.
    pub(crate) fn received(&self) -> usize {
        self.counts.received.load(Ordering::Relaxed)
    }

    /// CONNECTs received.
    pub(crate) fn connects(&self) -> usize {
        self.counts.connects.load(Ordering::Relaxed)
    }

    /// Closes all connections at once, and goes on accepting: a broker that has restarted.
    pub(crate) fn close_all(&self) {
        self.closing.notify_one();
    }

    /// Waits until so many bytes have arrived since there were `before`: all that was sent, and no more.
    pub(crate) async fn wait_for(&self, before: usize, sent: usize) -> anyhow::Result<()> {
        let arrived = self.counts.wait_for(&self.counts.received, before + sent).await - before;
        ensure!(arrived == sent, "{arrived} of {sent} bytes arrived");
        Ok(())
    }

    /// Connections that have ended.
    pub(crate) fn ended(&self) -> usize {
        self.counts.ended.load(Ordering::Relaxed)
    }

    /// Waits until so many connections have ended since the start.
    pub(crate) async fn wait_for_ended(&self, goal: usize) -> anyhow::Result<()> {
        let ended = self.counts.wait_for(&self.counts.ended, goal).await;
        ensure!(ended >= goal, "{ended} of {goal} connections have ended");
        Ok(())
    }
}

/// The packet that asks for a flood.
pub(crate) fn flood_request() -> Vec<u8> {
    mqtt::publish(FLOOD_TOPIC, 1)
}

async fn accept(listener: TcpListener, counts: Arc<Counts>, closing: Arc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // An error concerns one connection: the listener stays.
            accepted = listener.accept() => if let Ok((socket, _)) = accepted {
                let counts = Arc::clone(&counts);
                connections.spawn(async move {
                    let result = serve(socket, &counts).await;
                    counts.add(&counts.ended, 1);
                    result
                });
            },
            Some(_) = connections.join_next() => {}
            () = closing.notified() => connections.abort_all(),
        }
    }
}

/// Accepts CONNECT, counts the bytes behind it, and answers what must be answered.
async fn serve(mut socket: TcpStream, counts: &Counts) -> io::Result<()> {
    socket.set_nodelay(true)?;
    // The proxy may have added a user name, so read the packet's length from its header: all are shorter than 128 bytes.
    let mut head = [0; 2];
    socket.read_exact(&mut head).await?;
    let mut rest = vec![0; head[1].into()];
    socket.read_exact(&mut rest).await?;
    drop(rest);
    counts.connects.fetch_add(1, Ordering::Relaxed);
    socket.write_all(&mqtt::CONNACK).await?;
    let request = flood_request();
    loop {
        socket.readable().await?;
        match receive(&socket, &request) {
            Ok(Received::End) => return Ok(()),
            Ok(Received::Pings(count)) => socket.write_all(&mqtt::PINGRESP.repeat(count)).await?,
            Ok(Received::FloodRequest) => break,
            Ok(Received::Bytes(count)) => counts.add(&counts.received, count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        // One connection that floods must not keep the others waiting.
        tokio::task::coop::consume_budget().await;
    }
    let message = mqtt::publish(mqtt::TOPIC, FLOOD_LEN);
    loop {
        socket.write_all(&message).await?;
    }
}

enum Received {
    End,
    Pings(usize),
    FloodRequest,
    Bytes(usize),
}

fn receive(socket: &TcpStream, flood_request: &[u8]) -> io::Result<Received> {
    thread_local! {
        // One for all connections: 10,000 of them wait at the same time.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let count = socket.try_read(buffer)?;
        Ok(match &buffer[..count] {
            [] => Received::End,
            bytes if bytes == flood_request => Received::FloodRequest,
            bytes if is_pings(bytes) => Received::Pings(count / mqtt::PINGREQ.len()),
            _ => Received::Bytes(count),
        })
    })
}

fn is_pings(bytes: &[u8]) -> bool {
    bytes.chunks(mqtt::PINGREQ.len()).all(|packet| packet == mqtt::PINGREQ)
}
