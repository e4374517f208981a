//! The handshake, the encrypted stream and its record layer, with clients of rustls at the other end.

mod records;

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::*;
use crate::limits::{Fill, Handshakes, Pending, TooManyBytes, TooManyHandshakes};
use crate::util::crypto::provider;

static VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// The server's and the client's configuration, for one version and cipher suite.
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    suite: SupportedCipherSuite,
}

impl Configs {
    fn new(suite: SupportedCipherSuite) -> Self {
        static PAIR: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
            let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            (pair.cert.der().to_vec(), pair.signing_key.serialize_der())
        });
        let (certificate, key) = (CertificateDer::from(&*PAIR.0), PrivateKeyDer::try_from(&*PAIR.1).unwrap());
        let mut only = CryptoProvider::clone(&provider());
        only.cipher_suites.retain(|other| other.suite() == suite.suite());
        let (only, versions) = (Arc::new(only), [suite.version()]);
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&only))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone().into_owned()], key.clone_key())
            .unwrap();
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let mut client = ClientConfig::builder_with_provider(only)
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        Self { server: server.into(), client: client.into(), suite }
    }

    /// One for each cipher suite of each version.
    fn all() -> impl Iterator<Item = Self> {
        provider().cipher_suites.clone().into_iter().filter(usable).map(Self::new)
    }

    /// One of each version.
    fn of_each_version() -> impl Iterator<Item = Self> {
        VERSIONS.into_iter().map(|version| {
            let of_version = |suite: &SupportedCipherSuite| suite.version() == version && usable(suite);
            Self::new(*provider().cipher_suites.iter().find(|suite| of_version(suite)).unwrap())
        })
    }
}

