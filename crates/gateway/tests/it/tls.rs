//! TLS with devices and brokers: which handshakes are accepted, and the reasons for rejecting the others.

use std::process::Command;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connack, connect, connect_as, tls_config};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

async fn gateway(broker: &Broker, tls: &str) -> TestGateway {
    TestGateway::start(&format!("{}{tls}{}", TestGateway::LISTENER, broker.upstream())).await
}

#[tokio::test]
async fn both_versions_and_nothing_else() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for (versions, log) in [(&rustls::version::TLS12, "TLSv1.2"), (&rustls::version::TLS13, "TLSv1.3")] {
        let rest = format!("{}[listener.admit]\nrequire = ['tls.version == \"{log}\"']\n", pki.listener_tls());
        let gateway = gateway(&broker, &rest).await;
        let config = tls_config(&pki, Some("thing001"), &[versions]);
        let mut client = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
        client.write(&connect("thing001")).await;
        broker.accept().await.expect(&connect("thing001")).await;
    }
    let only_13 = format!("{}versions = [\"1.3\"]\n", pki.listener_tls());
    let gateway = gateway(&broker, &only_13).await;
    let config = tls_config(&pki, Some("thing001"), &[&rustls::version::TLS12]);
    assert!(Client::try_tls(gateway.address(), config, "localhost").await.is_err());
    assert_eq!(gateway.outcome().await, "500 tls_version");
}

#[tokio::test]
async fn post_quantum_key_exchange_is_agreed_on() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    let mut config = tls_config(&pki, Some("thing001"), rustls::ALL_VERSIONS);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    let roots = rustls::RootCertStore { roots: webpki_roots(&pki) };
    config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(config.client_auth_cert_resolver.clone());
    let mut client = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
}

fn webpki_roots(pki: &Pki) -> Vec<rustls::pki_types::TrustAnchor<'static>> {
    use rustls::pki_types::pem::PemObject;
    let root = rustls::pki_types::CertificateDer::from_pem_file(pki.root()).unwrap();
    vec![webpki::anchor_from_trusted_cert(&root).unwrap().to_owned()]
}

#[tokio::test]
async fn no_certificate_where_one_is_required() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for versions in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let gateway = gateway(&broker, &pki.listener_tls()).await;
        let config = tls_config(&pki, None, &[versions]);
        if let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await {
            let _ = client.try_write(&connect("thing001")).await;
            assert!(client.try_read(4).await.is_err(), "the alert arrives with the first read");
        }
        assert_eq!(gateway.outcome().await, "500 no_certificate");
    }
    assert!(broker.is_left_alone().await);
}

/// A root and a chain of intermediates for one test.
struct Chain {
    dir: tempfile::TempDir,
    root: String,
    issuers: Vec<(CertificateParams, KeyPair, String)>,
}

impl Chain {
    fn new(intermediates: usize) -> Self {
        Self::named("root", intermediates)
    }

