//! A gateway in the test's own process.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use portcullis_gateway::{Gateway, Lasting, Runtime};
use tempfile::TempDir;

use crate::{Broker, BrokerConnection, Client, eventually};

/// A running gateway, its configuration and its access log in a temporary folder.
pub struct TestGateway {
    dir: TempDir,
    /// The gateway itself.
    pub gateway: Gateway,
}

impl TestGateway {
    /// Starts one with this configuration, to which the access log's path is added.
    pub async fn start(configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portcullis.toml");
        fs::write(&path, with_log(configuration)).unwrap();
        let lasting = Lasting::new();
        let loaded = Runtime::load(&path, &lasting).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        Self { gateway: Gateway::start(&path, loaded.runtime, lasting).await.unwrap(), dir }
    }

    /// One plain listener named `devices` and an upstream.
    pub async fn plain(upstream: &str) -> Self {
        Self::start(&format!("{}{upstream}", Self::LISTENER.replace("\"tls\"", "\"tcp\""))).await
    }

    /// The beginning of a listener named `devices`.
    pub const LISTENER: &str =
        "[[listener]]\nname = \"devices\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\nprotocol = \"tls\"\n";

    /// The first address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.gateway.addresses()[0].1
    }

    /// The configuration file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("portcullis.toml")
    }

    /// Replaces the configuration; it counts with the next reload.
    pub fn write(&self, configuration: &str) {
        fs::write(self.path(), with_log(configuration)).unwrap();
    }

    /// What a client without TLS is answered that sends this CONNECT and is not to get through.
    pub async fn refusal(&self, packet: &[u8]) -> Vec<u8> {
        let mut client = Client::tcp(self.address()).await;
        client.write(packet).await;
        client.read_to_end().await
    }

    /// A client without TLS that sends this CONNECT, of MQTT 3.1.1, and is let in; what arrives at the broker is the same.
    pub async fn session(&self, broker: &Broker, packet: &[u8]) -> (Client, BrokerConnection) {
        let mut client = Client::tcp(self.address()).await;
        let connection = client.greet(broker, packet).await;
        (client, connection)
    }

    /// The lines of the access log, once there are that many.
    pub async fn lines(&self, count: usize) -> Vec<String> {
        let log = self.dir.path().join("access.log");
        eventually(&format!("{count} access lines"), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            assert!(lines.len() <= count, "more than {count} lines: {lines:#?}");
            (lines.len() == count && text.ends_with('\n')).then_some(lines)
        })
        .await
    }

    /// A field of the last of so many lines of a log in JSON.
    pub async fn field(&self, lines: usize, name: &str) -> String {
        let line = self.lines(lines).await.pop().unwrap();
        let value = serde_json::from_str::<serde_json::Value>(&line).unwrap()[name].clone();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Status and reason of the only line there is.
    pub async fn outcome(&self) -> String {
        let line = self.lines(1).await.remove(0);
        let columns: Vec<&str> = line.split(' ').collect();
        format!("{} {}", columns[4], columns[9])
    }
}

fn with_log(configuration: &str) -> String {
    let path = "path = \"access.log\"\n";
    if configuration.contains("[access_log]\n") {
        return configuration.replace("[access_log]\n", &format!("[access_log]\n{path}"));
    }
    format!("{configuration}\n[access_log]\n{path}")
}
