//! TLS to brokers. Enters: a connected socket and the broker's name. Leaves: an encrypted stream to a verified broker.
//! Verification cannot be turned off.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::keys::{KeySource, read_pair};
use crate::config::tables::UpstreamTls;
use crate::config::{Complaint, Diagnostics, Reported};
use crate::net::Socket;
use crate::trust::{Purpose, ServerVerifier, TrustAnchors};
use crate::util::crypto::provider;

/// TLS settings of an upstream, compiled.
#[derive(Clone)]
pub(crate) struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientTls({:?})", self.server_name)
    }
}

impl ClientTls {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// A file or name cannot be used; the problem was reported.
    pub(crate) fn open(settings: &UpstreamTls, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let roots = roots(settings).map_err(|complaint| match &settings.ca {
            Some(ca) => diagnostics.error(ca, complaint),
            None => diagnostics.error(&settings.table, complaint),
        })?;
        let server_name = settings.server_name.as_ref().map(|name| {
            let complaint =
                |_| diagnostics.error(name, format!("`{}` is neither a host name nor an IP address", name.value));
            ServerName::try_from(name.value.clone()).map_err(complaint)
        });
        let server_name = server_name.transpose()?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(ServerVerifier::new(roots));
        let config = match &settings.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = KeySource::open(key, diagnostics)?;
                let pair = read_pair(chain, &key).map_err(|complaint| diagnostics.error(chain, complaint))?;
                let pair = rustls::sign::SingleCertAndKey::from(Arc::unwrap_or_clone(pair));
                builder.with_client_cert_resolver(Arc::new(pair))
            }
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Performs the handshake with a broker. Its certificate must be valid for `server_name` of the settings, or else for
    /// `host`, the name in `servers`.
    ///
    /// # Errors
    /// The handshake failed, or the broker's certificate is not valid for the name.
    pub(crate) async fn connect(&self, host: &str, socket: Socket) -> io::Result<TlsStream<Socket>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        self.connector.connect(name, socket).await.map_err(explain)
    }
}

/// Says what is wrong with a broker's certificate, and which setting concerns it.
fn explain(error: io::Error) -> io::Error {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(problem)) = of_tls else { return error };
    let text = match problem {
        CertificateError::UnknownIssuer => {
            "the server's certificate is not issued by a CA of `ca` in [upstream.tls], or it came without its intermediate"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented = presented.join(", ");
            format!(
                "the server's certificate is not valid for `{}` (`server_name` in [upstream.tls]), but for {presented}",
                expected.to_str()
            )
        }
        CertificateError::ExpiredContext { .. } | CertificateError::Expired => {
            "the server's certificate, or one of its CAs, has expired".to_owned()
        }
        CertificateError::InvalidPurpose => "the server's certificate is not for servers".to_owned(),
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

fn roots(settings: &UpstreamTls) -> Result<TrustAnchors, Complaint> {
    if let Some(ca) = &settings.ca {
        return TrustAnchors::read(ca, Purpose::Servers);
    }
    let roots = TrustAnchors::of_system();
    if roots.is_empty() {
        return Err(Complaint::new("the system has no trust anchors").hint("set `ca` to a file with the broker's CA"));
    }
    Ok(roots)
}
