//! Client certificates: CRLs, expiry, trust anchors, and sessions that close when one of them changes.

use std::fs;
use std::time::{Duration, Instant};

use portcullis_testkit::{Broker, BrokerConnection, Client, Pki, TestGateway, advance, connack, connect, connect_v5};

const REST: &str = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
/// The documented bound: two seconds until a change is loaded, and five more until the session closes.
const BOUND: Duration = Duration::from_secs(5);

pub(crate) async fn gateway(broker: &Broker, tls: &str) -> TestGateway {
    TestGateway::start(&format!("{}{tls}{REST}{}", TestGateway::LISTENER, broker.upstream())).await
}

/// A connected device that has received CONNACK.
pub(crate) async fn session(
    gateway: &TestGateway,
    pki: &Pki,
    broker: &Broker,
    name: &str,
    version: u8,
) -> (Client, BrokerConnection) {
    let connect = if version == 5 { connect_v5(name) } else { connect(name) };
    let mut client = Client::tls(gateway.address(), pki, name).await;
    client.write(&connect).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect).await;
    connection.write(&connack(version)).await;
    client.expect(&connack(version)).await;
    (client, connection)
}

/// The reason for which a connection attempt is rejected.
pub(crate) async fn refusal(gateway: &TestGateway, pki: &Pki, name: &str) -> String {
    let mut client = Client::tls(gateway.address(), pki, name).await;
    let _ = client.try_write(&connect(name)).await;
    client.read_to_end().await;
    gateway.outcome().await
}

#[tokio::test]
async fn a_connected_device_ends_soon_after_its_certificate_is_revoked() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut five, mut at_broker) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let (mut three, _three) = session(&gateway, &pki, &broker, "thing002", 4).await;
    let (mut other, mut other_at_broker) = session(&gateway, &pki, &broker, "thing003", 4).await;
    let begin = Instant::now();
    pki.revoke("thing001");
    pki.revoke("thing002");
    assert_eq!(five.read_to_end().await, b"\xe0\x02\x87\x00", "MQTT 5 receives DISCONNECT: not authorized");
    assert_eq!(three.read_to_end().await, b"");
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    println!("revoked sessions ended after {:?}", begin.elapsed());
    at_broker.read_to_end().await;
    other.write(b"\xc0\x00").await;
    other_at_broker.expect(b"\xc0\x00").await;
    for line in gateway.lines(2).await {
        assert!(line.ends_with(" session_revoked") && line.contains(" 403 "), "{line}");
    }
}

#[tokio::test]
async fn lists_in_der_count_as_well() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let files = [pki.dir().join("root.crl"), pki.dir().join("intermediate.crl")];
    let gateway = gateway(&broker, &format!("{}crl = {files:?}\n", pki.listener_tls())).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    pki.revoke("thing001");
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn a_session_ends_between_packets() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    for (version, goodbye) in [(4, &b""[..]), (5, b"\xe0\x02\x87\x00")] {
        let name = format!("thing{version}");
        let (mut client, mut connection) = session(&gateway, &pki, &broker, &name, version).await;
        // The first half of a PUBLISH.
        connection.write(b"\x30\x06\x00\x01t").await;
        client.expect(b"\x30\x06\x00\x01t").await;
        pki.revoke(&name);
        gateway.gateway.reload().await.unwrap();
        connection.write(b"abc\x30\x06\x00\x01t").await;
        assert_eq!(client.read_to_end().await, [b"abc", goodbye].concat());
    }
}

#[tokio::test]
async fn the_whole_chain_is_checked() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let intermediate = pki.authority().list().unwrap().into_iter().find(|entry| entry.kind == "intermediate").unwrap();
    pki.revoke(&intermediate.serial);
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    gateway.lines(1).await;
    let mut late = Client::tls(gateway.address(), &pki, "thing002").await;
    late.read_to_end().await;
    assert!(gateway.lines(2).await[1].ends_with(" certificate_revoked"));
}

