//! HTTP for operators: is it alive, is it ready, how is it doing. Asks nobody for a password, so it belongs on the
//! loopback or a UNIX socket.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::UnixListener;

use crate::net;
use crate::runtime::AdminBind;
use crate::server::Shared;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Starts answering; returns the address, if it has one.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn serve(bind: &AdminBind, shared: Arc<Shared>) -> io::Result<Option<SocketAddr>> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shared);
    match bind {
        AdminBind::Tcp(address) => {
            let listener = net::bind(*address)?;
            let address = listener.local_addr()?;
            tracing::info!(%address, "admin interface");
            tokio::spawn(async move { axum::serve(listener, router).await });
            Ok(Some(address))
        }
        AdminBind::Unix(path) => {
            remove_stale_socket(path)?;
            let listener = UnixListener::bind(path)?;
            tracing::info!(path = %path.display(), "admin interface");
            tokio::spawn(async move { axum::serve(listener, router).await });
            Ok(None)
        }
    }
}

/// Removes what an earlier process left behind: a socket that nobody listens on, and nothing else.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let is_refused = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && is_refused() { std::fs::remove_file(path) } else { Ok(()) }
}

/// Ready: connections are taken, and every upstream has a server for them.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let mut problems = String::new();
    if shared.draining.is_cancelled() {
        problems.push_str("draining\n");
    }
    for upstream in shared.runtime.load().upstreams.iter().filter(|upstream| !upstream.is_up()) {
        // A String takes every write.
        let _ = writeln!(problems, "upstream {} has no server that is up", upstream.name());
    }
    if problems.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, problems) }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    for upstream in &shared.runtime.load().upstreams {
        upstream.refresh_metrics();
    }
    if let Some(log) = shared.observer.access_log.load().as_ref() {
        shared.observer.metrics.set_access_log_dropped(log.dropped());
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shared.observer.metrics.render())
}
