//! The proxies under load, configured for the same work.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::usage::{Usage, family};

/// The names of the compared proxies, in the order of the columns.
pub(crate) const NAMES: [&str; 2] = ["Portcullis", "nginx, stream + njs"];

/// What is added to the configuration of Portcullis.
#[derive(Default)]
pub(crate) struct More {
    /// Keys of `[[listener]]`.
    pub(crate) listener: String,
    /// Keys of `[listener.tls]`.
    pub(crate) tls: String,
    /// Further tables.
    pub(crate) tables: String,
}

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Proxy {
    /// Starts Portcullis with identity check, rewriting, hash balancing, access log and metrics.
    pub(crate) async fn portcullis(binary: &Path, dir: &Path, broker: SocketAddr) -> anyhow::Result<Self> {
        Self::portcullis_with(binary, dir, broker, &More::default()).await
    }

    /// As [`Proxy::portcullis`], with more keys.
    pub(crate) async fn portcullis_with(
        binary: &Path,
        dir: &Path,
        broker: SocketAddr,
        more: &More,
    ) -> anyhow::Result<Self> {
        let More { listener, tls, tables } = more;
        let address = free_address()?;
        let configuration = format!(
            r#"
[[listener]]
name = "devices"
bind = "{address}"
upstream = "brokers"
{listener}
[listener.tls]
certificate = "pki/issued/localhost.pem"
private_key = "pki/issued/localhost.key"
client_ca = "pki/root.pem"
{tls}
[listener.admit]
require = ['mqtt.client_id == cert.subject.cn']
[listener.connect]
username = 'cert.subject.dn'
[[upstream]]
name = "brokers"
servers = ["{broker}"]
health = {{ mode = "off" }}
[access_log]
path = "portcullis.log"
[admin]
bind = "127.0.0.1:0"
[runtime]
worker_threads = 2
log = "warn"
{tables}
"#
        );
        fs::write(dir.join("portcullis.toml"), configuration)?;
        let mut command = Command::new(binary);
        command.arg("run").arg("-c").arg(dir.join("portcullis.toml"));
        Self::start(NAMES[0], address, command).await
    }

    /// Starts Debian's NGINX with stream, TLS, njs for the identity check, consistent hash and access log. It cannot rewrite
    /// CONNECT.
    pub(crate) async fn nginx(dir: &Path, broker: SocketAddr) -> anyhow::Result<Self> {
        let address = free_address()?;
        let at = dir.display();
        fs::write(dir.join("check.js"), CHECK)?;
        let configuration = format!(
            r"
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
load_module /usr/lib/nginx/modules/ngx_stream_js_module.so;
worker_processes 2;
daemon off;
user root;
pid {at}/nginx.pid;
error_log {at}/nginx.error.log;
events {{ worker_connections 9000; }}
stream {{
    js_path {at};
    js_import check.js;
    js_set $client_id check.clientId;
    log_format mqtt '$remote_addr [$time_local] $protocol $status $bytes_received $bytes_sent $upstream_addr $client_id';
    access_log {at}/nginx.log mqtt;
    upstream brokers {{ hash $client_id consistent; server {broker}; }}
    server {{
        listen {address} ssl;
        ssl_certificate {at}/pki/issued/localhost.pem;
        ssl_certificate_key {at}/pki/issued/localhost.key;
        ssl_client_certificate {at}/pki/root.pem;
        ssl_verify_client on;
        ssl_verify_depth 2;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sessions:10m;
        ssl_session_tickets on;
        js_preread check.preread;
        preread_timeout 10s;
        tcp_nodelay on;
        proxy_pass brokers;
    }}
}}
"
        );
        fs::write(dir.join("nginx.conf"), configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(dir.join("nginx.conf"));
        Self::start(NAMES[1], address, command).await
    }

    async fn start(name: &'static str, address: SocketAddr, mut command: Command) -> anyhow::Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}; README.md lists what it needs"))?;
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(Self { name, address, process });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{name} does not listen in time")
    }

    /// Terminates the proxy and its children. Killing the master would leave its workers running.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("the proxy has ended")?.to_string();
        Command::new("kill").arg(pid).status().await?;
        tokio::time::timeout(Duration::from_secs(10), self.process.wait()).await??;
        Ok(())
    }

    /// The CPU time and memory of the process and its children.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&family(self.process.id().context("the proxy has ended")?)?)
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// njs: waits for CONNECT, extracts the client ID, and compares it with the certificate's common name.
const CHECK: &str = r"
var id = '';
function preread(s) {
    var seen = '';
    s.on('upload', function (data, flags) {
        seen += data;
        var at = 1, length = 0, shift = 0, byte;
        do {
            if (at >= seen.length) { return; }
            byte = seen.charCodeAt(at++);
            length += (byte & 127) << shift;
            shift += 7;
        } while (byte & 128);
        if (seen.length < at + length) { return; }
        if (seen.charCodeAt(0) !== 16) { s.deny(); return; }
        var name = seen.charCodeAt(at) * 256 + seen.charCodeAt(at + 1);
        var level = seen.charCodeAt(at + 2 + name);
        var place = at + 2 + name + 4;
        if (level === 5) { place += 1 + seen.charCodeAt(place); }
        var size = seen.charCodeAt(place) * 256 + seen.charCodeAt(place + 1);
        id = seen.substr(place + 2, size);
        var cn = /(?:^|,)CN=([^,]+)/.exec(s.variables.ssl_client_s_dn);
        if (cn && cn[1] === id) { s.off('upload'); s.done(); } else { s.deny(); }
    });
}
function clientId() { return id; }
export default { preread, clientId };
";
