//! What each certificate of a path may do: anchors, intermediates and the device's own.

use std::fs;
use std::time::Duration;

use portcullis_testkit::{Broker, Client, Pki, advance, connect, tls_config};

use crate::trust::{gateway, refusal, session};

/// Parameters of a certificate that is valid from an hour ago until in an hour.
fn params(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (in_seconds(-3600), in_seconds(3600));
    params
}

fn in_seconds(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

fn authority(name: &str) -> rcgen::CertificateParams {
    let mut params = params(name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages.clear();
    params
}

fn with(
    mut params: rcgen::CertificateParams,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> rcgen::CertificateParams {
    change(&mut params);
    params
}

/// Replaces the certificate of a device by one with these parameters, behind an intermediate of the root with these.
fn put_chain(pki: &Pki, name: &str, leaf: &rcgen::CertificateParams, intermediate: rcgen::CertificateParams) {
    pki.device(name);
    let (key, authority_key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let authority = intermediate.signed_by(&authority_key, &pki.issuer("root")).unwrap();
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(intermediate, authority_key)).unwrap();
    fs::write(pki.chain(name), leaf.pem() + &authority.pem()).unwrap();
    fs::write(pki.key(name), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn every_certificate_of_a_path_may_do_what_it_does() {
    use rcgen::{DnValue, KeyUsagePurpose as Usage};
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let usage = |params, usages: &[Usage]| with(params, |params| params.key_usages = usages.to_vec());
    let no_ca = with(authority("between"), |params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
    let constrained = with(authority("between"), |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let named = |common_name, dns_name: &str| {
        with(params(common_name), |params| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName(dns_name.try_into().unwrap())];
        })
    };
    let of_type = |name: DnValue| {
        with(params("a"), |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        })
    };
    for (name, leaf, between, outcome) in [
        ("a", params("a"), authority("between"), None),
        ("a", usage(params("a"), &[Usage::DigitalSignature]), usage(authority("between"), &[Usage::KeyCertSign]), None),
        ("a", usage(params("a"), &[Usage::KeyAgreement]), authority("between"), Some("500 certificate_purpose")),
        ("a", params("a"), usage(authority("between"), &[Usage::CrlSign]), Some("500 certificate_not_ca")),
        ("a", params("a"), no_ca, Some("500 certificate_not_ca")),
        ("a", named("a", "example.org"), constrained.clone(), Some("500 certificate_name")),
        ("a", named("a", "a.example.com"), constrained.clone(), None),
        // A common name that looks like a DNS name is one, whatever its type and whatever other names there are.
        ("a.example.org", params("a.example.org"), constrained.clone(), Some("500 certificate_name")),
        ("A.Example.COM", params("A.Example.COM"), constrained.clone(), None),
        ("thing001", params("thing001"), constrained.clone(), None),
        ("a.example.org", named("a.example.org", "a.example.com"), constrained.clone(), Some("500 certificate_name")),
        (
            "a.example.org",
            of_type(DnValue::BmpString("a.example.org".try_into().unwrap())),
            constrained.clone(),
            Some("500 certificate_name"),
        ),
        (
            "a.example.org",
            of_type(DnValue::TeletexString("a.example.org".try_into().unwrap())),
            constrained.clone(),
            Some("500 certificate_name"),
        ),
        (
            "a.example.org",
            of_type(DnValue::UniversalString("a.example.org".try_into().unwrap())),
            constrained.clone(),
            Some("500 certificate_name"),
        ),
        ("a.example.com", of_type(DnValue::BmpString("a.example.com".try_into().unwrap())), constrained, None),
    ] {
        let gateway = gateway(&broker, &pki.listener_tls()).await;
        put_chain(&pki, name, &leaf, between);
        match outcome {
            None => drop(session(&gateway, &pki, &broker, name, 4).await),
            Some(outcome) => assert_eq!(refusal(&gateway, &pki, name).await, outcome),
        }
    }
}

#[tokio::test]
async fn authorities_that_could_all_have_issued_each_other_are_not_tried_in_turn() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let (key, device_key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let issuer = rcgen::Issuer::new(authority("attacker"), &key);
    let mut chain = params("a").signed_by(&device_key, &issuer).unwrap().pem();
    for _ in 0..9 {
        chain += &authority("attacker").signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap().pem();
    }
    pki.device("a");
    fs::write(pki.chain("a"), chain).unwrap();
    fs::write(pki.key("a"), device_key.serialize_pem()).unwrap();
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    assert_eq!(refusal(&gateway, &pki, "a").await, "500 certificate_chain_too_long");
}

#[tokio::test]
async fn an_anchor_that_has_expired_admits_nobody_and_keeps_no_session() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let write = |params: &rcgen::CertificateParams| {
        let path = dir.path().join("ca.pem");
        fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        path
    };
    let soon = with(authority("root"), |params| params.not_after = in_seconds(60));
    let ca = write(&soon);
    let tls = format!("{}client_ca = {ca:?}\n", pki.listener_tls_without_ca());
    pki.device("a");
    let device_key = rcgen::KeyPair::generate().unwrap();
    let issue = |issuer: rcgen::CertificateParams, leaf: &rcgen::CertificateParams| {
        let key = rcgen::KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let leaf = leaf.signed_by(&device_key, &rcgen::Issuer::new(issuer, key)).unwrap();
        fs::write(pki.chain("a"), leaf.pem()).unwrap();
        fs::write(pki.key("a"), device_key.serialize_pem()).unwrap();
    };
    let leaf = with(params("a"), |params| params.not_after = in_seconds(1_000_000));
    issue(soon.clone(), &leaf);
    let gateway = gateway(&broker, &tls).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "a", 4).await;
    advance(Duration::from_secs(61));
    client.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_expired"));
    let mut late = Client::tls(gateway.address(), &pki, "a").await;
    let _ = late.try_write(&connect("a")).await;
    late.read_to_end().await;
    assert!(gateway.lines(2).await[1].ends_with(" certificate_expired"));
    // A renewed certificate of the same authority, beside the expired one.
    let renewed = with(authority("root"), |params| params.not_after = in_seconds(1_000_000));
    let both = soon.self_signed(&key).unwrap().pem() + &renewed.self_signed(&key).unwrap().pem();
    fs::write(&ca, both).unwrap();
    gateway.gateway.run_maintenance().await;
    drop(session(&gateway, &pki, &broker, "a", 4).await);
}

#[tokio::test]
async fn an_anchor_limits_the_names_of_devices() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let root = with(authority("root"), |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: Vec::new(),
            excluded_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())],
        });
    });
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, root.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(root, key);
    for (name, outcome) in [("a.example.com", None), ("a.example.org", Some("500 certificate_name"))] {
        let gateway = gateway(&broker, &format!("{}client_ca = {ca:?}\n", pki.listener_tls_without_ca())).await;
        pki.device(name);
        let device_key = rcgen::KeyPair::generate().unwrap();
        fs::write(pki.chain(name), params(name).signed_by(&device_key, &issuer).unwrap().pem()).unwrap();
        fs::write(pki.key(name), device_key.serialize_pem()).unwrap();
        match outcome {
            None => drop(session(&gateway, &pki, &broker, name, 4).await),
            Some(outcome) => assert_eq!(refusal(&gateway, &pki, name).await, outcome),
        }
    }
}

