//! A gateway within the test process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use portcullis_gateway::{Gateway, Inherited, ProcessState, Runtime};
use portcullis_gateway::{PasswordHash, set_password};
use tempfile::TempDir;

use crate::{Broker, BrokerConnection, Client, connack, eventually, soon};

/// A running gateway, its configuration and its access log in a temporary directory.
pub struct TestGateway {
    dir: TempDir,
    /// The gateway itself.
    pub gateway: Gateway,
}

impl TestGateway {
    /// Starts a gateway with this configuration, to which it adds the path of the access log.
    pub async fn start(configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portcullis.toml");
        fs::write(&path, with_log(configuration)).unwrap();
        let state = ProcessState::new();
        let loaded = Runtime::load(&path, &state).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        Self { gateway: Gateway::start(&path, loaded.runtime, state, Inherited::default()).await.unwrap(), dir }
    }

    /// Starts a gateway with one plain listener named `devices` and this upstream.
    pub async fn plain(upstream: &str) -> Self {
        Self::start(&format!("{}{upstream}", Self::LISTENER.replace("\"tls\"", "\"tcp\""))).await
    }

    /// The first lines of a TLS listener named `devices`.
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

    /// Replaces the configuration file. The next reload applies it.
    pub fn write(&self, configuration: &str) {
        fs::write(self.path(), with_log(configuration)).unwrap();
    }

    /// Sends this CONNECT without TLS and returns the whole response, until the gateway closes the connection.
    pub async fn refusal(&self, packet: &[u8]) -> Vec<u8> {
        let mut client = Client::tcp(self.address()).await;
        client.write(packet).await;
        client.read_to_end().await
    }

    /// Opens a session without TLS with this MQTT 3.1.1 CONNECT, and asserts that the broker receives it unchanged.
    pub async fn session(&self, broker: &Broker, packet: &[u8]) -> (Client, BrokerConnection) {
        let mut client = Client::tcp(self.address()).await;
        let connection = client.greet(broker, packet).await;
        (client, connection)
    }

    /// As [`TestGateway::session`], but reconnects until the gateway admits the client.
    pub async fn session_at_last(&self, broker: &Broker, packet: &[u8]) -> (Client, BrokerConnection) {
        soon("a client to be admitted", async {
            loop {
                let mut client = Client::tcp(self.address()).await;
                client.write(packet).await;
                tokio::select! {
                    mut connection = broker.accept() => {
                        connection.expect(packet).await;
                        connection.write(&connack(4)).await;
                        client.expect(&connack(4)).await;
                        return (client, connection);
                    }
                    _ = client.read_to_end() => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                }
            }
        })
        .await
    }

    /// Waits until the access log has `count` lines, and returns them.
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

    /// Waits until the JSON access log has this many lines, and returns a field of the last.
    pub async fn field(&self, lines: usize, name: &str) -> String {
        let line = self.lines(lines).await.pop().unwrap();
        let value = serde_json::from_str::<serde_json::Value>(&line).unwrap()[name].clone();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Status and reason of the only line of the access log.
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

/// Writes a password file with these users. Returns an `[[authenticator]]` with the file's name.
pub fn password_file(dir: &Path, name: &str, users: &[(&str, &str)]) -> String {
    let path = dir.join(name);
    for (user, password) in users {
        set_password(&path, user, &PasswordHash::make(password.as_bytes()).unwrap()).unwrap();
    }
    format!("[[authenticator]]\nname = \"{name}\"\nkind = \"password_file\"\nfile = {path:?}\n")
}