#[tokio::test]
async fn a_crl_that_is_missing_or_stale_refuses_unless_told_otherwise() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    // The root's CRL is missing.
    let text = fs::read_to_string(pki.crls()).unwrap();
    let first = text.split_inclusive("-----END X509 CRL-----\n").next().unwrap();
    let only_one = pki.dir().join("one.pem");
    fs::write(&only_one, first).unwrap();
    let tls = |crl: &std::path::Path, more: &str| format!("{}crl = [{crl:?}]\n{more}", pki.listener_tls());
    let refusing = gateway(&broker, &tls(&only_one, "")).await;
    assert_eq!(refusal(&refusing, &pki, "thing001").await, "500 crl_missing");
    let allowing = gateway(&broker, &tls(&only_one, "crl_missing = \"allow\"\n")).await;
    session(&allowing, &pki, &broker, "thing001", 4).await;

    pki.crls_until(-1);
    let refusing = gateway(&broker, &tls(&pki.crls(), "")).await;
    assert_eq!(refusal(&refusing, &pki, "thing001").await, "500 crl_expired");
    let allowing = gateway(&broker, &tls(&pki.crls(), "crl_missing = \"allow\"\n")).await;
    session(&allowing, &pki, &broker, "thing001", 4).await;
}

#[tokio::test]
async fn a_crl_that_goes_stale_ends_no_session_but_lets_in_no_new_one() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    pki.crls_until(60);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, mut connection) = session(&gateway, &pki, &broker, "thing001", 4).await;
    advance(Duration::from_secs(61));
    gateway.gateway.run_maintenance().await;
    assert_eq!(refusal(&gateway, &pki, "thing002").await, "500 crl_expired");
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_crl_of_another_authority_with_the_same_name_counts_for_nothing() {
    // Both have the same name.
    let (pki, impostor, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let _first = session(&gateway, &pki, &broker, "thing001", 4).await;
    fs::copy(impostor.crls(), pki.crls()).unwrap();
    gateway.gateway.run_maintenance().await;
    let _second = session(&gateway, &pki, &broker, "thing002", 4).await;
    let error = gateway.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("not signed by the authority"), "{error}");
    fs::write(pki.crls(), "no CRL").unwrap();
    gateway.gateway.run_maintenance().await;
    let (last, _connection) = session(&gateway, &pki, &broker, "thing003", 4).await;
    // And the right CRL again, which now revokes a device.
    let mut last = last;
    pki.revoke("thing003");
    last.read_to_end().await;
    assert_eq!(gateway.outcome().await, "403 session_revoked");
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    pki.device_until("thing001", 60);
    let (mut client, mut connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    advance(Duration::from_secs(50));
    gateway.gateway.run_maintenance().await;
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    advance(Duration::from_secs(11));
    let begin = Instant::now();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\xa0\x00", "maximum connect time");
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert_eq!(gateway.outcome().await, "403 session_expired");
}

#[tokio::test]
async fn a_trust_anchor_that_is_taken_away_takes_its_sessions() {
    let (pki, other, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let bundle = pki.dir().join("bundle.pem");
    let (ours, theirs) = (fs::read_to_string(pki.root()).unwrap(), fs::read_to_string(other.root()).unwrap());
    fs::write(&bundle, format!("{ours}{theirs}")).unwrap();
    let tls = format!("{}client_ca = {bundle:?}\n", pki.listener_tls_without_ca());
    let gateway = gateway(&broker, &tls).await;
    let (mut ends, _ends) = session(&gateway, &pki, &broker, "thing001", 5).await;
    // As Kubernetes does: by renaming another file over the old one.
    let new = pki.dir().join("new.pem");
    fs::write(&new, theirs).unwrap();
    fs::rename(&new, &bundle).unwrap();
    assert_eq!(ends.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_ca_removed");
}

#[tokio::test]
async fn an_address_that_is_denied_takes_its_sessions() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    fs::write(gateway.path(), text.replacen("upstream =", "deny = [\"127.0.0.1\"]\nupstream =", 1)).unwrap();
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_address_denied");
}

#[tokio::test]
async fn a_session_of_a_listener_that_is_gone_stays_while_somebody_believes_its_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, mut connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    fs::write(gateway.path(), text.replace("\"devices\"", "\"renamed\"")).unwrap();
    gateway.gateway.reload().await.unwrap();
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    pki.revoke("thing001");
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn lists_of_an_authority_that_changed_its_key_stand_beside_each_other() {
    // A CA name with two keys; no device of the second has connected yet.
    let (pki, later, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let both = || fs::read_to_string(later.crls()).unwrap() + &fs::read_to_string(pki.crls()).unwrap();
    let path = pki.dir().join("both.pem");
    fs::write(&path, both()).unwrap();
    let bundle = pki.dir().join("bundle.pem");
    fs::write(&bundle, fs::read_to_string(pki.root()).unwrap() + &fs::read_to_string(later.root()).unwrap()).unwrap();
    let tls = format!("{}client_ca = {bundle:?}\ncrl = [{path:?}]\n", pki.listener_tls_without_ca());
    let gateway = gateway(&broker, &tls).await;
    let (mut first, _first) = session(&gateway, &pki, &broker, "thing001", 4).await;
    pki.revoke("thing001");
    fs::write(&path, both()).unwrap();
    first.read_to_end().await;
    assert_eq!(gateway.outcome().await, "403 session_revoked");
    // The first device of the second key brings its CRL into use.
    later.device("thing002");
    later.device("thing003");
    later.revoke("thing003");
    fs::write(&path, both()).unwrap();
    gateway.gateway.reload().await.unwrap();
    let mut config = portcullis_testkit::tls_config(&pki, None, rustls::ALL_VERSIONS);
    config.client_auth_cert_resolver =
        portcullis_testkit::tls_config(&later, Some("thing002"), rustls::ALL_VERSIONS).client_auth_cert_resolver;
    let mut client = Client::try_tls(gateway.address(), config.clone(), "localhost").await.unwrap();
    client.write(&connect("thing002")).await;
    broker.accept().await.expect(&connect("thing002")).await;
    config.client_auth_cert_resolver =
        portcullis_testkit::tls_config(&later, Some("thing003"), rustls::ALL_VERSIONS).client_auth_cert_resolver;
    let mut client = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
    let _ = client.try_write(&connect("thing003")).await;
    client.read_to_end().await;
    let lines = gateway.lines(3).await;
    assert!(lines.iter().any(|line| line.ends_with(" certificate_revoked")), "{lines:#?}");
}

#[tokio::test]
async fn a_listener_that_asks_for_less_does_not_speak_for_one_that_is_gone() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let lenient = format!("{}{}", TestGateway::LISTENER.replace("\"devices\"", "\"lenient\""), pki.listener_tls());
    let strict = format!("{}{}", TestGateway::LISTENER, pki.listener_tls_with_crl());
    let configuration = format!("{strict}{lenient}{}", broker.upstream());
    let gateway = TestGateway::start(&configuration).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    gateway.write(&configuration.replace("\"devices\"", "\"renamed\""));
    gateway.gateway.reload().await.unwrap();
    pki.revoke("thing001");
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn a_chain_that_is_padded_is_refused() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    pki.device("thing001");
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(pki.chain("thing001")).unwrap().map(Result::unwrap).collect();
    let padding = std::iter::repeat_n(chain[1].clone(), 12);
    let mut config = portcullis_testkit::tls_config(&pki, None, &[&rustls::version::TLS12]);
    let key = PrivateKeyDer::from_pem_file(pki.key("thing001")).unwrap();
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(chain.into_iter().chain(padding).collect(), signing);
    config.client_auth_cert_resolver = std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    assert!(Client::try_tls(gateway.address(), config, "localhost").await.is_err());
    assert_eq!(gateway.outcome().await, "500 certificate_chain_too_long");
}

/// A CRL of the PKI's intermediate, issued by OpenSSL with these extensions.
fn openssl_crl(pki: &Pki, extensions: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    fs::write(dir.path().join("index.txt"), "").unwrap();
    fs::write(dir.path().join("number"), "0100\n").unwrap();
    let section = format!("crlnumber = {at}/number\ncrl_extensions = extensions\n[extensions]\n{extensions}\n");
    let config = format!(
        "[ca]\ndefault_ca = it\n[it]\ndatabase = {at}/index.txt\ndefault_md = sha256\ndefault_crl_days = 30\n{}",
        if extensions.is_empty() { "" } else { &section }
    );
    fs::write(dir.path().join("cnf"), config).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["ca", "-gencrl", "-config"])
        .arg(dir.path().join("cnf"))
        .args(["-cert".as_ref(), pki.dir().join("intermediate.pem").as_os_str()])
        .args(["-keyfile".as_ref(), pki.dir().join("intermediate.key").as_os_str()])
        .output()
        .expect("openssl is not installed: run ./test.sh, which installs what the tests need");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn crls_that_cannot_be_used_are_refused_with_a_clear_word() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let good = fs::read(pki.crls()).unwrap();
    let place = "[place]\nfullname = URI:http://crl.example.com/\n";
    let idp = |more: &str| format!("issuingDistributionPoint = critical, @point\n[point]\n{more}\n{place}");
    for (bytes, word) in [
        (openssl_crl(&pki, "2.5.29.27 = critical,DER:02:01:01").into_bytes(), "delta CRLs are not supported"),
        (openssl_crl(&pki, &idp("fullname = URI:http://x/\nindirectCRL = TRUE")).into_bytes(), "indirect CRLs"),
        (openssl_crl(&pki, &idp("onlysomereasons = keyCompromise")).into_bytes(), "for some revocation reasons"),
        (
            openssl_crl(&pki, "issuingDistributionPoint = critical, @point\n[point]\nonlyuser = TRUE").into_bytes(),
            "names no URL",
        ),
        (openssl_crl(&pki, "1.2.3.4 = critical,DER:02:01:01").into_bytes(), "unsupported CRL"),
        (openssl_crl(&pki, "").into_bytes(), "version 1"),
        (b"\x30\x82\x00\x05hello".to_vec(), "unsupported CRL"),
        (good[..good.len() / 2].to_vec(), "the section has no `-----END X509 CRL-----`"),
        (Vec::new(), "contains no CRL"),
        (fs::read(pki.chain("localhost")).unwrap(), "contains no CRL"),
    ] {
        fs::write(pki.crls(), &bytes).unwrap();
        let error = gateway.gateway.reload().await.expect_err(word).to_string();
        assert!(error.contains(word) && error.contains("crl.pem"), "{word}: {error}");
    }
    fs::remove_file(pki.crls()).unwrap();
    let error = gateway.gateway.reload().await.expect_err("no file").to_string();
    assert!(error.contains("cannot be read"), "{error}");
    // None of these CRLs has changed anything.
    session(&gateway, &pki, &broker, "thing001", 4).await;
}

#[tokio::test]
async fn a_crl_speaks_for_what_its_scope_says() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let root = fs::read_to_string(pki.crls()).unwrap();
    let root = &root[root.rfind("-----BEGIN X509 CRL").unwrap()..];
    let point = |more: &str| format!("issuingDistributionPoint = critical, @point\n[point]\n{more}\n");
    for (extensions, outcome) in [
        (point("fullname = URI:http://crl.example.com/\nonlyuser = TRUE"), None),
        (point("fullname = URI:http://crl.example.com/\nonlyCA = TRUE"), Some("500 crl_missing")),
        (point("fullname = URI:http://crl.example.com/"), None),
    ] {
        let path = pki.dir().join("scoped.pem");
        fs::write(&path, openssl_crl(&pki, &extensions) + root).unwrap();
        let gateway = gateway(&broker, &format!("{}crl = [{path:?}]\n", pki.listener_tls())).await;
        match outcome {
            None => drop(session(&gateway, &pki, &broker, "thing001", 4).await),
            Some(outcome) => assert_eq!(refusal(&gateway, &pki, "thing001").await, outcome, "{extensions}"),
        }
    }
    // A CRL for another distribution point does not cover a certificate that names its own.
    let init =
        portcullis_pki::Init { name: "Places".into(), crl_url: Some("http://here".into()), ..Default::default() };
    let pki = Pki::with(&init);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    drop(session(&gateway, &pki, &broker, "thing001", 4).await);
    let root = fs::read_to_string(pki.crls()).unwrap();
    let root = &root[root.rfind("-----BEGIN X509 CRL").unwrap()..];
    fs::write(pki.crls(), openssl_crl(&pki, &point("fullname = URI:http://there/intermediate.crl")) + root).unwrap();
    gateway.gateway.reload().await.unwrap();
    let mut client = Client::tls(gateway.address(), &pki, "thing002").await;
    let _ = client.try_write(&connect("thing002")).await;
    client.read_to_end().await;
    assert!(gateway.lines(2).await.iter().any(|line| line.ends_with(" crl_missing")));
}