    fn named(root: &str, intermediates: usize) -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            (params, KeyPair::generate().unwrap())
        };
        let (params, key) = authority(root);
        let root = params.self_signed(&key).unwrap().pem();
        let mut issuers = vec![(params, key, String::new())];
        for n in 0..intermediates {
            let (params, key) = authority(&format!("{root} intermediate {n}"));
            let (above, above_key, chain) = issuers.last().unwrap();
            let pem = params.signed_by(&key, &Issuer::from_params(above, above_key)).unwrap().pem();
            let chain = pem + chain;
            issuers.push((params, key, chain));
        }
        Self { dir: tempfile::tempdir().unwrap(), root, issuers }
    }

    /// Writes root, chain and key of a leaf; returns `client_ca`.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> rustls::ClientConfig {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "thing001");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let (above, above_key, chain) = self.issuers.last().unwrap();
        let leaf = params.signed_by(&key, &Issuer::from_params(above, above_key)).unwrap().pem();
        self.client(&(leaf + chain), &key.serialize_pem())
    }

    fn client(&self, chain: &str, key: &str) -> rustls::ClientConfig {
        use rustls::pki_types::pem::PemObject;
        let chain = rustls::pki_types::CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        self.config_builder().with_client_auth_cert(chain, key).unwrap()
    }

    fn config_builder(&self) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        use rustls::pki_types::pem::PemObject;
        portcullis_gateway::crypto::install_crypto_provider();
        let mut roots = rustls::RootCertStore::empty();
        let server = rustls::pki_types::CertificateDer::from_pem_file(self.dir.path().join("server-root.pem")).unwrap();
        roots.add(server).unwrap();
        rustls::ClientConfig::builder().with_root_certificates(roots)
    }

    /// A `[listener.tls]` that trusts the root.
    fn listener(&self, pki: &Pki) -> String {
        std::fs::copy(pki.root(), self.dir.path().join("server-root.pem")).unwrap();
        std::fs::write(self.dir.path().join("ca.pem"), &self.root).unwrap();
        format!("{}client_ca = {:?}\n", pki.listener_tls_without_ca(), self.dir.path().join("ca.pem"))
    }
}

async fn refusal(intermediates: usize, rest: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
    let (pki, broker, chain) = (Pki::new(), Broker::start().await, Chain::new(intermediates));
    let gateway = gateway(&broker, &(chain.listener(&pki) + rest)).await;
    let config = chain.leaf(change);
    if let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await {
        let _ = client.try_write(&connect("thing001")).await;
        if !broker.is_left_alone().await {
            return "served".to_owned();
        }
    }
    gateway.outcome().await
}

#[tokio::test]
async fn each_failure_has_its_own_reason() {
    let day = |n: i64| time::OffsetDateTime::now_utc() + time::Duration::days(n);
    assert_eq!(refusal(1, "", |_| ()).await, "served");
    assert_eq!(refusal(1, "", |leaf| leaf.not_after = day(-1)).await, "500 certificate_expired");
    assert_eq!(refusal(1, "", |leaf| leaf.not_before = day(1)).await, "500 certificate_not_yet_valid");
    let server_only = |leaf: &mut CertificateParams| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert_eq!(refusal(1, "", server_only).await, "500 certificate_purpose");
    assert_eq!(refusal(2, "", |_| ()).await, "served");
    assert_eq!(refusal(3, "", |_| ()).await, "500 certificate_chain_too_long");
    assert_eq!(refusal(3, "verify_depth = 3\n", |_| ()).await, "served");
    assert_eq!(refusal(0, "verify_depth = 0\n", |_| ()).await, "served");
    assert_eq!(refusal(1, "verify_depth = 0\n", |_| ()).await, "500 certificate_chain_too_long");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (pki, broker, chain, other) = (Pki::new(), Broker::start().await, Chain::new(1), Chain::named("other", 1));
    let gateway = gateway(&broker, &chain.listener(&pki)).await;
    other.listener(&pki);
    let config = other.leaf(|_| ());
    if let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await {
        let _ = client.try_write(&connect("thing001")).await;
        assert!(client.try_read(4).await.is_err());
    }
    assert_eq!(gateway.outcome().await, "500 unknown_ca");
}

#[tokio::test]
async fn an_x509_version_1_certificate_has_its_own_reason() {
    let (pki, broker, chain) = (Pki::new(), Broker::start().await, Chain::new(0));
    let gateway = gateway(&broker, &chain.listener(&pki)).await;
    let at = |name: &str| chain.dir.path().join(name);
    std::fs::write(at("root.key"), chain.issuers[0].1.serialize_pem()).unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(chain.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "v1.key"];
    openssl(&[&["req", "-new", "-subj", "/CN=thing001", "-out", "v1.csr"], &key[..]].concat());
    openssl(&[
        "x509",
        "-req",
        "-in",
        "v1.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "root.key",
        "-CAcreateserial",
        "-out",
        "v1.pem",
    ]);
    // rustls does not offer it.
    let address = gateway.address().to_string();
    let dir = chain.dir.path().to_owned();
    let client = tokio::task::spawn_blocking(move || {
        let arguments = ["s_client", "-connect", &address, "-cert", "v1.pem", "-key", "v1.key"];
        Command::new("openssl").args(arguments).current_dir(dir).stdin(std::process::Stdio::null()).output().unwrap()
    });
    client.await.unwrap();
    assert_eq!(gateway.outcome().await, "500 certificate_version");
}

