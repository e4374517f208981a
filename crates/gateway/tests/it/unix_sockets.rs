//! Unix sockets, of listeners and of brokers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use portcullis_gateway::{Gateway, Inherited, ProcessState, Runtime};
use portcullis_testkit::{Client, Pki, TestGateway, connack, connect, connect_v5, soon, tls_config};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};

use crate::relay_threads::moved;

/// A gateway between two Unix sockets.
struct Fixture {
    dir: TempDir,
    broker: UnixListener,
    gateway: TestGateway,
}

/// `keys` of the listener, `options` behind its path, `upstream` are further keys of the upstream.
async fn start(options: &str, keys: &str, upstream: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let broker = UnixListener::bind(dir.path().join("broker.sock")).unwrap();
    let gateway = TestGateway::start(&configuration(dir.path(), options, keys, upstream)).await;
    Fixture { dir, broker, gateway }
}

fn configuration(dir: &Path, options: &str, keys: &str, upstream: &str) -> String {
    let (mqtt, broker) = (dir.join("mqtt.sock"), dir.join("broker.sock"));
    let listener = TestGateway::LISTENER
        .replace("\"127.0.0.1:0\"", &format!("[\"unix:{}{options}\", \"127.0.0.1:0\"]", mqtt.display()));
    let listener = if keys.contains("[listener.tls]") { listener } else { listener.replace("\"tls\"", "\"tcp\"") };
    format!(
        "{listener}{keys}\n[[upstream]]\nname = \"brokers\"\nservers = [\"unix:{}\"]\nhealth = {{ mode = \"off\" }}\n{upstream}\n\
         [access_log]\nformat = \"json\"\n",
        broker.display()
    )
}

