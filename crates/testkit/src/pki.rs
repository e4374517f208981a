//! A certificate authority in a temporary folder.

use std::path::{Path, PathBuf};

use portcullis_pki::{Authority, Purpose, Request};
use tempfile::TempDir;

/// A PKI with a server certificate for localhost; devices are made as tests ask for them.
pub struct Pki {
    dir: TempDir,
    authority: Authority,
}

impl Pki {
    /// Makes one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), "Test").unwrap();
        let this = Self { dir, authority };
        this.server("localhost", &["localhost", "127.0.0.1"]);
        this
    }

    /// Makes a server certificate.
    pub fn server(&self, name: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.issue(name, Purpose::Server(names), Some("Portcullis, \"Tests\""));
    }

    /// Makes a device certificate, if there is none of this name.
    pub fn device(&self, name: &str) {
        if !self.chain(name).exists() {
            self.issue(name, Purpose::Device, Some("Möbel & Söhne, Inc."));
        }
    }

    fn issue(&self, name: &str, purpose: Purpose, organization: Option<&str>) {
        let organization = organization.map(str::to_owned);
        self.authority.issue(&Request { name: name.to_owned(), organization, purpose, days: 30 }).unwrap();
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The trust anchor.
    pub fn root(&self) -> PathBuf {
        self.authority.root()
    }

    /// The chain of a name.
    pub fn chain(&self, name: &str) -> PathBuf {
        self.authority.chain_of(name)
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> PathBuf {
        self.authority.key_of(name)
    }

    /// A `[listener.tls]` table with the server certificate, and `client_ca`.
    pub fn listener_tls(&self) -> String {
        format!("{}client_ca = {:?}\n", self.listener_tls_without_ca(), self.root())
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
