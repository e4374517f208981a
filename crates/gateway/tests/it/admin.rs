//! The admin interface under load: probes are always answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portcullis_testkit::{Broker, Client, PATIENCE, TestGateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start() -> (TestGateway, SocketAddr) {
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&format!("{}[admin]\nbind = \"127.0.0.1:0\"\n", broker.upstream())).await;
    let admin = gateway.gateway.admin_address().unwrap();
    (gateway, admin)
}

async fn is_alive(admin: SocketAddr) -> bool {
    let mut http = Client::tcp(admin).await;
    http.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    http.read_to_end().await.starts_with(b"HTTP/1.1 200 OK")
}

/// Whether the gateway ends a connection, however much was sent before.
async fn ends(mut http: TcpStream) -> bool {
    let mut buffer = vec![0; 64 << 10];
    let discard = async { while let Ok(1..) = http.read(&mut buffer).await {} };
    tokio::time::timeout(PATIENCE, discard).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_do_not_hold_it() {
    let (_gateway, admin) = start().await;
    let mut deaf = Vec::new();
    for _ in 0..100 {
        let mut http = TcpStream::connect(admin).await.unwrap();
        // More responses than the buffers of both sockets hold. The write fails once the gateway has given up.
        let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5000);
        let _ = tokio::time::timeout(Duration::from_millis(5), http.write_all(&requests)).await;
        deaf.push(http);
    }
    let begin = Instant::now();
    assert!(is_alive(admin).await);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn idle_slow_and_deaf_clients_are_disconnected() {
    let (_gateway, admin) = start().await;
    let idle = TcpStream::connect(admin).await.unwrap();
    let mut half = TcpStream::connect(admin).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: ").await.unwrap();
    let mut kept = TcpStream::connect(admin).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let (idle, half, kept) = tokio::join!(ends(idle), ends(half), ends(kept));
    assert!(idle && half && kept, "{idle} {half} {kept}");
}

#[tokio::test]
async fn requests_that_arrive_at_once_are_all_answered() {
    let (_gateway, admin) = start().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        // Connected and written without a pause, so that the interface accepts them all before it serves one.
        let mut http = std::net::TcpStream::connect(admin).unwrap();
        std::io::Write::write_all(&mut http, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        http.set_nonblocking(true).unwrap();
        clients.push(TcpStream::from_std(http).unwrap());
    }
    for mut http in clients {
        let mut response = Vec::new();
        tokio::time::timeout(PATIENCE, http.read_to_end(&mut response)).await.unwrap().unwrap();
        assert!(response.starts_with(b"HTTP/1.1 200 OK"), "{response:?}");
    }
}
