//! A certificate authority in a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};

use portcullis_pki::{Authority, CRL_DAYS, Init, Purpose, Reason, Request};
use rcgen::{CertificateParams, Issuer, KeyPair};
use tempfile::TempDir;
use time::Duration;

use crate::now;

/// A PKI with a server certificate for localhost; device certificates are issued when a test needs them.
pub struct Pki {
    dir: TempDir,
    authority: Authority,
}

impl Pki {
    /// Creates a PKI.
    pub fn new() -> Self {
        Self::named("Test")
    }

    /// Creates a PKI with this name.
    pub fn named(name: &str) -> Self {
        Self::with(&Init { name: name.to_owned(), ..Init::default() })
    }

    /// Creates a PKI with these parameters.
    pub fn with(init: &Init) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), init).unwrap();
        let this = Self { dir, authority };
        this.server("localhost", &["localhost", "127.0.0.1"]);
        this
    }

    /// Issues a server certificate.
    pub fn server(&self, name: &str, names: &[&str]) {
        self.issue(name, Purpose::Server, names, Some("Portcullis, \"Tests\""));
    }

    /// Issues a device certificate, unless the name already has one.
    pub fn device(&self, name: &str) {
        if !self.chain(name).exists() {
            self.issue(name, Purpose::Device, &[], Some("Möbel & Söhne, Inc."));
        }
    }

    fn issue(&self, name: &str, purpose: Purpose, names: &[&str], organization: Option<&str>) {
        let organization = organization.map(str::to_owned);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.authority.issue(&Request { name: name.to_owned(), organization, purpose, names, days: 30 }).unwrap();
    }

    /// Revokes the certificates with a common name, or the one with a serial number, and regenerates the CRLs.
    pub fn revoke(&self, name: &str) {
        self.authority.revoke(name, Reason::KeyCompromise, CRL_DAYS).unwrap();
    }

    /// Issues a device certificate that became valid an hour ago and expires in `seconds`; a negative number is in the
    /// past. Replaces an existing certificate.
    pub fn device_until(&self, name: &str, seconds: i64) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now() - Duration::hours(1);
        params.not_after = now() + Duration::seconds(seconds);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer("intermediate")).unwrap();
        let intermediate = fs::read_to_string(self.dir().join("intermediate.pem")).unwrap();
        fs::write(self.chain(name), leaf.pem() + &intermediate).unwrap();
        fs::write(self.key(name), key.serialize_pem()).unwrap();
    }

    /// The issuer `root` or `intermediate`, ready to sign.
    pub fn issuer(&self, authority: &str) -> Issuer<'static, KeyPair> {
        let read = |what: &str| fs::read_to_string(self.dir().join(format!("{authority}.{what}"))).unwrap();
        Issuer::from_ca_cert_pem(&read("pem"), KeyPair::from_pem(&read("key")).unwrap()).unwrap()
    }

    /// Replaces the CRLs of root and intermediate with CRLs that revoke nothing and expire in `seconds`.
    pub fn crls_until(&self, seconds: i64) {
        let crl = |authority: &str| {
            let now = now();
            let params = rcgen::CertificateRevocationListParams {
                this_update: now - Duration::hours(1),
                next_update: now + Duration::seconds(seconds),
                crl_number: rcgen::SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: rcgen::KeyIdMethod::Sha256,
            };
            params.signed_by(&self.issuer(authority)).unwrap().pem().unwrap()
        };
        fs::write(self.crls(), crl("root") + &crl("intermediate")).unwrap();
    }

    /// The authority itself.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The file with the CRLs of root and intermediate.
    pub fn crls(&self) -> PathBuf {
        self.authority.crls()
    }

    /// The directory of the PKI.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file of the trust anchor.
    pub fn root(&self) -> PathBuf {
        self.authority.root()
    }

    /// The file of the certificate chain of a name.
    pub fn chain(&self, name: &str) -> PathBuf {
        self.authority.chain_of(name)
    }

    /// The file of the private key of a name.
    pub fn key(&self, name: &str) -> PathBuf {
        self.authority.key_of(name)
    }

    /// A `[listener.tls]` table with the server certificate, and `client_ca`.
    pub fn listener_tls(&self) -> String {
        format!("{}client_ca = {:?}\n", self.listener_tls_without_ca(), self.root())
    }

    /// A `[listener.tls]` table with the server certificate, `client_ca` and `crl`.
    pub fn listener_tls_with_crl(&self) -> String {
        format!("{}crl = [{:?}]\n", self.listener_tls(), self.crls())
    }

    /// A `[listener.tls]` table with the server certificate alone.
    pub fn listener_tls_without_ca(&self) -> String {
        let (chain, key) = (self.chain("localhost"), self.key("localhost"));
        format!("[listener.tls]\ncertificate = {chain:?}\nprivate_key = {key:?}\n")
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}
