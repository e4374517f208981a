//! The built-in broker, for trying out and for tests: the `mqtt5` library's, reached through memory, storing nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use mqtt5::broker::auth::AllowAllAuthProvider;
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::transport::{BrokerTransport, WebSocketTransport};
use mqtt5::broker::{BrokerConfig, DynamicStorage, MemoryBackend, ResourceLimits, ResourceMonitor};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::broadcast;

/// Bytes on their way between gateway and broker, each direction.
const PIPE: usize = 64 << 10;
/// Where its clients seem to come from.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The process has one: what one session publishes, every other can subscribe to, over reloads.
static BROKER: OnceLock<Broker> = OnceLock::new();

struct Broker {
    config: Arc<BrokerConfig>,
    router: Arc<MessageRouter>,
    storage: Arc<DynamicStorage>,
    stats: Arc<BrokerStats>,
    resources: Arc<ResourceMonitor>,
    shutdown: broadcast::Sender<()>,
}

/// Opens a connection to the broker; the first one starts it.
pub(super) fn connect() -> DuplexStream {
    let broker = BROKER.get_or_init(Broker::start);
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let handler = ClientHandler::new(
        BrokerTransport::WebSocket(Box::new(Pipe(theirs))),
        ADDRESS,
        Arc::clone(&broker.config),
        Arc::clone(&broker.router),
        Arc::new(AllowAllAuthProvider),
        Some(Arc::clone(&broker.storage)),
        Arc::clone(&broker.stats),
        Arc::clone(&broker.resources),
        broker.shutdown.subscribe(),
    );
    tokio::spawn(async move {
        if let Err(error) = handler.run().await {
            tracing::debug!(%error, "session of the embedded broker ended");
        }
    });
    ours
}

impl Broker {
    fn start() -> Self {
        let storage = Arc::new(DynamicStorage::Memory(MemoryBackend::new()));
        Self {
            config: Arc::new(BrokerConfig::default()),
            router: Arc::new(MessageRouter::with_storage(Arc::clone(&storage))),
            storage,
            stats: Arc::new(BrokerStats::new()),
            resources: Arc::new(ResourceMonitor::new(ResourceLimits::default())),
            shutdown: broadcast::channel(1).0,
        }
    }
}

/// The broker's end of a connection. The library takes any stream of bytes that it is told is a WebSocket's.
struct Pipe(DuplexStream);

impl WebSocketTransport for Pipe {
    fn peer_addr(&self) -> mqtt5::error::Result<SocketAddr> {
        Ok(ADDRESS)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
