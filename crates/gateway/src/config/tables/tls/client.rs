//! How devices' certificates are verified: trust anchors, CRLs and OCSP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::table::{ClientAuth, OcspScope, OnFailure, TlsTable};
use crate::config::diagnostics::{Complaint, Reported};
use crate::config::document::Document;
use crate::config::values::{Located, Setting};
use crate::util::url::is_url;

/// webpki follows at most this many intermediates.
const MAX_VERIFY_DEPTH: u8 = 6;

/// How devices' certificates are verified.
#[derive(Debug)]
pub struct ClientCertificates {
    /// Whether the handshake fails without a certificate.
    pub required: bool,
    /// PEM bundle of trust anchors.
    pub ca: Setting<PathBuf>,
    /// Whether clients are sent the names of the trust anchors.
    pub send_names: bool,
    /// Number of intermediates that a chain may have.
    pub verify_depth: usize,
    /// Certificate revocation lists.
    pub crl: Crl,
    /// OCSP.
    pub ocsp: Ocsp,
    /// Longest time between two fetches of a CRL or an OCSP response.
    pub refresh: Duration,
}

/// Certificate revocation lists.
#[derive(Debug)]
pub struct Crl {
    /// Files and URLs.
    pub origins: Vec<Setting<CrlOrigin>>,
    /// Whether the gateway also fetches CRLs from distribution points.
    pub distribution_points: bool,
    /// What happens to a device whose CRL is missing or out of date.
    pub missing: OnFailure,
}

/// The source of a CRL.
#[derive(Clone, Debug)]
pub enum CrlOrigin {
    /// A PEM or DER file.
    File(PathBuf),
    /// An `http` or `https` URL.
    Url(String),
}

/// The online certificate status protocol [RFC 6960].
#[derive(Debug)]
pub struct Ocsp {
    /// Certificates that the gateway checks by OCSP.
    pub scope: OcspScope,
    /// URL of the responder; `None`: the one that the certificate names.
    pub responder: Option<String>,
    /// What happens to a device if no responder responds in time.
    pub failure: OnFailure,
    /// How long a device waits for revocation data.
    pub timeout: Duration,
}

/// How the gateway verifies devices' certificates; `None`: it requests none.
pub(super) fn validate(
    table: &Setting<TlsTable>,
    document: &mut Document,
) -> Result<Option<ClientCertificates>, Reported> {
    let checks_revocation = !table.crl.is_empty() || *table.crl_distribution_points || *table.ocsp != OcspScope::Off;
    if table.client_ca.is_none() && checks_revocation && !document.is_unread("client_ca", table) {
        let message = "`crl`, `crl_distribution_points` and `ocsp` require `client_ca`";
        match table.crl.first() {
            Some(crl) => document.error(crl, message),
            None => document.error(table, message),
        };
    }
    if table.client_ca.is_none() && table.send_ca_names.is_set() {
        document.warning(&table.send_ca_names, "`send_ca_names` has no effect without `client_ca`");
    }
    let auth = table.client_auth.as_ref().map(|auth| auth.value);
    match (auth, &table.client_ca) {
        (None | Some(ClientAuth::None), None) => Ok(None),
        (Some(ClientAuth::None), Some(ca)) => {
            let complaint = Complaint::new("`client_ca` is set, but `client_auth = \"none\"`");
            Err(document.error(ca, complaint.hint("remove one of them")))
        }
        (Some(ClientAuth::Required | ClientAuth::Optional), None) => {
            let at: &dyn Located = table.client_auth.as_ref().map_or(table as &dyn Located, |auth| auth);
            Err(document.error(at, "`client_auth` requires `client_ca`"))
        }
        (None | Some(ClientAuth::Required | ClientAuth::Optional), Some(ca)) => {
            validate_revocation(table, document);
            let required = auth != Some(ClientAuth::Optional);
            Ok(Some(ClientCertificates {
                required,
                ca: ca.map(|ca| document.resolve(ca)),
                send_names: table.send_ca_names.value,
                verify_depth: usize::from(table.verify_depth.value),
                crl: Crl {
                    origins: table.crl.iter().filter_map(|crl| crl_origin(crl, document).ok()).collect(),
                    distribution_points: *table.crl_distribution_points,
                    missing: table.crl_missing.value,
                },
                ocsp: Ocsp {
                    scope: *table.ocsp,
                    responder: table.ocsp_responder.as_ref().map(|url| url.value.clone()),
                    failure: table.ocsp_failure.value,
                    timeout: table.ocsp_timeout.value.0,
                },
                refresh: table.revocation_refresh.value.0,
            }))
        }
    }
}

fn validate_revocation(table: &TlsTable, document: &mut Document) {
    if table.verify_depth.value > MAX_VERIFY_DEPTH {
        document.error(&table.verify_depth, format!("`verify_depth` must be at most {MAX_VERIFY_DEPTH}"));
    }
    if let Some(url) = &table.ocsp_responder {
        if let Ok(()) = reject_substitution(url, document)
            && !is_url(url)
        {
            let complaint = Complaint::new(format!("`{}` is not an `http` or `https` URL", url.value));
            document.error(url, complaint.hint("\"http://ocsp.example.com/\""));
        }
        if *table.ocsp == OcspScope::Off {
            document.warning(url, OCSP_IS_OFF);
        }
    }
    if table.ocsp_failure.is_set() && *table.ocsp == OcspScope::Off {
        document.warning(&table.ocsp_failure, OCSP_IS_OFF);
    }
    if table.crl_missing.is_set() && table.crl.is_empty() && !*table.crl_distribution_points {
        document.warning(&table.crl_missing, "`crl_missing` has no effect without `crl` or `crl_distribution_points`");
    }
    for (key, on_failure, what) in [
        ("crl_missing", &table.crl_missing, "whose CRL is missing or out of date"),
        ("ocsp_failure", &table.ocsp_failure, "for which no OCSP responder answers"),
    ] {
        if on_failure.value == OnFailure::Allow {
            document.warning(on_failure, format!("a device {what} is admitted: {key} = \"allow\""));
        }
    }
}

const OCSP_IS_OFF: &str = "no effect: `ocsp` is off";

fn crl_origin(crl: &Setting<String>, document: &mut Document) -> Result<Setting<CrlOrigin>, Reported> {
    reject_substitution(crl, document)?;
    if !crl.contains("://") {
        return Ok(crl.map(|path| CrlOrigin::File(document.resolve(Path::new(path)))));
    }
    if !is_url(crl) {
        let complaint = Complaint::new(format!("`{}` is not an `http` or `https` URL", crl.value));
        return Err(document.error(crl, complaint.hint("a file, or \"http://...\" or \"https://...\"")));
    }
    Ok(crl.map(|url| CrlOrigin::Url(url.clone())))
}

/// Rejects a substitution in a URL that appears in logs and metrics.
fn reject_substitution(url: &Setting<String>, document: &mut Document) -> Result<(), Reported> {
    if document.is_substituted(url) {
        let complaint = Complaint::new("substitution is not supported here");
        return Err(
            document.error(url, complaint.hint("the URL appears in logs and metrics, so it must not contain a secret"))
        );
    }
    Ok(())
}
