//! The admin interface: health, readiness, metrics and public keys by HTTP. Enters: GET requests. Leaves: text. It does
//! not authenticate clients, so it belongs on a loopback address or UNIX socket.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::tables::Bind;
use crate::edge::{Acceptor, Endpoint, SocketSettings, Transport};
use crate::limits::ADMIN_CONNECTIONS;
use crate::net::{Inherited, WriteDeadline};
use crate::observe::RateLimit;
use crate::session::Shared;
use crate::status;

/// How long a connection stays open at least: its request may have arrived with it.
const MIN_LIFETIME: Duration = Duration::from_millis(50);
/// How long a connection may be idle, or a request incomplete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The lifetime of a keep-alive connection. Afterwards, the client has to open another one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The state of the request handlers.
#[derive(Clone)]
struct Served {
    shared: Arc<Shared>,
    /// Cancelled when the gateway stops accepting connections.
    draining: CancellationToken,
}

/// The admin interface of a gateway.
#[derive(Debug)]
pub(crate) struct Admin {
    socket: Arc<Acceptor>,
    accepting: AbortHandle,
    /// Where it is bound.
    pub(crate) address: Bind,
}

impl Admin {
    /// Its listening socket.
    pub(crate) fn socket(&self) -> &Acceptor {
        &self.socket
    }

    /// Stops accepting connections.
    pub(crate) fn stop(&self) {
        self.accepting.abort();
    }
}

/// Starts the admin interface, perhaps on an inherited socket.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn serve(
    bind: &Bind,
    shared: Arc<Shared>,
    draining: CancellationToken,
    inherited: &mut Inherited,
) -> io::Result<Admin> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/jwks.json", get(jwks))
        .route("/.well-known/jwks.json", get(jwks))
        .with_state(Served { shared, draining });
    let endpoint = Endpoint { transport: Transport::Stream, bind: bind.clone() };
    let socket = Arc::new(endpoint.bind(&SocketSettings::default(), inherited)?);
    let address = socket.address(&endpoint)?;
    tracing::info!(%address, "admin interface listening");
    let accepting = tokio::spawn(answer(router, Arc::clone(&socket))).abort_handle();
    Ok(Admin { socket, accepting, address })
}

/// Serves connections. Their number and duration are bounded, because a scraper may hang.
async fn answer(router: Router, socket: Arc<Acceptor>) {
    let mut open: VecDeque<(Instant, AbortHandle)> = VecDeque::with_capacity(ADMIN_CONNECTIONS);
    let warnings = RateLimit::default();
    loop {
        let stream = match socket.accept().await {
            Ok(accepted) => {
                let Some(socket) = accepted.into_socket() else { continue };
                socket
            }
            Err(error) => {
                if let Some(suppressed) = warnings.permit() {
                    tracing::error!(%error, suppressed, "admin interface cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        open.retain(|(_, connection)| !connection.is_finished());
        // The oldest is closed, so that probes are always answered.
        if open.len() >= ADMIN_CONNECTIONS
            && let Some((opened, oldest)) = open.pop_front()
        {
            tokio::time::sleep_until(opened + MIN_LIFETIME).await;
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let stream = WriteDeadline::new(stream, WRITE_TIMEOUT);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = tokio::spawn(tokio::time::timeout(CONNECTION_TIMEOUT, connection));
        open.push_back((Instant::now(), connection.abort_handle()));
    }
}

/// Ready while the gateway accepts connections, has memory for them, and every upstream has a server that is up.
async fn ready(State(Served { shared, draining, .. }): State<Served>) -> impl IntoResponse {
    let mut problems = String::new();
    if draining.is_cancelled() {
        problems.push_str("draining\n");
    }
    if shared.state.memory.is_over() {
        problems.push_str("more memory than `memory_limit`\n");
    }
    for upstream in shared.runtime.load().upstreams.iter().filter(|upstream| !upstream.is_up()) {
        // Writing to a String cannot fail.
        let _ = writeln!(problems, "upstream {} has no server that is up", upstream.name());
    }
    if problems.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, problems) }
}

/// The public keys that verify the identity tokens which brokers receive.
async fn jwks(State(Served { shared, .. }): State<Served>) -> impl IntoResponse {
    match &shared.runtime.load().signer {
        Some(signer) => Ok(([(header::CONTENT_TYPE, "application/jwk-set+json")], signer.jwks())),
        None => Err((StatusCode::NOT_FOUND, "no [identity] is configured\n")),
    }
}

async fn metrics(State(Served { shared, .. }): State<Served>) -> impl IntoResponse {
    status::refresh_metrics(&shared);
    for upstream in &shared.runtime.load().upstreams {
        upstream.refresh_metrics();
    }
    if let Some(log) = shared.state.observer.access_log.load().as_ref() {
        shared.state.observer.metrics.set_access_log_dropped(log.dropped());
    }
    if let Some(dropped) = shared.state.observer.log_dropped.get() {
        shared.state.observer.metrics.set_log_dropped(dropped.count());
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shared.state.observer.metrics.render())
}