/// A self-signed server certificate and its key, in files.
pub(crate) fn server_pair(
    dir: &std::path::Path,
    name: &str,
    algorithm: &'static rcgen::SignatureAlgorithm,
) -> (String, Vec<u8>) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (chain, private) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&chain, certificate.pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    (format!("{{ certificate = {chain:?}, private_key = {private:?} }}"), certificate.der().to_vec())
}

#[tokio::test]
async fn of_two_certificates_for_a_name_the_client_gets_one_that_it_can_verify() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().unwrap());
    let (rsa, rsa_der) = server_pair(dir.path(), "rsa", &rcgen::PKCS_RSA_SHA256);
    let (ec, ec_der) = server_pair(dir.path(), "ec", &rcgen::PKCS_ECDSA_P256_SHA256);
    for (order, preferred) in [(format!("[{ec}, {rsa}]"), &ec_der), (format!("[{rsa}, {ec}]"), &rsa_der)] {
        let gateway = gateway(&broker, &format!("[listener.tls]\ncertificate = {order}\n")).await;
        let port = gateway.address().port();
        let served = async |options: &[&str]| {
            let mut command = tokio::process::Command::new("openssl");
            command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-showcerts"]).args(options);
            let output = command.stdin(std::process::Stdio::null()).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let pem = text.find("-----BEGIN CERTIFICATE").map(|start| text[start..].to_owned());
            pem.map(|pem| pem::parse(pem).unwrap().into_contents())
        };
        for name in [&["-servername", "localhost"][..], &["-noservername"], &["-servername", "other.example"]] {
            let with = async |options: &[&str]| served(&[name, options].concat()).await;
            assert_eq!(with(&[]).await.as_ref(), Some(preferred), "{name:?}");
            assert_eq!(with(&["-sigalgs", "ECDSA+SHA256"]).await.as_ref(), Some(&ec_der), "{name:?}");
            assert_eq!(with(&["-sigalgs", "RSA-PSS+SHA256"]).await.as_ref(), Some(&rsa_der), "{name:?}");
            let old = ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"];
            assert_eq!(with(&old).await.as_ref(), Some(&rsa_der), "{name:?}");
            let old = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"];
            assert_eq!(with(&old).await.as_ref(), Some(&ec_der), "{name:?}");
        }
    }
}

#[tokio::test]
async fn a_server_name_that_is_none_is_named() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for name in ["localhost:8883", "gw-", "[::1]", "a..b"] {
        let gateway = gateway(&broker, &pki.listener_tls_without_ca()).await;
        let mut command = tokio::process::Command::new("openssl");
        command.args(["s_client", "-connect", &gateway.address().to_string(), "-servername", name]);
        let output = command.stdin(std::process::Stdio::null()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("alert"), "{name}: {text}");
        assert_eq!(gateway.outcome().await, "500 invalid_server_name", "{name}");
    }
}