#[tokio::test]
async fn an_anchor_that_is_narrowed_ends_sessions_and_their_resumption() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = dir.path().join("ca.pem");
    let write = |params: &rcgen::CertificateParams| fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
    write(&authority("root"));
    pki.device("a.example.org");
    let device_key = rcgen::KeyPair::generate().unwrap();
    let leaf = params("a.example.org").signed_by(&device_key, &rcgen::Issuer::new(authority("root"), &key)).unwrap();
    fs::write(pki.chain("a.example.org"), leaf.pem()).unwrap();
    fs::write(pki.key("a.example.org"), device_key.serialize_pem()).unwrap();
    let gateway = gateway(&broker, &format!("{}client_ca = {ca:?}\n", pki.listener_tls_without_ca())).await;
    let config = tls_config(&pki, Some("a.example.org"), rustls::ALL_VERSIONS);
    let mut client = Client::try_tls(gateway.address(), config.clone(), "localhost").await.unwrap();
    let _at_broker = client.greet(&broker, &connect("a.example.org")).await;
    // The same with other dates changes nothing.
    write(&with(authority("root"), |params| params.not_after = in_seconds(7200)));
    gateway.gateway.run_maintenance().await;
    let mut resumed = Client::try_tls(gateway.address(), config.clone(), "localhost").await.unwrap();
    let _second = resumed.greet(&broker, &connect("a.example.org")).await;
    write(&with(authority("root"), |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    }));
    gateway.gateway.run_maintenance().await;
    client.read_to_end().await;
    resumed.read_to_end().await;
    let late = Client::try_tls(gateway.address(), config, "localhost").await;
    if let Ok(mut late) = late {
        let _ = late.try_write(&connect("a.example.org")).await;
        late.read_to_end().await;
    }
    let lines = gateway.lines(3).await;
    let count = |reason: &str| lines.iter().filter(|line| line.ends_with(reason)).count();
    assert_eq!((count(" session_ca_removed"), count(" certificate_name")), (2, 1), "{lines:#?}");
}

