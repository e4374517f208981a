//! Connects with flowsdk over QUIC, publishes to itself with QoS 1 and prints what came back, or why it was refused.

use std::fs::read_to_string;
use std::time::Duration;

use flowsdk::mqtt_client::client::ConnectionResult;
use flowsdk::mqtt_client::{
    MqttClientOptions, MqttMessage, TokioAsyncClientConfig, TokioAsyncMqttClient, TokioMqttEventHandler,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;

struct Handler(UnboundedSender<String>);

#[async_trait::async_trait]
impl TokioMqttEventHandler for Handler {
    async fn on_connected(&mut self, _result: &ConnectionResult) {}

    async fn on_message_received(&mut self, message: &MqttMessage) {
        let _ = self.0.send(format!("received {}", String::from_utf8_lossy(&message.payload)));
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, client_id, ca, rest @ ..] = &arguments[..] else { panic!("port, client ID, CA [, certificate, key]") };
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let options = MqttClientOptions::builder()
        .peer(format!("quic://localhost:{port}"))
        .client_id(client_id)
        .keep_alive(60)
        .clean_start(true)
        .build();
    let mut config = TokioAsyncClientConfig::builder()
        .auto_reconnect(false)
        .quic_enable_0rtt(false)
        .quic_custom_root_ca_pem(read_to_string(ca).unwrap());
    if let [certificate, key] = rest {
        config = config
            .quic_client_cert_pem(read_to_string(certificate).unwrap())
            .quic_client_key_pem(read_to_string(key).unwrap());
    }
    let (sender, mut received) = unbounded_channel();
    let client = TokioAsyncMqttClient::new(options, Box::new(Handler(sender)), config.build()).await.unwrap();
    match timeout(Duration::from_secs(10), client.connect_sync()).await {
        Ok(Ok(connected)) if connected.is_success() => {}
        other => {
            println!("refused {other:?}");
            return;
        }
    }
    client.subscribe_sync("test/1", 1).await.unwrap();
    client.publish("test/1", b"hello", 1, false).await.unwrap();
    match timeout(Duration::from_secs(10), received.recv()).await {
        Ok(Some(message)) => println!("{message}"),
        other => println!("nothing {other:?}"),
    }
    client.disconnect_sync().await.unwrap();
    client.shutdown().await.unwrap();
}