#[tokio::test]
async fn sni_chooses_the_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    pki.server("a", &["a.example", "*.wild.example"]);
    let pair = |name| format!("{{ certificate = {:?}, private_key = {:?} }}", pki.chain(name), pki.key(name));
    let tls = format!("[listener.tls]\ncertificate = [{}, {}]\n", pair("localhost"), pair("a"));
    let gateway = gateway(&broker, &tls).await;
    // The client verifies the name.
    for (name, is_there) in [
        ("localhost", true),
        ("a.example", true),
        ("A.EXAMPLE", true),
        ("x.wild.example", true),
        ("x.y.wild.example", false),
        ("wild.example", false),
        ("b.example", false),
    ] {
        let config = tls_config(&pki, None, rustls::ALL_VERSIONS);
        let connected = Client::try_tls(gateway.address(), config, name).await;
        assert_eq!(connected.is_ok(), is_there, "{name}");
    }
}

#[tokio::test]
async fn alpn_is_offered_and_a_client_without_is_served() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let tls = format!("{}[listener.admit]\nrequire = ['tls.alpn == \"mqtt\"']\n", pki.listener_tls());
    let with = gateway(&broker, &tls).await;
    let mut config = tls_config(&pki, Some("thing001"), rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    let mut client = Client::try_tls(with.address(), config.clone(), "localhost").await.unwrap();
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
    let without = gateway(&broker, &pki.listener_tls()).await;
    let mut plain = Client::tls(without.address(), &pki, "thing001").await;
    plain.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
    drop(plain);
    without.lines(1).await;
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(Client::try_tls(without.address(), config, "localhost").await.is_err());
    assert!(without.lines(2).await[1].ends_with(" TLS 500 0 0 - - tls_parameters"));
}

#[tokio::test]
async fn a_handshake_has_a_deadline() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &format!("{}handshake_timeout = \"200ms\"\n", pki.listener_tls())).await;
    let mut silent = Client::tcp(gateway.address()).await;
    assert!(silent.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "500 handshake_timeout");
    // Sending one byte at a time does not extend the timeout.
    let mut slow = Client::tcp(gateway.address()).await;
    for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" {
        let _ = slow.try_write(&[*byte]).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(gateway.lines(2).await[1].ends_with(" TLS 500 0 0 - - handshake_timeout"));
}

#[tokio::test]
async fn brokers_behind_tls_are_verified() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    portcullis_gateway::crypto::install_crypto_provider();
    let key = pki.key("localhost");
    let server = {
        use rustls::pki_types::pem::PemObject;
        let chain = rustls::pki_types::CertificateDer::pem_file_iter(pki.chain("localhost")).unwrap();
        rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                chain.map(Result::unwrap).collect(),
                rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap()
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
    let upstream = |tls: &str| format!("{}[upstream.tls]\nca = {:?}\n{tls}", broker.upstream(), pki.root());
    let verified = TestGateway::plain(&upstream("")).await;
    let mut client = Client::tcp(verified.address()).await;
    client.write(&connect("thing001")).await;
    let mut connection = acceptor.accept(broker.accept().await.0).await.unwrap();
    let mut found = vec![0; connect("thing001").len()];
    tokio::io::AsyncReadExt::read_exact(&mut connection, &mut found).await.unwrap();
    assert_eq!(found, connect("thing001"));

    let other_name = TestGateway::plain(&upstream("server_name = \"other.example\"\n")).await;
    let mut client = Client::tcp(other_name.address()).await;
    client.write(&connect("thing001")).await;
    assert!(acceptor.accept(broker.accept().await.0).await.is_err(), "the gateway closes the connection");
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x03");
    assert_eq!(other_name.outcome().await, "502 upstream_unreachable");
}

