//! HTTP for operators: is it alive, is it ready, how is it doing. Asks nobody for a password, so it belongs on the
//! loopback or a UNIX socket.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::tables::AdminBind;
use crate::edge;
use crate::maintenance;
use crate::session::Shared;

const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a kept-alive connection as a whole; the next request opens another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is asked about.
#[derive(Clone)]
struct Served {
    shared: Arc<Shared>,
    /// Set when the gateway takes no more connections.
    draining: CancellationToken,
}

/// Starts answering; returns the address, if it has one.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn serve(
    bind: &AdminBind,
    shared: Arc<Shared>,
    draining: CancellationToken,
) -> io::Result<Option<SocketAddr>> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/jwks.json", get(jwks))
        .route("/.well-known/jwks.json", get(jwks))
        .with_state(Served { shared, draining });
    match bind {
        AdminBind::Tcp(address) => {
            let listener = edge::bind(*address)?;
            let address = listener.local_addr()?;
            tracing::info!(%address, "admin interface listening");
            tokio::spawn(answer(router, async move || listener.accept().await.map(|(stream, _)| stream)));
            Ok(Some(address))
        }
        AdminBind::Unix(path) => {
            remove_stale_socket(path)?;
            let listener = UnixListener::bind(path)?;
            tracing::info!(path = %path.display(), "admin interface listening");
            tokio::spawn(answer(router, async move || listener.accept().await.map(|(stream, _)| stream)));
            Ok(None)
        }
    }
}

/// Answers connections, a bounded number at once and each for a bounded time: also a scraper may hang.
async fn answer<S>(router: Router, mut accept: impl AsyncFnMut() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Closed never, so there is always a place in the end.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok(stream) = accept().await else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

/// Removes what an earlier process left behind: a socket that nobody listens on, and nothing else.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let is_refused = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && is_refused() { std::fs::remove_file(path) } else { Ok(()) }
}

/// Ready: connections are taken, and every upstream has a server for them.
async fn ready(State(Served { shared, draining, .. }): State<Served>) -> impl IntoResponse {
    let mut problems = String::new();
    if draining.is_cancelled() {
        problems.push_str("draining\n");
    }
    for upstream in shared.runtime.load().upstreams.iter().filter(|upstream| !upstream.is_up()) {
        // A String takes every write.
        let _ = writeln!(problems, "upstream {} has no server that is up", upstream.name());
    }
    if problems.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, problems) }
}

/// The public keys of the tokens that brokers get.
async fn jwks(State(Served { shared, .. }): State<Served>) -> impl IntoResponse {
    match &shared.runtime.load().signer {
        Some(signer) => Ok(([(header::CONTENT_TYPE, "application/jwk-set+json")], signer.jwks())),
        None => Err((StatusCode::NOT_FOUND, "no [identity] is configured\n")),
    }
}

async fn metrics(State(Served { shared, .. }): State<Served>) -> impl IntoResponse {
    maintenance::refresh_metrics(&shared);
    for upstream in &shared.runtime.load().upstreams {
        upstream.refresh_metrics();
    }
    if let Some(log) = shared.state.observer.access_log.load().as_ref() {
        shared.state.observer.metrics.set_access_log_dropped(log.dropped());
    }
    if let Some(dropped) = shared.state.observer.log_dropped.get() {
        shared.state.observer.metrics.set_log_dropped(dropped.dropped_lines() as u64);
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shared.state.observer.metrics.render())
}
