//! Signatures of certificates are remembered once they were verified. Whether a device is admitted is decided each time:
//! here with signatures that are remembered, and with signatures that this process sees for the first time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, advance, connack, connect, tls_config};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, SupportedProtocolVersion};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::trust::gateway;

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];

/// Whether the device was connected before, which has brought the signatures of its chain to memory.
const WARMTH: [bool; 2] = [true, false];

/// Connects as `thing001` with a full handshake, and leaves. Returns the reason in the access line, which `lines` counts.
async fn attempt(gateway: &TestGateway, broker: &Broker, config: ClientConfig, lines: &mut usize) -> String {
    *lines += 1;
    if let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await {
        // In TLS 1.3, the alert arrives with the first read.
        let _ = client.try_write(&connect("thing001")).await;
        tokio::select! {
            mut connection = broker.accept() => {
                connection.expect(&connect("thing001")).await;
                connection.write(&connack(4)).await;
                client.expect(&connack(4)).await;
                client.shutdown().await;
                connection.read_to_end().await;
            }
            _ = client.try_read(4) => {}
        }
    }
    gateway.lines(*lines).await.pop().unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// A chain and its key.
#[derive(Clone)]
struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Credential {
    fn read(chain: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(chain).unwrap().map(Result::unwrap).collect();
        Self { chain, key: fs::read(key).unwrap() }
    }

    /// The device's own.
    fn of(pki: &Pki) -> Self {
        pki.device("thing001");
        Self::read(&pki.chain("thing001"), &pki.key("thing001"))
    }

    /// With another bit in the signature of a certificate; what it signs is the same. The signature stays well-formed: the
    /// last byte is the least significant one of its second number.
    fn with_flipped_signature(mut self, place: usize) -> Self {
        let mut der = self.chain[place].to_vec();
        *der.last_mut().unwrap() ^= 1;
        self.chain[place] = der.into();
        self
    }

    /// A device certificate that `issuer` signs, with the certificate of `issuer` behind it.
    fn signed_by(issuer: &Issuer<'_, KeyPair>, issuer_certificate: CertificateDer<'static>) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "thing001");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap();
        Self { chain: vec![leaf.der().clone(), issuer_certificate], key: key.serialize_pem().into_bytes() }
    }

    /// A client with it, in this version of TLS, which resumes nothing.
    fn client(&self, pki: &Pki, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut config = tls_config(pki, None, versions);
        let key = PrivateKeyDer::from_pem_slice(&self.key).unwrap();
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(self.chain.clone(), signing);
        config.client_auth_cert_resolver = std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        config.resumption = rustls::client::Resumption::disabled();
        config
    }
}

/// A certificate of the PKI, as PEM.
fn certificate(pki: &Pki, authority: &str) -> String {
    fs::read_to_string(pki.dir().join(format!("{authority}.pem"))).unwrap()
}

/// A certificate of another key with the name and the key identifier of this intermediate.
fn twin(of: &CertificateDer<'_>, key: &KeyPair, issuer: &Issuer<'_, KeyPair>) -> CertificateDer<'static> {
    let identity = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        let identifier = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        });
        (certificate.subject().as_raw().to_vec(), identifier.unwrap())
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Test intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_identifier_method = KeyIdMethod::PreSpecified(identity(of).1);
    params.use_authority_key_identifier_extension = true;
    let twin = params.signed_by(key, issuer).unwrap().der().clone();
    assert_eq!(identity(&twin), identity(of));
    twin
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_device_that_was_revoked_is_rejected() {
    for (versions, is_warm) in VERSIONS.into_iter().flat_map(|versions| WARMTH.map(|is_warm| (versions, is_warm))) {
        let (pki, broker, mut lines) = (Pki::new(), Broker::start().await, 0);
        let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
        let device = Credential::of(&pki);
        if is_warm {
            assert_eq!(attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await, "ok");
        }
        pki.revoke("thing001");
        gateway.gateway.reload().await.unwrap();
        let reason = attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await;
        assert_eq!(reason, "certificate_revoked", "{is_warm}");
    }
}

#[tokio::test]
async fn a_device_whose_intermediate_was_revoked_is_rejected() {
    for is_warm in WARMTH {
        let (pki, broker, mut lines) = (Pki::new(), Broker::start().await, 0);
        let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
        let device = Credential::of(&pki);
        if is_warm {
            assert_eq!(attempt(&gateway, &broker, device.client(&pki, VERSIONS[1]), &mut lines).await, "ok");
        }
        let issued = pki.authority().list().unwrap();
        pki.revoke(&issued.iter().find(|entry| entry.kind == "intermediate").unwrap().serial);
        gateway.gateway.reload().await.unwrap();
        let reason = attempt(&gateway, &broker, device.client(&pki, VERSIONS[1]), &mut lines).await;
        assert_eq!(reason, "certificate_revoked", "{is_warm}");
    }
}