#[tokio::test]
async fn the_json_log_says_who_it_was() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = format!("{}[access_log]\nformat = \"json\"\n", pki.listener_tls());
    let gateway = gateway(&broker, &rest).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    client.write(&connect("thing001")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect("thing001")).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
    client.shutdown().await;
    drop(connection);
    let line: serde_json::Value = serde_json::from_str(&gateway.lines(1).await[0]).unwrap();
    for (key, value) in [
        ("listener", "devices"),
        ("protocol", "TLS"),
        ("reason", "ok"),
        ("stage", "relay"),
        ("blame", "client"),
        ("client_id", "thing001"),
        ("tls_version", "TLSv1.3"),
        ("cert_subject", r"CN=thing001,O=M\C3\B6bel & S\C3\B6hne\, Inc."),
        ("upstream_addr", &broker.address().to_string()),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert_eq!(line["cert_serial"].as_str().map(str::len), Some(32), "{line}");
    assert_eq!((&line["status"], &line["mqtt_version"], &line["tls_resumed"]), (&200.into(), &4.into(), &false.into()));
    assert!(line["connect_ms"].as_f64() > Some(0.0) && line["duration_ms"].as_f64() >= line["connect_ms"].as_f64());
}

#[tokio::test]
async fn the_json_log_says_who_was_rejected_and_why() {
    let (pki, other, broker) = (Pki::new(), Pki::named("Other"), Broker::start().await);
    let dir = tempfile::tempdir().unwrap();
    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "secret")]);
    let admit = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
    let rest = format!(
        "authenticate = [\"users\"]\n{}{admit}{}{users}[access_log]\nformat = \"json\"\n",
        pki.listener_tls(),
        broker.upstream()
    );
    let gateway = TestGateway::start(&format!("{}{rest}", TestGateway::LISTENER)).await;
    let subject = r"CN=thing001,O=M\C3\B6bel & S\C3\B6hne\, Inc.";
    let stranger = tls_config(&other, Some("thing001"), rustls::ALL_VERSIONS);
    let mut trusting = tls_config(&pki, None, rustls::ALL_VERSIONS);
    trusting.client_auth_cert_resolver = stranger.client_auth_cert_resolver;
    if let Ok(mut client) = Client::try_tls(gateway.address(), trusting, "localhost").await {
        let _ = client.try_write(&connect("thing001")).await;
        client.read_to_end().await;
    }
    for (id, password) in [("thing001", &b"wrong"[..]), ("elsewhere", b"secret")] {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&connect_as(id, "alice", password)).await;
        client.read_to_end().await;
    }
    let lines: Vec<serde_json::Value> =
        gateway.lines(3).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: usize, key: &str| lines[line][key].as_str().unwrap_or("null").to_owned();
    let rows = [
        (
            "unknown_ca",
            "null",
            "null",
            "the client did not send the certificate of the issuer `CN=Other root`, and it is not in `client_ca`",
        ),
        ("bad_credentials", "alice", "users", "null"),
        ("identity_mismatch", "alice", "users", "`mqtt.client_id == cert.subject.cn` is false"),
    ];
    for (line, (reason, username, authenticator, detail)) in rows.into_iter().enumerate() {
        assert_eq!((of(line, "reason"), of(line, "cert_subject")), (reason.to_owned(), subject.to_owned()));
        assert_eq!(lines[line]["cert_serial"].as_str().map(str::len), Some(32));
        let found = (of(line, "username"), of(line, "authenticator"), of(line, "detail"));
        assert_eq!(found, (username.to_owned(), authenticator.to_owned(), detail.to_owned()), "{reason}");
        assert!(lines[line]["connection"].as_u64().is_some());
    }
}

#[tokio::test]
async fn where_no_certificate_is_asked_for_sessions_are_resumed_and_counted_so() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = "[listener.admit]\nrequire = ['tls.resumed == (mqtt.client_id == \"again\")']\n";
    let gateway = gateway(&broker, &(pki.listener_tls_without_ca() + rest)).await;
    let config = tls_config(&pki, None, rustls::ALL_VERSIONS);
    for client_id in ["first", "again"] {
        let mut client = Client::try_tls(gateway.address(), config.clone(), "localhost").await.unwrap();
        client.write(&connect(client_id)).await;
        let mut connection = broker.accept().await;
        connection.expect(&connect(client_id)).await;
        connection.write(&connack(4)).await;
        // The session ticket arrives first.
        client.expect(&connack(4)).await;
    }
}