#[tokio::test]
async fn an_anchor_limits_the_length_of_paths() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let root = with(authority("root"), |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    });
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, root.self_signed(&key).unwrap().pem()).unwrap();
    let tls = format!("{}client_ca = {ca:?}\n", pki.listener_tls_without_ca());
    pki.device("a");
    let (between_key, device_key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let between = authority("between").signed_by(&between_key, &rcgen::Issuer::new(root, key)).unwrap();
    let leaf = params("a").signed_by(&device_key, &rcgen::Issuer::new(authority("between"), between_key)).unwrap();
    fs::write(pki.chain("a"), leaf.pem() + &between.pem()).unwrap();
    fs::write(pki.key("a"), device_key.serialize_pem()).unwrap();
    let gateway = gateway(&broker, &tls).await;
    assert_eq!(refusal(&gateway, &pki, "a").await, "500 certificate_chain_too_long");
}

#[tokio::test]
async fn a_device_is_no_authority() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    pki.device("thing001");
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle.pem");
    let leaf = fs::read_to_string(pki.chain("thing001")).unwrap();
    let leaf = &leaf[..leaf.find("-----BEGIN").unwrap() + leaf[1..].find("-----BEGIN").map_or(leaf.len(), |at| at + 1)];
    fs::write(&bundle, fs::read_to_string(pki.root()).unwrap() + leaf).unwrap();
    let tls = format!("{}client_ca = {bundle:?}\n", pki.listener_tls_without_ca());
    let path = dir.path().join("p.toml");
    fs::write(&path, format!("{}{tls}{}", portcullis_testkit::TestGateway::LISTENER, broker.upstream())).unwrap();
    let loaded = portcullis_gateway::Runtime::load(&path, &portcullis_gateway::ProcessState::new());
    let problems = loaded.unwrap_err().render(false);
    assert!(problems.contains("is not a CA (basicConstraints without CA:TRUE)"), "{problems}");
    assert!(problems.contains("[listener.tls.raw_keys]"), "{problems}");
}

/// Anchors whose names take more than a CertificateRequest has room for.
fn many_anchors(pki: &Pki, dir: &std::path::Path) -> std::path::PathBuf {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut bundle = fs::read_to_string(pki.root()).unwrap();
    for n in 0..700 {
        bundle += &authority(&format!("{n:04} {}", "x".repeat(80))).self_signed(&key).unwrap().pem();
    }
    let path = dir.join("many.pem");
    fs::write(&path, bundle).unwrap();
    path
}