impl Fixture {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("mqtt.sock")).await.unwrap()
    }

    async fn accept(&self) -> Client {
        Client::over(soon("a connection to the broker", self.broker.accept()).await.unwrap().0)
    }

    async fn session(&self, mut client: Client, packet: &[u8]) -> (Client, Client) {
        client.write(packet).await;
        let mut connection = self.accept().await;
        connection.expect(packet).await;
        let version = packet[8];
        connection.write(&connack(version)).await;
        client.expect(&connack(version)).await;
        (client, connection)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_between_unix_sockets_goes_on_on_a_thread_that_relays() {
    let fixture = start("?mode=0600", "[listener.admit]\nrequire = ['conn.remote_addr == \"unix:\"']", "").await;
    let mode = std::fs::metadata(fixture.dir.path().join("mqtt.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (mut client, mut broker) = fixture.session(Client::over(fixture.connect().await), &connect("a")).await;
    moved(&fixture.gateway, 1).await;
    client.write(b"\xc0\x00").await;
    broker.expect(b"\xc0\x00").await;
    broker.write(b"\xd0\x00").await;
    client.expect(b"\xd0\x00").await;
    client.write(b"\xe0\x00").await;
    client.shutdown().await;
    broker.expect(b"\xe0\x00").await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(fixture.gateway.field(1, "remote_addr").await, "unix:");
    assert_eq!(fixture.gateway.field(1, "reason").await, "ok");
    let server = fixture.gateway.field(1, "upstream_addr").await;
    assert!(server.starts_with("unix:/") && server.ends_with("broker.sock"), "{server}");
}

#[tokio::test]
async fn tls_and_address_rules_apply_to_unix_sockets() {
    let pki = Pki::new();
    let fixture = start("", &pki.listener_tls(), "").await;
    let config = tls_config(&pki, Some("thing001"), rustls::ALL_VERSIONS);
    let client = Client::try_tls_over(fixture.connect().await, config, "localhost").await.unwrap();
    drop(fixture.session(client, &connect("a")).await);
    assert!(fixture.gateway.field(1, "cert_subject").await.contains("thing001"));
    for (keys, allowed) in [
        ("allow = [\"127.0.0.1\"]", false),
        ("deny = [\"unix\"]", false),
        ("allow = [\"unix\"]", true),
        ("deny = [\"0.0.0.0/0\"]", true),
    ] {
        let fixture = start("", keys, "").await;
        let mut client = Client::over(fixture.connect().await);
        if allowed {
            fixture.session(client, &connect("a")).await;
        } else {
            assert!(client.read_to_end().await.is_empty());
            assert_eq!(fixture.gateway.field(1, "reason").await, "address_denied");
        }
    }
}

#[tokio::test]
async fn one_client_of_a_unix_socket_bans_and_limits_no_other() {
    let keys = "[[listener.ban]]\non = [\"connect\", \"failure\"]\ncount = 1\n[listener.limits]\nconnections_per_address = 1\n\
                connect_rate_per_address = \"1/m\"\n[listener.admit]\nrequire = ['mqtt.client_id != \"bad\"']";
    let fixture = start("", keys, "").await;
    for _ in 0..4 {
        let mut bad = Client::over(fixture.connect().await);
        bad.write(&connect("bad")).await;
        assert_eq!(bad.read_to_end().await, b"\x20\x02\x00\x05");
    }
    let first = fixture.session(Client::over(fixture.connect().await), &connect("a")).await;
    let second = fixture.session(Client::over(fixture.connect().await), &connect("b")).await;
    drop((first, second));
}

#[tokio::test]
async fn the_header_of_the_proxy_protocol_works_both_ways() {
    let keys = "proxy_protocol = { from = [\"unix\"] }";
    let fixture = start("", keys, "proxy_protocol = \"v1\"").await;
    let mut client = Client::over(fixture.connect().await);
    client.write(b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 8883\r\n").await;
    client.write(&connect("a")).await;
    fixture.accept().await.expect(b"PROXY TCP4 203.0.113.7 0.0.0.0 4711 0\r\n\x10").await;
    drop(client);
    assert_eq!(fixture.gateway.field(1, "remote_addr").await, "203.0.113.7");
    assert_eq!(fixture.gateway.field(1, "peer_addr").await, "unix:");
    // A client of the machine's own.
    let mut client = Client::over(fixture.connect().await);
    client.write(b"PROXY UNKNOWN\r\n").await;
    client.write(&connect("a")).await;
    fixture.accept().await.expect(b"PROXY UNKNOWN\r\n\x10").await;
}

#[tokio::test]
async fn reloads_keep_the_socket_change_its_mode_and_remove_it() {
    let fixture = start("?mode=0600", "", "").await;
    let path = fixture.dir.path().join("mqtt.sock");
    let (mut client, _broker) = fixture.session(Client::over(fixture.connect().await), &connect_v5("a")).await;
    fixture.gateway.write(&configuration(fixture.dir.path(), "?mode=0666", "", ""));
    fixture.gateway.gateway.reload().await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    client.write(b"\xc0\x00").await;
    let without = configuration(fixture.dir.path(), "", "deny = [\"unix\"]", "");
    fixture.gateway.write(&without.replace(&format!("\"unix:{}\", ", path.display()), ""));
    fixture.gateway.gateway.reload().await.unwrap();
    assert!(!path.exists());
    // Not authorized.
    client.expect(b"\xe0\x02\x87\x00").await;
    assert_eq!(fixture.gateway.field(1, "reason").await, "session_address_denied");
}

#[tokio::test]
async fn a_live_socket_or_another_file_is_not_replaced() {
    let fixture = start("", "", "").await;
    let start = async |configuration: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, configuration).unwrap();
        let state = ProcessState::new();
        let loaded = Runtime::load(&path, &state).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        Gateway::start(&path, loaded.runtime, state, Inherited::default()).await.err().map(|error| error.to_string())
    };
    let again = configuration(fixture.dir.path(), "", "", "").replace("format", "path = \"-\"\nformat");
    let error = start(&again).await.unwrap();
    assert!(error.contains("cannot listen on unix:/"), "{error}");
    drop(fixture.session(Client::over(fixture.connect().await), &connect("a")).await);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mqtt.sock"), "precious").unwrap();
    let other = configuration(dir.path(), "", "", "").replace("format", "path = \"-\"\nformat");
    assert!(start(&other).await.is_some());
    assert_eq!(std::fs::read_to_string(dir.path().join("mqtt.sock")).unwrap(), "precious");
}

#[test]
fn mistakes_are_explained() {
    let problems = |bind: &str, rest: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let listener = TestGateway::LISTENER.replace("\"127.0.0.1:0\"", bind).replace("\"tls\"", "\"tcp\"");
        let upstream = if rest.is_empty() { "servers = [\"127.0.0.1:1\"]" } else { rest };
        std::fs::write(&path, format!("{listener}[[upstream]]\nname = \"brokers\"\n{upstream}\n")).unwrap();
        Runtime::load(&path, &ProcessState::new()).map_or_else(|problems| problems.render(false), |_| "none".to_owned())
    };
    for (bind, expected) in [
        ("\"/run/x.sock\"", "write \"unix:/run/x.sock\""),
        ("\"unix:\"", "the path of the Unix socket is missing"),
        ("\"unix:/run/\"", "the path of the Unix socket is missing"),
        ("\"unix:@mqtt\"", "an abstract socket"),
        ("\"unix:///run/x.sock\"", "begins with two slashes"),
        ("\"unix:/run/x.sock?mode=0666\"", "none"),
        ("\"unix:/run/x.sock?mode=888\"", "`888` is not the mode of a file"),
        ("\"unix:/run/x.sock?mode=\"", "is not the mode of a file"),
        ("\"unix:/run/x.sock?mode=0\"", "is not the mode of a file"),
        ("\"unix:/run/x.sock?mod=0660\"", "did you mean `mode`?"),
        ("\"unix:/run/x.sock?user=mqtt\"", "there are mode, owner and group"),
        ("\"unix:/run/x.sock?owner=nobody-of-this-name\"", "the system has no user `nobody-of-this-name`"),
        ("\"unix:/run/x.sock?group=4294967295\"", "is no group"),
        ("[\"unix:/run/x.sock\", \"unix:/run/x.sock?mode=0600\"]", "already bound by a listener"),
    ] {
        let found = problems(bind, "");
        assert!(found.contains(expected), "{bind}: {found}");
    }
    let long = format!("\"unix:/{}\"", "x".repeat(107));
    assert!(problems(&long, "").contains("the path of the Unix socket has 108 bytes"));
    for (servers, expected) in [
        ("servers = [\"unix:\"]", "the path of the Unix socket is missing"),
        ("servers = [\"unix:/run/x.sock?mode=0660\"]", "a Unix socket to connect to has no options"),
        ("servers = [\"unix:/run/x.sock\"]\nsource_addresses = [\"127.0.0.1\"]", "`source_addresses` has no effect"),
        ("servers = [\"unix:/run/x.sock\"]\n[upstream.tls]", "TLS to a Unix socket requires `server_name`"),
        ("servers = [\"embedded\"]\nproxy_protocol = \"v2\"", "does not expect the PROXY protocol"),
        ("servers = [\"127.0.0.1:1\"]\nproxy_protocol = \"on\"", "expected one of: v1, v2, v2-ssl"),
    ] {
        let found = problems("\"127.0.0.1:0\"", servers);
        assert!(found.contains(expected), "{servers}: {found}");
    }
}