#[tokio::test]
async fn a_device_whose_certificate_has_expired_is_rejected() {
    for (versions, is_warm) in VERSIONS.into_iter().flat_map(|versions| WARMTH.map(|is_warm| (versions, is_warm))) {
        let (pki, broker, mut lines) = (Pki::new(), Broker::start().await, 0);
        let gateway = gateway(&broker, &pki.listener_tls()).await;
        pki.device_until("thing001", 60);
        let device = Credential::of(&pki);
        if is_warm {
            assert_eq!(attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await, "ok");
        }
        advance(Duration::from_secs(61));
        let reason = attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await;
        assert_eq!(reason, "certificate_expired", "{is_warm}");
    }
}

#[tokio::test]
async fn a_device_whose_authority_is_trusted_no_longer_is_rejected() {
    for is_warm in WARMTH {
        // Both have the same name.
        let (pki, other, broker, mut lines) = (Pki::new(), Pki::new(), Broker::start().await, 0);
        let gateway = gateway(&broker, &pki.listener_tls()).await;
        let device = Credential::of(&pki);
        if is_warm {
            assert_eq!(attempt(&gateway, &broker, device.client(&pki, VERSIONS[1]), &mut lines).await, "ok");
        }
        let text = fs::read_to_string(gateway.path()).unwrap();
        let (before, after) = (format!("client_ca = {:?}", pki.root()), format!("client_ca = {:?}", other.root()));
        fs::write(gateway.path(), text.replace(&before, &after)).unwrap();
        gateway.gateway.reload().await.unwrap();
        let reason = attempt(&gateway, &broker, device.client(&pki, VERSIONS[1]), &mut lines).await;
        assert_eq!(reason, "certificate_invalid", "{is_warm}");
    }
}

#[tokio::test]
async fn nothing_that_resembles_what_is_remembered_is_valid() {
    for (versions, is_warm) in VERSIONS.into_iter().flat_map(|versions| WARMTH.map(|is_warm| (versions, is_warm))) {
        let (pki, broker, mut lines) = (Pki::new(), Broker::start().await, 0);
        let gateway = gateway(&broker, &pki.listener_tls()).await;
        let device = Credential::of(&pki);
        if is_warm {
            assert_eq!(attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await, "ok");
        }
        let intermediate = certificate(&pki, "intermediate");
        // The names and key identifiers of the intermediate and the root, and other keys.
        let named_as = |pem: &str| Issuer::from_ca_cert_pem(pem, KeyPair::generate().unwrap()).unwrap();
        let impostor = named_as(&intermediate);
        let key = KeyPair::generate().unwrap();
        let of_impostor = twin(&der(&intermediate), &key, &named_as(&certificate(&pki, "root")));
        let with_own_intermediate = Issuer::from_ca_cert_der(&of_impostor, key).unwrap();
        let forgeries = [
            ("another signature of the device's certificate", device.clone().with_flipped_signature(0)),
            ("another signature of the intermediate", device.clone().with_flipped_signature(1)),
            (
                "an issuer of the same name, behind it the true one",
                Credential::signed_by(&impostor, der(&intermediate)),
            ),
            ("a whole chain of the same names", Credential::signed_by(&with_own_intermediate, of_impostor.clone())),
        ];
        // Twice: what is not valid is not remembered as if it were.
        for (what, forgery) in forgeries.iter().chain(&forgeries) {
            let reason = attempt(&gateway, &broker, forgery.client(&pki, versions), &mut lines).await;
            assert_eq!(reason, "certificate_invalid", "{what} {is_warm}");
        }
        let reason = attempt(&gateway, &broker, device.client(&pki, versions), &mut lines).await;
        assert_eq!(reason, "ok", "what is valid is not forgotten for them");
    }
}

#[tokio::test]
async fn a_certificate_with_the_key_of_another_is_no_proof() {
    let (pki, broker, mut lines) = (Pki::new(), Broker::start().await, 0);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    let device = Credential::of(&pki);
    assert_eq!(attempt(&gateway, &broker, device.client(&pki, VERSIONS[1]), &mut lines).await, "ok");
    // A remembered chain, presented by a client without its key.
    let stolen = Credential { key: KeyPair::generate().unwrap().serialize_pem().into_bytes(), ..device };
    for versions in VERSIONS {
        assert_ne!(attempt(&gateway, &broker, stolen.client(&pki, versions), &mut lines).await, "ok");
    }
}
