//! What records mean behind the handshake: clients that make their own, and rustls as the judge.

use std::io::{self, Read};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{
    ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, ServerConnection, SupportedCipherSuite,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{Configs, TlsStream, Trickle, accept, bytes, name};

/// A client after its handshake, whose records the test makes and reads itself.
struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
    decrypter: Box<dyn MessageDecrypter>,
    received: u64,
}

impl Forger {
    fn new(client: ClientConnection, suite: SupportedCipherSuite) -> Self {
        let extracted = client.dangerous_extract_secrets().unwrap();
        let ((sequence, secrets), (received, theirs)) = (extracted.tx, extracted.rx);
        let decrypter = match (suite, theirs) {
            (
                SupportedCipherSuite::Tls13(suite),
                ConnectionTrafficSecrets::Aes128Gcm { key, iv }
                | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
                | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            ) => suite.aead_alg.decrypter(key, iv),
            (
                SupportedCipherSuite::Tls12(suite),
                ConnectionTrafficSecrets::Aes128Gcm { key, iv } | ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            ) => suite.aead_alg.decrypter(key, &iv.as_ref()[..4]),
            _ => panic!("not a cipher suite of these tests"),
        };
        let mut encrypter = match (suite, secrets) {
            (
                SupportedCipherSuite::Tls13(suite),
                ConnectionTrafficSecrets::Aes128Gcm { key, iv }
                | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
                | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            ) => suite.aead_alg.encrypter(key, iv),
            (
                SupportedCipherSuite::Tls12(suite),
                ConnectionTrafficSecrets::Aes128Gcm { key, iv } | ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            ) => suite.aead_alg.encrypter(key, &iv.as_ref()[..4], &iv.as_ref()[4..]),
            _ => panic!("not a cipher suite of these tests"),
        };
        if sequence > 0 {
            let empty = OutboundPlainMessage {
                typ: ContentType::ApplicationData,
                version: ProtocolVersion::TLSv1_2,
                payload: OutboundChunks::Single(&[]),
            };
            encrypter.encrypt(empty, 0).unwrap();
        }
        Self { encrypter, sequence, decrypter, received }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message =
            OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload: OutboundChunks::Single(payload) };
        let record = self.encrypter.encrypt(message, self.sequence).unwrap().encode();
        self.sequence += 1;
        record
    }

    /// The content of the last of the gateway's records.
    fn last(&mut self, mut records: &[u8]) -> (ContentType, Vec<u8>) {
        let mut last = None;
        while let [typ, _, _, high, low, rest @ ..] = records {
            let (payload, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            let mut payload = payload.to_vec();
            let record = InboundOpaqueMessage::new(ContentType::from(*typ), ProtocolVersion::TLSv1_2, &mut payload);
            let plain = self.decrypter.decrypt(record, self.received).unwrap();
            last = Some((plain.typ, plain.payload.to_vec()));
            (self.received, records) = (self.received + 1, rest);
        }
        last.expect("the gateway sent a record")
    }
}

/// What a server makes of records: the data it reads; whether it ends the connection, and whether with an alert.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    data: Vec<u8>,
    is_broken: bool,
    is_closed: bool,
}

/// A record that a client may send.
#[derive(Clone, Debug)]
enum Sent {
    Record(ContentType, Vec<u8>),
    /// Not encrypted.
    Plain(Vec<u8>),
    /// Encrypted, with a bit changed.
    Damaged(Vec<u8>),
}

fn records(forger: &mut Forger, sent: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    for one in sent {
        match one {
            Sent::Record(typ, payload) => out.extend(forger.record(*typ, payload)),
            Sent::Plain(bytes) => out.extend(bytes),
            Sent::Damaged(payload) => {
                let mut record = forger.record(ContentType::ApplicationData, payload);
                *record.last_mut().unwrap() ^= 1;
                out.extend(record);
            }
        }
    }
    out
}

/// What rustls' own connection makes of it.
fn by_rustls(configs: &Configs, sent: &[Sent]) -> Verdict {
    let mut server = ServerConnection::new(Arc::clone(&configs.server)).unwrap();
    let mut client = ClientConnection::new(Arc::clone(&configs.client), name()).unwrap();
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut &*bytes).unwrap();
        server.process_new_packets().unwrap();
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client.read_tls(&mut &*bytes).unwrap();
        client.process_new_packets().unwrap();
    }
    let received = records(&mut Forger::new(client, configs.suite), sent);
    let mut verdict = Verdict { data: Vec::new(), is_broken: false, is_closed: false };
    let mut rest = &*received;
    while !rest.is_empty() && !verdict.is_broken && !verdict.is_closed {
        server.read_tls(&mut rest).unwrap();
        match server.process_new_packets() {
            Ok(state) => verdict.is_closed = state.peer_has_closed(),
            Err(_) => verdict.is_broken = true,
        }
        let mut buffer = vec![0; 1 << 20];
        if let Ok(read) = server.reader().read(&mut buffer) {
            verdict.data.extend_from_slice(&buffer[..read]);
        }
    }
    verdict
}