#[tokio::test]
async fn bundles_and_lists_are_read_to_their_end_however_they_are_glued() {
    let (pki, other, broker) = (Pki::new(), Pki::named("Other"), Broker::start().await);
    let dir = tempfile::tempdir().unwrap();
    let (bundle, crls) = (dir.path().join("bundle.pem"), dir.path().join("crls.pem"));
    let glued = |text: &str| "\u{feff}".to_owned() + &text.replace("-----\n-----", "----------");
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
    fs::write(
        &bundle,
        glued(&(read(other.root()) + &read(pki.root())))
            .replace("BEGIN CERT", "BEGIN TRUSTED CERT")
            .replace("END CERT", "END TRUSTED CERT"),
    )
    .unwrap();
    pki.device("thing001");
    pki.device("thing002");
    pki.revoke("thing002");
    fs::write(&crls, glued(&read(pki.crls())).replace("X509 CRL", "CRL")).unwrap();
    let tls =
        format!("{}client_ca = {bundle:?}\ncrl = [{crls:?}]\ncrl_missing = \"allow\"\n", pki.listener_tls_without_ca());
    let gateway = gateway(&broker, &tls).await;
    drop(session(&gateway, &pki, &broker, "thing001", 4).await);
    let mut revoked = Client::tls(gateway.address(), &pki, "thing002").await;
    let _ = revoked.try_write(&connect("thing002")).await;
    revoked.read_to_end().await;
    assert!(gateway.lines(2).await.iter().any(|line| line.ends_with(" certificate_revoked")));
    // A live change that loses a part keeps what was read before.
    fs::write(&bundle, read(other.root()) + "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    gateway.gateway.run_maintenance().await;
    gateway.gateway.run_maintenance().await;
    drop(session(&gateway, &pki, &broker, "thing001", 4).await);
    assert!(gateway.gateway.reload().await.is_err());
}

#[tokio::test]
async fn what_is_no_pem_in_a_list_is_an_error_and_never_half_a_list() {
    let (pki, other, broker) = (Pki::new(), Pki::named("Other"), Broker::start().await);
    let dir = tempfile::tempdir().unwrap();
    let (crls, bundle) = (dir.path().join("crls.pem"), dir.path().join("bundle.pem"));
    let whole = fs::read_to_string(pki.crls()).unwrap();
    let (first, second) = whole.split_at(whole.rfind("-----BEGIN").unwrap());
    let binary = |text: &str| {
        use base64::Engine as _;
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        base64::engine::general_purpose::STANDARD.decode(body).unwrap()
    };
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let bare =
        |text: &str| text.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join("\n").into_bytes();
    fs::write(&crls, &whole).unwrap();
    fs::copy(pki.root(), &bundle).unwrap();
    let tls =
        format!("{}client_ca = {bundle:?}\ncrl = [{crls:?}]\ncrl_missing = \"allow\"\n", pki.listener_tls_without_ca());
    let gateway = gateway(&broker, &tls).await;
    let mislabelled = second.replace("X509 CRL", "CERTIFICATE").into_bytes();
    for part in [binary(second), utf16(second), bare(second), mislabelled] {
        fs::write(&crls, [first.as_bytes(), &part].concat()).unwrap();
        assert!(gateway.gateway.reload().await.is_err(), "{:?}", String::from_utf8_lossy(&part));
    }
    fs::write(&crls, &whole).unwrap();
    let root = fs::read_to_string(pki.root()).unwrap();
    let mislabelled = root.replace("CERTIFICATE", "X509 CRL").into_bytes();
    for part in [binary(&root), utf16(&root), bare(&root), mislabelled] {
        fs::write(&bundle, [fs::read(other.root()).unwrap(), part].concat()).unwrap();
        assert!(gateway.gateway.reload().await.is_err());
    }
    fs::write(&bundle, root).unwrap();
    gateway.gateway.reload().await.unwrap();
}

#[tokio::test]
async fn the_certificates_that_devices_have_are_counted() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    pki.device_until("soon", 3 * 24 * 60 * 60);
    let _one = session(&gateway, &pki, &broker, "soon", 4).await;
    let two = session(&gateway, &pki, &broker, "thing002", 4).await;
    let count = || {
        let status = gateway.gateway.certificate_status();
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["certificates"][0]["role"], "server", "{json}");
        (status.devices_by_issuer, status.devices_expiring)
    };
    let issued = |count| vec![("CN=Test intermediate".to_owned(), count)];
    assert_eq!(count(), (issued(2), vec![(1, 0), (7, 1), (30, 2), (90, 2), (365, 2), (3650, 2)]));
    drop(two);
    gateway.lines(1).await;
    assert_eq!(count(), (issued(1), vec![(1, 0), (7, 1), (30, 1), (90, 1), (365, 1), (3650, 1)]));
}
