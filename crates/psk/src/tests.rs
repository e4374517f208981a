//! Handshakes in memory with OpenSSL's own client.

use std::sync::atomic::{AtomicBool, Ordering};

use openssl::ssl::{SslContextBuilder, SslMethod};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const KEY: &[u8] = b"0123456789abcdef";
const BOTH: &[Version] = &[Version::Tls12, Version::Tls13];

/// A lookup that knows the identity `pump`, with the owner 7.
struct Pump;

impl PskLookup for Pump {
    type Owner = u32;

    fn look_up(&self, identity: &str) -> Option<Psk<u32>> {
        (identity == "pump").then(|| Psk { key: Zeroizing::new(KEY.into()), owner: 7 })
    }
}

fn acceptor(versions: &[Version]) -> Acceptor<Pump> {
    Acceptor::new(Settings { versions, alpn: &["mqtt".to_owned()] }, Pump).unwrap()
}

/// A client with this identity, key and version, and a flag that tells whether OpenSSL used them.
fn client(version: SslVersion, identity: &'static str, key: &'static [u8], alpn: &[u8]) -> (Ssl, Arc<AtomicBool>) {
    let mut context = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
    context.set_min_proto_version(Some(version)).unwrap();
    context.set_max_proto_version(Some(version)).unwrap();
    context.set_cipher_list("PSK:@SECLEVEL=0").unwrap();
    let is_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_asked);
    context.set_psk_client_callback(move |_, _, identity_out, key_out| {
        asked.store(true, Ordering::Relaxed);
        identity_out[..identity.len()].copy_from_slice(identity.as_bytes());
        identity_out[identity.len()] = 0;
        key_out[..key.len()].copy_from_slice(key);
        Ok(key.len())
    });
    context.set_alpn_protos(alpn).unwrap();
    let mut ssl = Ssl::new(&context.build()).unwrap();
    ssl.set_hostname("gateway.test").unwrap();
    (ssl, is_asked)
}

type Outcome = Result<Accepted<DuplexStream, u32>, Reason>;

/// The server's view of a handshake, and what the client's `read` returns after it.
async fn connect(acceptor: &Acceptor<Pump>, ssl: Ssl) -> (Outcome, Result<String, String>) {
    let (near, far) = duplex(4096);
    let client = async {
        let mut stream = SslStream::new(ssl, near).unwrap();
        Pin::new(&mut stream).connect().await.map_err(|error| error.to_string())?;
        let mut greeting = String::new();
        let read = stream.read_to_string(&mut greeting).await;
        read.map(|_| greeting).map_err(|error| error.to_string())
    };
    let server = async {
        match acceptor.accept(far).await {
            Ok(mut accepted) => {
                accepted.stream.write_all(b"hello").await.unwrap();
                accepted.stream.shutdown().await.unwrap();
                Ok(accepted)
            }
            // Drop the connection, so that the client sees its end.
            Err(rejected) => Err(rejected.reason),
        }
    };
    tokio::join!(server, client)
}

#[tokio::test]
async fn the_identity_and_its_owner_are_proved_in_both_versions() {
    let acceptor = acceptor(BOTH);
    for (number, version) in [(SslVersion::TLS1_2, Version::Tls12), (SslVersion::TLS1_3, Version::Tls13)] {
        let (outcome, read) = connect(&acceptor, client(number, "pump", KEY, b"\x04mqtt").0).await;
        let accepted = outcome.unwrap();
        assert_eq!((&*accepted.identity, accepted.owner, accepted.version), ("pump", 7, version));
        assert_eq!((accepted.sni.as_deref(), accepted.alpn.as_deref()), (Some("gateway.test"), Some("mqtt")));
        assert!(accepted.cipher.starts_with("TLS_"), "{}", accepted.cipher);
        assert_eq!(read.unwrap(), "hello");
    }
}

#[tokio::test]
async fn unknown_identities_and_wrong_keys_look_alike_to_the_client() {
    let acceptor = acceptor(BOTH);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let (wrong, seen) = connect(&acceptor, client(version, "pump", b"another key, as long", b"\x04mqtt").0).await;
        let (unknown, same) = connect(&acceptor, client(version, "nobody", KEY, b"\x04mqtt").0).await;
        assert_eq!((wrong.unwrap_err(), unknown.unwrap_err()), (Reason::WrongKey, Reason::UnknownIdentity));
        assert_eq!(seen.unwrap_err(), same.unwrap_err());
    }
}

#[tokio::test]
async fn other_failures_have_their_reasons() {
    let only_13 = acceptor(&[Version::Tls13]);
    let (ssl, is_asked) = client(SslVersion::TLS1_2, "pump", KEY, b"\x04mqtt");
    assert_eq!(connect(&only_13, ssl).await.0.unwrap_err(), Reason::Version);
    assert!(!is_asked.load(Ordering::Relaxed));
    let both = acceptor(BOTH);
    let (ssl, _) = client(SslVersion::TLS1_3, "pump", KEY, b"\x02h2");
    assert_eq!(connect(&both, ssl).await.0.unwrap_err(), Reason::Parameters);
    for (bytes, reason) in [(&b"\x10\x0c\x00\x04MQTT\x04"[..], Reason::NotTls), (b"", Reason::Closed)] {
        let (mut near, far) = duplex(4096);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(both.accept(far).await.unwrap_err().reason, reason);
    }
}

#[tokio::test]
async fn a_hello_that_announces_too_much_fails_at_its_header() {
    let acceptor = acceptor(BOTH);
    let (mut near, far) = duplex(4096);
    // The client stays connected, and sends nothing more.
    near.write_all(b"\x16\x03\x01\x00\x04\x01\x02\x01\x44").await.unwrap();
    assert_eq!(acceptor.accept(far).await.unwrap_err().reason, Reason::Other);
    drop(near);
}

#[tokio::test]
async fn a_write_that_waits_may_go_on_from_another_buffer() {
    const LEN: usize = 1 << 20;
    let acceptor = acceptor(BOTH);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let (near, far) = duplex(4096);
        let server = async {
            let mut stream = acceptor.accept(far).await.unwrap().stream;
            let mut sent = 0;
            while sent < LEN {
                // Each attempt has its own copy of what is left, and more than the one before.
                let write = std::future::poll_fn(|cx| {
                    let rest = vec![7; LEN - sent];
                    Pin::new(&mut stream).poll_write(cx, &rest)
                });
                sent += write.await.unwrap();
            }
            stream.shutdown().await.unwrap();
        };
        let client = async {
            let mut stream = SslStream::new(client(version, "pump", KEY, b"\x04mqtt").0, near).unwrap();
            Pin::new(&mut stream).connect().await.unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(server, client);
        assert!(received.len() == LEN && received.iter().all(|byte| *byte == 7), "{} bytes", received.len());
    }
}
