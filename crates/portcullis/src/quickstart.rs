//! `portcullis quickstart`: sets up a PKI, a configuration, an embedded broker and the gateway, and proves over sockets
//! that the gateway accepts the right device and rejects the wrong ones.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use portcullis_gateway::{Gateway, Inherited, Loaded, ProcessState, Runtime};
use portcullis_pki::{Authority, Init, Purpose, Request};
use portcullis_wire::{Connack, Connect, Properties, Version};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cli::QuickstartArguments;
use crate::output::say;
use crate::report::Failure;

const DEVICES: [&str; 2] = ["thing001", "thing002"];
const SERVER: &str = "localhost";
const DAYS: u32 = 365;
/// The deadline of each step of the proof.
const STEP: Duration = Duration::from_secs(10);
/// Return code "not authorized" [MQTT-3.2.2.3 (3.1.1)].
const NOT_AUTHORIZED: u8 = 5;
const TOPIC: &[u8] = b"quickstart/hello";
#[expect(clippy::cast_possible_truncation, reason = "sixteen fit in a byte")]
const TOPIC_LEN: u8 = TOPIC.len() as u8;

pub(crate) fn quickstart(arguments: &QuickstartArguments) -> Result<(), Failure> {
    let dir = &arguments.dir;
    let authority = prepare(dir, arguments.bind)?;
    let config = dir.join("portcullis.toml");
    let state = ProcessState::new();
    let Loaded { runtime, .. } =
        Runtime::load(&config, &state).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    let _logging = crate::logging::start(&runtime.process, &state.observer)?;
    crate::run::tokio_runtime(runtime.process.threads())?.block_on(async {
        let gateway =
            Gateway::start(&config, runtime, Arc::clone(&state), Inherited::default()).await.map_err(|error| {
                let hint = format!("set another `bind` in `{}`", config.display());
                match crate::run::start_failure(error) {
                    Failure::Error(error, None) => Failure::Error(error, Some(hint)),
                    Failure::Error(error, Some(cause)) => Failure::Error(error, Some(format!("{cause}; {hint}"))),
                    other => other,
                }
            })?;
        let address =
            gateway.addresses().first().map(|(_, address)| *address).context("the configuration has no listener")?;
        say!("gateway: {address}, in front of an embedded broker");
        prove(address, &authority).await.map_err(|error| {
            let hint = format!("if you changed `{}`, undo the change or pass another --dir", config.display());
            Failure::hint(error, hint)
        })?;
        if !arguments.check {
            print_commands(address, &authority);
            tokio::signal::ctrl_c().await?;
        }
        gateway.stop().await;
        state.observer.access_log.store(None);
        Ok(())
    })
}

/// Creates the PKI and the configuration, unless they exist.
fn prepare(dir: &Path, bind: SocketAddr) -> Result<Authority, Failure> {
    let pki = dir.join("pki");
    let authority = if pki.join("root.pem").exists() {
        say!("PKI: {} (existing)", pki.display());
        Authority::open(&pki)?
    } else {
        say!("PKI: {} (new)", pki.display());
        Authority::init(&pki, &Init { name: "Portcullis quickstart".to_owned(), ..Init::default() })?
    };
    let names = [(SERVER, Purpose::Server), (DEVICES[0], Purpose::Device), (DEVICES[1], Purpose::Device)];
    for (name, purpose) in names {
        if !authority.chain_of(name).exists() {
            let names = match purpose {
                Purpose::Server => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
                _ => Vec::new(),
            };
            authority.issue(&Request { name: name.to_owned(), organization: None, purpose, names, days: DAYS })?;
        }
    }
    let config = dir.join("portcullis.toml");
    match fs::OpenOptions::new().write(true).create_new(true).open(&config) {
        Ok(mut file) => {
            io::Write::write_all(&mut file, CONFIGURATION.replace("@BIND@", &bind.to_string()).as_bytes())?;
            say!("configuration: {} (new)", config.display());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            say!("configuration: {} (existing)", config.display());
        }
        Err(error) => {
            return Err(anyhow::Error::new(error).context(format!("cannot write `{}`", config.display())).into());
        }
    }
    Ok(authority)
}

const CONFIGURATION: &str = r#"# Written by `portcullis quickstart`. After a change, run `portcullis check -c portcullis.toml`.

# Where devices connect: MQTT over TLS.
[[listener]]
name = "devices"
bind = "@BIND@"
upstream = "brokers"

[listener.tls]
certificate = "pki/issued/localhost.pem"     # chain, leaf first
private_key = "pki/issued/localhost.key"
client_ca = "pki/root.pem"                   # devices need a certificate that this CA issued

# Which clients are admitted: the common name of the certificate must equal the client ID.
[listener.admit]
require = ['mqtt.client_id == cert.subject.cn']

# What the broker receives: the certificate's subject as the user name.
[listener.connect]
username = 'cert.subject.dn'

