//! TLS towards brokers: verification is always on.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::keys::{KeySource, read_pair};
use crate::config::model::UpstreamTls;
use crate::config::{At, Complaint, Document};
use crate::crypto::provider;
use crate::files::read_anchors;

/// The TLS side of an upstream, compiled.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientTls({:?})", self.server_name)
    }
}

impl ClientTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(tls: &At<UpstreamTls>, document: &mut Document) -> Option<Self> {
        let roots = match roots(tls, document) {
            Ok(roots) => roots,
            Err(complaint) => {
                let span = tls.ca.as_ref().map_or(&tls.span, |ca| &ca.span);
                document.problems.complain(span, complaint);
                return None;
            }
        };
        let server_name = match &tls.server_name {
            Some(name) => match ServerName::try_from(name.value.clone()) {
                Ok(name) => Some(name),
                Err(_) => {
                    document.problems.error(&name.span, format!("`{}` is no host name and no address", name.value));
                    return None;
                }
            },
            None => None,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let config = match (&tls.certificate, &tls.private_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let passphrase = tls.private_key_passphrase.as_ref().map(|passphrase| &passphrase.value);
                let key = KeySource::compile(key, passphrase, &key.span, document)?;
                match read_pair(&document.resolve(chain), &key) {
                    Ok(pair) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                        Arc::unwrap_or_clone(pair),
                    ))),
                    Err(complaint) => {
                        document.problems.complain(&chain.span, complaint);
                        return None;
                    }
                }
            }
            (Some(At { span, .. }), None) | (None, Some(At { span, .. })) => {
                document.problems.error(span, "`certificate` and `private_key` go together");
                return None;
            }
        };
        Some(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Encrypts a connection to a broker that is configured under `host`.
    ///
    /// # Errors
    /// The broker could not prove to be `server_name`, or `host`.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        self.connector.connect(name, socket).await
    }
}

fn roots(tls: &UpstreamTls, document: &Document) -> Result<RootCertStore, Complaint> {
    if let Some(ca) = &tls.ca {
        return read_anchors(&document.resolve(ca)).map(|anchors| anchors.into_iter().collect());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Complaint::new("the system has no trust anchors").hint("name a bundle with `ca`"));
    }
    Ok(roots)
}
