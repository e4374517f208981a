//! A proxy of nothing but tokio and rustls: what mutual TLS and copying cost with these libraries. Enters: TLS connections with a
//! certificate of the PKI. Leaves: the same bytes, at the broker. It runs as a subcommand of this program, in a process of its
//! own, so that its CPU time can be read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

use super::process::{Proxy, free_address};
use crate::load::BACKLOG;

/// Starts this program as a bare proxy.
pub(super) async fn start(name: &'static str, dir: &Path, broker: SocketAddr) -> anyhow::Result<Proxy> {
    let address = free_address()?;
    // Not the path of the file, which may have been built anew meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg("bare").arg(address.to_string()).arg(broker.to_string()).arg(dir.join("pki"));
    Proxy::spawn(name, address, dir, command).await
}

/// The bare proxy itself: serves until it is killed.
pub(crate) async fn run(address: SocketAddr, broker: SocketAddr, pki: PathBuf) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&pki)?));
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("cannot bind to {address}"))?;
    let listener = socket.listen(BACKLOG)?;
    loop {
        // An error concerns one connection: the listener stays.
        if let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(acceptor.clone(), socket, broker));
        }
    }
}

async fn serve(acceptor: TlsAcceptor, socket: TcpStream, broker: SocketAddr) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut client = acceptor.accept(socket).await?;
    let mut broker = TcpStream::connect(broker).await?;
    broker.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut broker).await.map(|_| ())
}

fn server_config(pki: &Path) -> anyhow::Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("root.pem"))?)?;
    let chain = CertificateDer::pem_file_iter(pki.join("issued/localhost.pem"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join("issued/localhost.key"))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        .with_single_cert(chain, key)?;
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}