#[tokio::test]
async fn more_names_than_the_handshake_has_room_for_are_not_sent() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let many = many_anchors(&pki, dir.path());
    let tls = pki.listener_tls_without_ca();
    let with = gateway(&broker, &format!("{tls}client_ca = {many:?}\n")).await;
    drop(session(&with, &pki, &broker, "thing001", 4).await);
    let silent = gateway(&broker, &format!("{}send_ca_names = false\n", pki.listener_tls())).await;
    drop(session(&silent, &pki, &broker, "thing001", 4).await);
    // Also if the file grows while the gateway runs.
    let ca = dir.path().join("ca.pem");
    fs::copy(pki.root(), &ca).unwrap();
    let growing = gateway(&broker, &format!("{tls}client_ca = {ca:?}\n")).await;
    drop(session(&growing, &pki, &broker, "thing001", 4).await);
    fs::copy(&many, &ca).unwrap();
    growing.gateway.run_maintenance().await;
    drop(session(&growing, &pki, &broker, "thing001", 4).await);
    let path = dir.path().join("p.toml");
    let configuration = format!("{}{tls}client_ca = {many:?}\n", portcullis_testkit::TestGateway::LISTENER);
    let admit = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
    fs::write(&path, format!("{configuration}{admit}{}", broker.upstream())).unwrap();
    let loaded = portcullis_gateway::Runtime::load(&path, &portcullis_gateway::ProcessState::new()).unwrap();
    let warnings = loaded.diagnostics.render(false);
    assert!(warnings.contains("do not fit into the handshake"), "{warnings}");
}

#[tokio::test]
async fn a_self_signed_certificate_stands_for_its_key_and_nothing_else() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let fingerprint = hex::encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        &rcgen::PublicKeyData::subject_public_key_info(&key),
    ));
    let keys = dir.path().join("keys.txt");
    fs::write(&keys, format!("thing001:{fingerprint}\n")).unwrap();
    let present = |name: &str, by: &rcgen::KeyPair| {
        pki.device("thing001");
        let params = with(params(name), |params| params.not_after = in_seconds(-60));
        fs::write(pki.chain("thing001"), params.self_signed(by).unwrap().pem()).unwrap();
        fs::write(pki.key("thing001"), by.serialize_pem()).unwrap();
    };
    for (ca, versions) in [("", rustls::ALL_VERSIONS), ("", &[&rustls::version::TLS12]), ("ca", rustls::ALL_VERSIONS)] {
        let tls = if ca.is_empty() { pki.listener_tls_without_ca() } else { pki.listener_tls() };
        let raw = format!("[listener.tls.raw_keys]\nfile = {keys:?}\ncertificates = true\n");
        let admit = "[listener.admit]\nrequire = ['has(cert.subject) ? false : mqtt.client_id == tls.key_name']\n";
        let listener = portcullis_testkit::TestGateway::LISTENER;
        let gateway =
            portcullis_testkit::TestGateway::start(&format!("{listener}{tls}{raw}{admit}{}", broker.upstream())).await;
        // Its names and dates do not count. The session is not resumed: the key may be removed.
        present("admin", &key);
        let config = std::sync::Arc::new(tls_config(&pki, Some("thing001"), versions));
        for _ in 0..2 {
            let mut client = Client::try_tls(gateway.address(), (*config).clone(), "localhost").await.unwrap();
            drop(client.greet(&broker, &connect("thing001")).await);
        }
        // Another key under the same name, and a name that the certificate claims.
        present("thing001", &rcgen::KeyPair::generate().unwrap());
        assert!(!is_admitted(&gateway, &pki, versions, "thing001").await);
        present("admin", &key);
        assert!(!is_admitted(&gateway, &pki, versions, "admin").await);
        let reasons: Vec<String> =
            gateway.lines(4).await.iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
        assert_eq!(reasons[2..], ["unknown_key", "identity_mismatch"]);
        // A session that would not be admitted any more ends.
        let mut client = Client::try_tls(gateway.address(), (*config).clone(), "localhost").await.unwrap();
        let _at_broker = client.greet(&broker, &connect("thing001")).await;
        let text = fs::read_to_string(gateway.path()).unwrap();
        let text = text.split("[access_log]").next().unwrap();
        gateway.write(&text.replace("certificates = true\n", ""));
        gateway.gateway.reload().await.unwrap();
        client.read_to_end().await;
        assert!(gateway.lines(5).await[4].ends_with(" session_credential_withdrawn"));
    }
}

async fn is_admitted(
    gateway: &portcullis_testkit::TestGateway,
    pki: &Pki,
    versions: &[&'static rustls::SupportedProtocolVersion],
    client_id: &str,
) -> bool {
    let config = tls_config(pki, Some("thing001"), versions);
    let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await else { return false };
    let _ = client.try_write(&connect(client_id)).await;
    client.read_to_end().await.starts_with(&[0x20, 0x02, 0x00, 0x00])
}