# The brokers that the gateway forwards to. "embedded" is a built-in broker for trials, which keeps everything in memory.
# Replace it with your own: servers = ["10.0.0.113:1883", "10.0.0.114:1883"].
[[upstream]]
name = "brokers"
servers = ["embedded"]

# One line per connection, written when the connection ends.
[access_log]
path = "access.log"

[runtime]
log = "warn"
"#;

/// Connects as the right device, as a wrong identity and without a certificate.
async fn prove(address: SocketAddr, authority: &Authority) -> anyhow::Result<()> {
    let device = client(authority, Some(DEVICES[0]))?;
    let anonymous = client(authority, None)?;
    step(
        "thing001 connects over mutual TLS, publishes a message and receives it back",
        round_trip(address, device.clone()),
    )
    .await?;
    step("the client ID BADTHING with the certificate of thing001 is rejected", wrong_identity(address, device))
        .await?;
    step("a client without a certificate is rejected", no_certificate(address, anonymous)).await?;
    Ok(())
}

async fn step(what: &str, proof: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let result = tokio::time::timeout(STEP, proof).await.unwrap_or_else(|_| bail!("no result within {STEP:?}"));
    result.with_context(|| format!("not proved: {what}"))?;
    say!("proved: {what}");
    Ok(())
}

async fn round_trip(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<()> {
    let mut stream = connect(address, config).await?;
    ensure!(connack(&mut stream, DEVICES[0]).await? == 0, "CONNECT was rejected");
    let topic = |bytes: &mut Vec<u8>| {
        bytes.extend([0, TOPIC_LEN]);
        bytes.extend(TOPIC);
    };
    // SUBSCRIBE, packet identifier 1, QoS 0 [MQTT-3.8]; the response is SUBACK [MQTT-3.9].
    let mut subscribe = vec![0x82, TOPIC_LEN + 5, 0, 1];
    topic(&mut subscribe);
    subscribe.push(0);
    stream.write_all(&subscribe).await?;
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).await?;
    ensure!(suback == [0x90, 3, 0, 1, 0], "the broker rejected the subscription");
    // PUBLISH, QoS 0 [MQTT-3.3]: the broker sends the same bytes back.
    let mut publish = vec![0x30, TOPIC_LEN + 7];
    topic(&mut publish);
    publish.extend(b"hello");
    stream.write_all(&publish).await?;
    let mut received = vec![0; publish.len()];
    stream.read_exact(&mut received).await?;
    ensure!(received == publish, "the received message differs from the published one");
    Ok(stream.shutdown().await?)
}

async fn wrong_identity(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<()> {
    let code = connack(&mut connect(address, config).await?, "BADTHING").await?;
    ensure!(code == NOT_AUTHORIZED, "CONNACK has the return code {code}, expected {NOT_AUTHORIZED}");
    Ok(())
}

async fn no_certificate(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<()> {
    // In TLS 1.3 the client sees the rejection with its first read, not in its handshake.
    let attempt = async { connack(&mut connect(address, config).await?, DEVICES[0]).await };
    ensure!(attempt.await.is_err(), "the gateway answered its CONNECT");
    Ok(())
}

async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    Ok(TlsConnector::from(config).connect(ServerName::try_from(SERVER)?, socket).await?)
}

/// Sends an MQTT 3.1.1 CONNECT and returns the return code of the CONNACK.
async fn connack(stream: &mut TlsStream<TcpStream>, client_id: &str) -> anyhow::Result<u8> {
    let connect = Connect {
        version: Version::V311,
        clean_start: true,
        keep_alive: 60,
        properties: Properties::default(),
        client_id,
        will: None,
        username: None,
        password: None,
    };
    let mut packet = Vec::new();
    connect.encode(&mut packet)?;
    stream.write_all(&packet).await?;
    let mut response = [0; 4];
    stream.read_exact(&mut response).await?;
    let (connack, _) =
        Connack::decode(&response, Version::V311, response.len())?.context("the response is not a CONNACK")?;
    Ok(connack.code)
}

fn client(authority: &Authority, device: Option<&str>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.root())?)?;
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Ok(Arc::new(match device {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = CertificateDer::pem_file_iter(authority.chain_of(name))?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(authority.key_of(name))?)?
        }
    }))
}

fn print_commands(address: SocketAddr, authority: &Authority) {
    let options = format!(
        "-h localhost -p {} --cafile {} --cert {} --key {} -i {}",
        address.port(),
        authority.root().display(),
        authority.chain_of(DEVICES[0]).display(),
        authority.key_of(DEVICES[0]).display(),
        DEVICES[0],
    );
    say!("\nTry it from another terminal (mosquitto-clients):");
    say!("  mosquitto_sub {} -t 'test/#' -v", options.replace(DEVICES[0], DEVICES[1]));
    say!("  mosquitto_pub {options} -t test/1 -m hello");
    say!("This client ID does not match the certificate, so the gateway rejects it:");
    say!("  mosquitto_pub {} -t test/1 -m hello", options.replace("-i thing001", "-i BADTHING"));
    say!("\nPress Ctrl-C to stop.");
}
