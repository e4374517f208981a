//! `cipher_preference`: which cipher suite is agreed on. What becomes of sessions when it changes is in `resumption.rs`.

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connect};
use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::configuration::{REST, problems};
use crate::tls::server_pair;

/// The cipher suites of one version and kind of key: AES-256, AES-128, ChaCha20.
struct Suites(&'static SupportedProtocolVersion, [CipherSuite; 3]);

impl Suites {
    const TLS_1_3: Self = Self(
        &rustls::version::TLS13,
        [
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
    );
    const ECDSA: Self = Self(
        &rustls::version::TLS12,
        [
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
    );
    const RSA: Self = Self(
        &rustls::version::TLS12,
        [
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
    );

    /// A client that offers only the suites with these indices, in this order.
    fn client(&self, offered: &[usize], root: &[u8]) -> ClientConfig {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let all = std::mem::take(&mut provider.cipher_suites);
        let find = |index: &usize| *all.iter().find(|suite| suite.suite() == self.1[*index]).unwrap();
        provider.cipher_suites = offered.iter().map(find).collect();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(root)).unwrap();
        let builder = ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&[self.0]).unwrap();
        builder.with_root_certificates(roots).with_no_client_auth()
    }

    /// What `tls.cipher` is for the suite with this index.
    fn name(&self, index: usize) -> String {
        self.1[index].as_str().unwrap().replace("TLS13_", "TLS_")
    }
}

#[tokio::test]
async fn the_preferred_cipher_suite_is_chosen_where_a_client_offers_it() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().unwrap());
    let (ec, ec_der) = server_pair(dir.path(), "ec", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (rsa, rsa_der) = server_pair(dir.path(), "rsa", &rcgen::PKCS_RSA_SHA256);
    for (preference, of_all, of_aes) in
        [("", 0, 0), ("cipher_preference = \"aes-256\"\n", 0, 0), ("cipher_preference = \"aes-128\"\n", 1, 1)]
    {
        for (certificate, root, suites) in
            [(&ec, &ec_der, Suites::TLS_1_3), (&ec, &ec_der, Suites::ECDSA), (&rsa, &rsa_der, Suites::RSA)]
        {
            let tls = format!("[listener.tls]\ncertificate = [{certificate}]\n{preference}");
            // The client ID is the name of the cipher suite that the client expects.
            let admit = "[listener.admit]\nrequire = ['tls.cipher == mqtt.client_id']\n";
            let start = format!("{}{tls}{admit}{}", TestGateway::LISTENER, broker.upstream());
            let gateway = TestGateway::start(&start).await;
            for (offered, expected) in [
                (&[0, 1, 2][..], of_all),
                (&[2, 1, 0], of_all),
                (&[0, 1], of_aes),
                (&[1, 0], of_aes),
                // Where the client does not offer the preferred one, another one is as good.
                (&[0], 0),
                (&[1], 1),
                (&[2], 2),
                (&[2, 0], 0),
                (&[2, 1], 1),
            ] {
                let (config, name) = (suites.client(offered, root), suites.name(expected));
                let mut client = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
                client.write(&connect(&name)).await;
                broker.accept().await.expect(&connect(&name)).await;
            }
        }
    }
}

#[test]
fn check_rejects_a_preference_that_has_no_effect() {
    let pki = Pki::new();
    let of = |protocol: &str, tls: &str| {
        let listener = format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\nprotocol = \"{protocol}\"\n"
        );
        problems(&format!("{listener}{tls}{REST}"))
    };
    let preference = "cipher_preference = \"aes-128\"\n";
    let with_certificate = pki.listener_tls() + preference;
    let beside_certificates = of("tls", &with_certificate);
    assert!(!beside_certificates.contains("error") && !beside_certificates.contains("cipher"), "{beside_certificates}");
    let psk = of("tls", &format!("[listener.tls]\n{preference}psk = {{ file = \"psk.txt\", format = \"hex\" }}\n"));
    assert!(psk.contains("`cipher_preference` cannot be combined with `psk`"), "{psk}");
    assert!(psk.contains("hint: pre-shared keys have cipher suites of their own"), "{psk}");
    assert!(
        psk.contains("7 | cipher_preference = \"aes-128\"\n  |                     ^^^^^^^^^\n"),
        "it shows where: {psk}"
    );
    let secret = "ticket_secret = \"0123456789abcdef0123456789abcdef\"\n";
    let psk = of("tls", &format!("[listener.tls]\n{secret}psk = {{ file = \"psk.txt\", format = \"hex\" }}\n"));
    assert!(psk.contains("p.toml:7:17: `ticket_secret` cannot be combined") && !psk.contains("abcdef"), "{psk}");
    let secret = secret.trim_end();
    let psk =
        of("tls", &format!("tls = {{ cipher_preference = \"aes-128\", {secret}, psk = {{ registry = true }} }}\n"));
    assert!(psk.contains("p.toml:6:29: `cipher_preference` cannot be combined"), "a secret is in its line: {psk}");
    let plain = of("tcp", &with_certificate);
    assert!(plain.contains("error: [listener.tls] has no effect with `protocol = \"tcp\"`"), "{plain}");
    assert!(plain.contains("hint: for TLS, set `protocol = \"tls\"`"), "{plain}");
    let other = of("tls", &with_certificate.replace("aes-128", "aes128"));
    assert!(other.contains("aes-128") && other.contains("aes-256"), "it says what there is: {other}");
}