/// A connection after its handshake: the gateway's side, and the client's with its socket.
async fn connected(configs: &Configs, at_once: usize) -> (TlsStream<Trickle>, ClientConnection, DuplexStream) {
    let (ours, mut theirs) = duplex(1 << 20);
    let mut client = ClientConnection::new(Arc::clone(&configs.client), name()).unwrap();
    let handshake = async {
        while client.is_handshaking() || client.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            theirs.write_all(&bytes).await.unwrap();
            if client.is_handshaking() {
                let mut buffer = vec![0; 64 << 10];
                let read = theirs.read(&mut buffer).await.unwrap();
                client.read_tls(&mut &buffer[..read]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    };
    let server = async {
        let mut stream = accept(Trickle(ours, at_once), configs).await;
        if configs.suite.tls13().is_none() {
            // The client waits for the end of the handshake, which is sent with the first bytes.
            stream.flush().await.unwrap();
        }
        stream
    };
    let (stream, ()) = tokio::join!(server, handshake);
    (stream, client, theirs)
}

/// What ours makes of it.
/// `at_once`: how many bytes arrive together. `room`: the size of the reader's buffer.
async fn by_ours(configs: &Configs, sent: &[Sent], at_once: usize, room: usize) -> Verdict {
    let (mut stream, client, mut theirs) = connected(configs, at_once).await;
    let received = records(&mut Forger::new(client, configs.suite), sent);
    let keep = tokio::spawn(async move {
        theirs.write_all(&received).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
    });
    let mut verdict = Verdict { data: Vec::new(), is_broken: false, is_closed: false };
    let mut buffer = vec![0; room];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => verdict.is_closed = true,
            Ok(read) => {
                verdict.data.extend_from_slice(&buffer[..read]);
                continue;
            }
            Err(error) => verdict.is_broken = error.kind() != io::ErrorKind::UnexpectedEof,
        }
        break;
    }
    if verdict.is_broken {
        assert!(stream.write_all(b"x").await.is_err(), "nothing follows an alert");
    }
    drop(stream);
    keep.await.unwrap();
    verdict
}