/// The key of the test's certificate is of ECDSA.
fn usable(suite: &SupportedCipherSuite) -> bool {
    suite.tls13().is_some() || format!("{suite:?}").contains("ECDSA")
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// A transport that passes at most so many bytes at once.
struct Trickle(DuplexStream, usize);

impl AsyncRead for Trickle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut some = vec![0; buf.remaining().min(self.1)];
        let mut part = ReadBuf::new(&mut some);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let some = bytes.len().min(self.1);
        Pin::new(&mut self.0).poll_write(cx, &bytes[..some])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(socket: S, configs: &Configs) -> TlsStream<S> {
    let mut pending = pending();
    let start = ServerHandshake::new(socket, &mut pending);
    let completed = start.complete(ServerConfig::clone(&configs.server), &mut turn(), |_| false).await;
    completed.unwrap_or_else(|failure| panic!("{}", failure.error)).into_stream().unwrap()
}

/// The turn of a client that is alone.
fn turn() -> Turn {
    let handshakes = Arc::new(Handshakes::new(1, 1));
    handshakes.turn([192, 0, 2, 1].into(), Instant::now() + Duration::from_secs(10))
}

/// The permit of a client that is alone.
fn pending() -> PendingPermit {
    let roomy = Fill { taken: 0, max: u32::MAX };
    Arc::<Pending>::default().take([192, 0, 2, 1].into(), false, [roomy; 2]).unwrap()
}

/// Bytes that differ from place to place.
fn bytes(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[tokio::test]
async fn bytes_pass_both_ways_however_they_are_cut() {
    const LENGTHS: [usize; 8] = [1, 2, 100, 16_383, 16_384, 16_385, 40_000, 200_000];
    for configs in Configs::all() {
        for at_once in [3, 1000, 100_000] {
            let (ours, theirs) = duplex(64 << 10);
            let connector = TlsConnector::from(Arc::clone(&configs.client));
            let client = tokio::spawn(async move {
                let mut stream = connector.connect(name(), theirs).await.unwrap();
                for len in LENGTHS {
                    stream.write_all(&bytes(len)).await.unwrap();
                    stream.flush().await.unwrap();
                    let mut echo = vec![0; len];
                    stream.read_exact(&mut echo).await.unwrap();
                    assert!(echo == bytes(len), "{len}");
                }
                stream.shutdown().await.unwrap();
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "close_notify");
            });
            let mut stream = accept(Trickle(ours, at_once), &configs).await;
            for len in LENGTHS {
                let mut received = vec![0; len];
                stream.read_exact(&mut received).await.unwrap();
                assert!(received == bytes(len), "{len}");
                stream.write_all(&received).await.unwrap();
                stream.flush().await.unwrap();
            }
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "close_notify");
            stream.shutdown().await.unwrap();
            client.await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_follows_the_handshake_is_not_lost_however_large_both_are() {
    const LEN: usize = 300_000;
    for configs in Configs::of_each_version() {
        let (ours, theirs) = duplex(1 << 20);
        let mut client = ClientConfig::clone(&configs.client);
        // 15 KiB of ClientHello.
        client.alpn_protocols = (0..58).map(|_| vec![b'x'; 255]).collect();
        let connector = TlsConnector::from(Arc::new(client));
        let client = tokio::spawn(async move {
            let mut stream = connector.connect(name(), theirs).await.unwrap();
            stream.write_all(&bytes(LEN)).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut stream = accept(ours, &configs).await;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == bytes(LEN), "{}", received.len());
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_closes_without_close_notify_was_cut_off() {
    for configs in Configs::of_each_version() {
        let (ours, theirs) = duplex(64 << 10);
        let connector = TlsConnector::from(Arc::clone(&configs.client));
        let client = tokio::spawn(async move {
            let mut stream = connector.connect(name(), theirs).await.unwrap();
            stream.write_all(b"abc").await.unwrap();
            stream.flush().await.unwrap();
        });
        let mut stream = accept(ours, &configs).await;
        stream.read_exact(&mut [0; 3]).await.unwrap();
        client.await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn keys_are_updated_by_the_client_and_on_its_request() {
    for configs in Configs::all().filter(|configs| configs.suite.tls13().is_some()) {
        update_keys(&configs).await;
    }
}

async fn update_keys(configs: &Configs) {
    let (ours, theirs) = duplex(64 << 10);
    let connector = TlsConnector::from(Arc::clone(&configs.client));
    let client = tokio::spawn(async move {
        let mut stream = connector.connect(name(), theirs).await.unwrap();
        for round in 0..100_u8 {
            // Requests one of the server, too.
            stream.get_mut().1.refresh_traffic_keys().unwrap();
            stream.write_all(&[round; 100]).await.unwrap();
            stream.flush().await.unwrap();
            let mut echo = [0; 100];
            stream.read_exact(&mut echo).await.unwrap();
            assert_eq!(echo, [round; 100]);
        }
    });
    let mut stream = accept(ours, configs).await;
    let mut received = [0; 100];
    for _ in 0..100 {
        stream.read_exact(&mut received).await.unwrap();
        stream.write_all(&received).await.unwrap();
        stream.flush().await.unwrap();
    }
    client.await.unwrap();
}

#[tokio::test]
async fn the_gateway_renews_its_key_before_it_is_used_up() {
    for configs in Configs::all() {
        let is_tls13 = configs.suite.tls13().is_some();
        let (ours, theirs) = duplex(64 << 10);
        let connector = TlsConnector::from(Arc::clone(&configs.client));
        let client = tokio::spawn(async move {
            let mut stream = connector.connect(name(), theirs).await.unwrap();
            let mut received = Vec::new();
            // Fails without close_notify.
            stream.read_to_end(&mut received).await.unwrap();
            received.len()
        });
        let mut stream = accept(ours, &configs).await;
        stream.limit_records(5);
        let mut sent = 0;
        while sent < 50 && stream.write_all(b"x").await.is_ok() {
            sent += 1;
        }
        // TLS 1.2 has no other key, so the connection ends.
        assert_eq!(sent, if is_tls13 { 50 } else { 4 });
        if is_tls13 {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        assert_eq!(client.await.unwrap(), sent);
    }
}

#[tokio::test]
async fn an_idle_connection_keeps_no_buffer() {
    for configs in Configs::of_each_version() {
        let (ours, theirs) = duplex(1 << 20);
        let connector = TlsConnector::from(Arc::clone(&configs.client));
        let client = tokio::spawn(async move {
            let mut stream = connector.connect(name(), theirs).await.unwrap();
            stream.write_all(&bytes(50_000)).await.unwrap();
            stream.flush().await.unwrap();
            let mut echo = vec![0; 50_000];
            stream.read_exact(&mut echo).await.unwrap();
            stream
        });
        let mut stream = accept(ours, &configs).await;
        let mut received = vec![0; 50_000];
        stream.read_exact(&mut received).await.unwrap();
        stream.write_all(&received).await.unwrap();
        stream.flush().await.unwrap();
        let _client = client.await.unwrap();
        let wait = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut [0; 10])).await;
        assert!(wait.is_err() && stream.buffered() == 0, "{}", stream.buffered());
    }
}

/// What rustls would keep of a handshake is more than twice this.
#[test]
fn a_connection_is_small() {
    let size = size_of::<TlsStream<crate::net::Socket>>();
    assert!(size <= 352, "{size} bytes");
}

#[tokio::test]
async fn a_peer_that_does_not_read_fills_no_more_than_a_write() {
    let configs = Configs::of_each_version().last().unwrap();
    let (ours, theirs) = duplex(1000);
    let connector = TlsConnector::from(Arc::clone(&configs.client));
    let client = tokio::spawn(async move { connector.connect(name(), theirs).await.unwrap() });
    let mut stream = accept(ours, &configs).await;
    let write = async {
        loop {
            stream.write_all(&bytes(1 << 20)).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(50), write).await.is_err());
    assert!((10_000..70_000).contains(&stream.buffered()), "{}", stream.buffered());
    client.await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_fails_is_answered_with_an_alert() {
    let configs = Configs::of_each_version().last().unwrap();
    for (sent, alert) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], None), (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", Some(50))]
    {
        let (ours, mut theirs) = duplex(64 << 10);
        theirs.write_all(sent).await.unwrap();
        let failure = ServerHandshake::new(ours, &mut pending())
            .complete(ServerConfig::clone(&configs.server), &mut turn(), |_| false)
            .await
            .err()
            .unwrap();
        let reason = failure.error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        assert!(reason.is_some(), "{}", failure.error);
        drop(failure);
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.last().copied(), alert.or(answer.last().copied()));
        assert!(answer.starts_with(&[21, 3]), "{answer:?}");
    }
}

#[tokio::test]
async fn large_handshakes_end_when_those_of_the_network_hold_too_many_bytes() {
    let configs = Configs::of_each_version().last().unwrap();
    // The most that a network may hold: others find no room for what is large.
    let (mut pending, all) = (pending(), Arc::<Pending>::default());
    let roomy = Fill { taken: 0, max: u32::MAX };
    let of_network = || all.take([192, 0, 2, 1].into(), false, [roomy; 2]).unwrap();
    let mut most = of_network();
    let mut len = 256 << 20;
    while most.hold(len).is_err() {
        len -= 4 << 10;
    }
    // A ClientHello of 16,000 bytes, of which 12,000 arrive.
    let hello = [&b"\x16\x03\x01\x3e\x80\x01\0\x3e\x7c"[..], &[0; 12_000]].concat();
    let run = async |permit: &mut PendingPermit| {
        let (ours, mut theirs) = duplex(64 << 10);
        theirs.write_all(&hello).await.unwrap();
        theirs.shutdown().await.unwrap();
        let start = ServerHandshake::new(ours, permit);
        let failure = start.complete(ServerConfig::clone(&configs.server), &mut turn(), |_| false).await.err().unwrap();
        failure.error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<TooManyBytes>)
    };
    assert!(run(&mut of_network()).await);
    assert!(!run(&mut pending).await, "the client has closed the connection");
}

#[tokio::test]
async fn what_a_handshake_has_processed_counts_until_it_is_complete() {
    for configs in Configs::of_each_version() {
        let mut client = ClientConfig::clone(&configs.client);
        client.alpn_protocols = vec![vec![b'a'; 200]; 60];
        let (ours, theirs) = duplex(64 << 10);
        let connected =
            tokio::spawn(async move { TlsConnector::from(Arc::new(client)).connect(name(), theirs).await.unwrap() });
        let mut permit = pending();
        let start = ServerHandshake::new(ours, &mut permit);
        let completed = start.complete(ServerConfig::clone(&configs.server), &mut turn(), |_| false).await;
        assert!(completed.is_ok());
        assert!((8_000..16_000).contains(&permit.bytes()), "{} bytes", permit.bytes());
        drop(completed);
        drop(connected.await);
    }
}

#[tokio::test]
async fn a_peeked_hello_has_a_limit() {
    let (ours, mut theirs) = duplex(64 << 10);
    let record = |begin: &[u8]| [&b"\x16\x03\x01\x3e\x80"[..], begin, &vec![0; 16_000 - begin.len()]].concat();
    theirs.write_all(&[record(b"\x01\0\xff\xff"), record(b"")].concat()).await.unwrap();
    let mut pending = pending();
    let peeked = ServerHandshake::new(ours, &mut pending).peek(|_| ()).await;
    let error = peeked.err().unwrap().error;
    assert!(format!("{error:?}").contains("HandshakePayloadTooLarge"), "{error:?}");
    drop(theirs);
}

#[tokio::test]
async fn without_a_turn_a_client_is_sent_nothing() {
    let configs = Configs::of_each_version().last().unwrap();
    let handshakes = Arc::new(Handshakes::new(1, 1));
    let turn = |patience| Arc::clone(&handshakes).turn([192, 0, 2, 1].into(), Instant::now() + patience);
    let mut other = turn(Duration::from_secs(10));
    other.begin(|| false).await.unwrap();
    let (ours, theirs) = duplex(64 << 10);
    let connector = TlsConnector::from(Arc::clone(&configs.client));
    let client = tokio::spawn(async move { connector.connect(name(), theirs).await.unwrap_err().kind() });
    let mut late = turn(Duration::from_millis(50));
    let mut pending = pending();
    let start = ServerHandshake::new(ours, &mut pending);
    let failure = start.complete(ServerConfig::clone(&configs.server), &mut late, |_| false).await.err().unwrap();
    assert!(failure.error.get_ref().unwrap().is::<TooManyHandshakes>(), "{}", failure.error);
    drop(failure);
    assert_eq!(client.await.unwrap(), io::ErrorKind::UnexpectedEof, "no alert");
}

#[tokio::test]
async fn nothing_is_computed_for_a_client_that_has_gone() {
    let configs = Configs::of_each_version().last().unwrap();
    let handshakes = Arc::new(Handshakes::new(1, 1));
    let turn = || Arc::clone(&handshakes).turn([192, 0, 2, 1].into(), Instant::now() + Duration::from_secs(10));
    let mut other = turn();
    other.begin(|| false).await.unwrap();
    let (ours, mut theirs) = duplex(64 << 10);
    let mut client = ClientConnection::new(Arc::clone(&configs.client), name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    theirs.write_all(&hello).await.unwrap();
    let (server, mut waiting) = (ServerConfig::clone(&configs.server), turn());
    let handshake = tokio::spawn(async move {
        ServerHandshake::new(ours, &mut pending())
            .complete(server, &mut waiting, |_| false)
            .await
            .err()
            .map(|failure| failure.error.kind())
    });
    tokio::task::yield_now().await;
    drop(theirs);
    drop(other);
    assert_eq!(handshake.await.unwrap(), Some(io::ErrorKind::UnexpectedEof));
}

#[test]
fn the_client_hello_can_be_peeked_at_any_cut() {
    let configs = Configs::of_each_version().last().unwrap();
    let mut client = ClientConnection::new(Arc::clone(&configs.client), name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for at_once in [1, 7, 100_000] {
        let (ours, mut theirs) = duplex(64 << 10);
        let names = runtime.block_on(async {
            theirs.write_all(&hello).await.unwrap();
            let mut pending = pending();
            let start = ServerHandshake::new(Trickle(ours, at_once), &mut pending);
            let peeked = start.peek(|hello| hello.server_name().map(str::to_owned)).await;
            let (start, name) = peeked.unwrap_or_else(|failure| panic!("{}", failure.error));
            assert_eq!(start.incoming, hello, "the handshake sees it again");
            name
        });
        assert_eq!(names.as_deref(), Some("localhost"));
    }
}