fn sent() -> impl Strategy<Value = Sent> {
    use ContentType::{Alert, ApplicationData, ChangeCipherSpec, Handshake};
    let record = |typ: ContentType, payloads: Vec<Vec<u8>>| {
        prop::sample::select(payloads).prop_map(move |payload| Sent::Record(typ, payload))
    };
    let update = |request: u8| vec![24, 0, 0, 1, request];
    prop_oneof![
        8 => (0..3000_usize).prop_map(|len| Sent::Record(ApplicationData, bytes(len))),
        2 => Just(Sent::Record(ApplicationData, Vec::new())),
        1 => Just(Sent::Record(ApplicationData, bytes(1 << 14))),
        1 => Just(Sent::Record(ApplicationData, bytes((1 << 14) + 1))),
        2 => record(Alert, vec![vec![1, 0], vec![1, 90], vec![2, 0], vec![2, 40], vec![1, 41], vec![3, 0], vec![1], vec![], vec![1, 0, 0]]),
        2 => record(
            Handshake,
            vec![vec![24, 0, 0, 1, 2], vec![24, 0, 0, 2, 0, 0], [update(0), update(0)].concat(), vec![24, 0], vec![1, 0, 0, 0], vec![]],
        ),
        1 => record(ChangeCipherSpec, vec![vec![1], vec![]]),
        1 => Just(Sent::Record(ContentType::from(99), vec![1])),
        // The type of what is encrypted is that of the last byte that is not 0 [RFC 8446, 5.4].
        2 => (0..3000_usize, 0..300_usize).prop_map(|(len, padding)| {
            Sent::Record(ContentType::from(0), [bytes(len), vec![23], vec![0; padding]].concat())
        }),
        1 => prop::sample::select(vec![0, 1, (1 << 14) - 1, 1 << 14]).prop_map(|padding| {
            Sent::Record(ContentType::from(0), vec![0; padding])
        }),
        1 => prop::sample::select(vec![
            vec![20, 3, 3, 0, 1, 1], vec![21, 3, 3, 0, 2, 1, 0], vec![21, 3, 3, 0, 2, 2, 40], vec![23, 3, 3, 0, 0],
            vec![23, 3, 3, 0xff, 0xff], vec![22, 3, 3, 0, 4, 1, 0, 0, 0], vec![0, 3, 3, 0, 1, 1], vec![23, 2, 0, 0, 1, 1],
        ]).prop_map(Sent::Plain),
        1 => Just(Sent::Damaged(bytes(10))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// rustls itself is the judge: what it reads is read, and where it ends a connection, it ends. Ours is stricter with what no
    /// client sends behind the handshake: parts of messages, and TLS 1.2's requests for a renegotiation.
    #[test]
    fn records_mean_what_they_mean_to_rustls(sent in prop::collection::vec(sent(), 1..8), at_once in 1..5000_usize, room in 1..20_000_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for configs in Configs::of_each_version() {
            let is_stricter = |sent: &Sent| match sent {
                Sent::Record(ContentType::Handshake, message) => {
                    configs.suite.tls13().is_none() || message.len() < 4 || message.len() < 4 + usize::from(message[3])
                }
                _ => false,
            };
            let (ours, theirs) = (runtime.block_on(by_ours(&configs, &sent, at_once, room)), by_rustls(&configs, &sent));
            if sent.iter().any(is_stricter) {
                prop_assert!(theirs.data.starts_with(&ours.data));
                prop_assert!(ours.is_broken || ours == theirs, "{:?}: {ours:?} {theirs:?}", configs.suite);
            } else {
                prop_assert_eq!(ours, theirs, "{:?}", configs.suite);
            }
        }
    }
}

#[tokio::test]
async fn what_costs_the_gateway_more_than_the_client_is_limited() {
    let empty = || Sent::Record(ContentType::ApplicationData, Vec::new());
    for configs in Configs::of_each_version() {
        for count in [32, 33] {
            let sent: Vec<_> = (0..count).map(|_| empty()).collect();
            let ours = by_ours(&configs, &sent, 1000, 5000).await;
            assert_eq!((ours.is_broken, &ours), (count > 32, &by_rustls(&configs, &sent)));
        }
        let warnings = vec![Sent::Record(ContentType::Alert, vec![1, 90]); 5];
        let ours = by_ours(&configs, &warnings, 1000, 5000).await;
        assert_eq!((ours.is_broken, &ours), (true, &by_rustls(&configs, &warnings)));
    }
}

#[tokio::test]
async fn one_read_decrypts_no_more_than_its_share_of_small_records() {
    for configs in Configs::of_each_version() {
        let (mut stream, client, mut theirs) = connected(&configs, 1 << 20).await;
        let sent = vec![Sent::Record(ContentType::ApplicationData, vec![b'x']); 2500];
        theirs.write_all(&records(&mut Forger::new(client, configs.suite), &sent)).await.unwrap();
        let (mut buffer, mut read) = (vec![0; 64 << 10], Vec::new());
        while read.iter().sum::<usize>() < sent.len() {
            read.push(stream.read(&mut buffer).await.unwrap());
        }
        assert_eq!(read[0], 1024, "{:?}: {read:?}", configs.suite);
    }
}

/// An alert has the level that is prescribed for it [RFC 5246, 7.2; RFC 8446, 6]: the gateway ends a connection whose client asks
/// for a renegotiation, but tells it so by a warning.
#[tokio::test]
async fn alerts_have_their_level() {
    const NO_RENEGOTIATION: [u8; 2] = [1, 100];
    const UNEXPECTED_MESSAGE: [u8; 2] = [2, 10];
    const BAD_RECORD_MAC: [u8; 2] = [2, 20];
    for configs in Configs::of_each_version() {
        let client_hello = Sent::Record(ContentType::Handshake, vec![1, 0, 0, 0]);
        let refusal = if configs.suite.tls13().is_some() { UNEXPECTED_MESSAGE } else { NO_RENEGOTIATION };
        for (sent, alert) in [
            (client_hello, refusal),
            (Sent::Record(ContentType::ChangeCipherSpec, vec![1]), UNEXPECTED_MESSAGE),
            (Sent::Damaged(bytes(10)), BAD_RECORD_MAC),
        ] {
            let (mut stream, client, mut theirs) = connected(&configs, 1000).await;
            let mut forger = Forger::new(client, configs.suite);
            theirs.write_all(&records(&mut forger, &[sent])).await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
            drop(stream);
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).await.unwrap();
            assert_eq!(forger.last(&answer), (ContentType::Alert, alert.to_vec()), "{:?}", configs.suite);
        }
        let (mut stream, client, mut theirs) = connected(&configs, 1000).await;
        stream.shutdown().await.unwrap();
        drop(stream);
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        let close_notify = (ContentType::Alert, vec![1, 0]);
        assert_eq!(Forger::new(client, configs.suite).last(&answer), close_notify, "{:?}", configs.suite);
    }
}
