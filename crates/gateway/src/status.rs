//! What metrics and programs see of the state of certificates. Enters: the configuration, CRLs and sessions in use.
//! Leaves: a summary, and updated gauges.

use serde::Serialize;

use crate::observe::Expiry;
use crate::pki::CrlSummary;
use crate::session::Shared;
use crate::util::clock::now;

/// The limit of issuers in metrics; further ones are counted as `other`.
const MAX_ISSUERS: usize = 64;

/// The certificates of the gateway and of connected devices, and the CRLs in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    /// The gateway's own certificates and trust anchors.
    pub certificates: Vec<Expiry>,
    /// The CRLs in use.
    pub crls: Vec<CrlSummary>,
    /// The number of connected devices by the subject of their certificates' issuer. Issuers beyond the limit are
    /// `other`.
    pub devices_by_issuer: Vec<(String, usize)>,
    /// The number of connected devices whose certificate expires within a number of days, cumulative.
    pub devices_expiring: Vec<(u32, usize)>,
}

/// The current status.
pub(crate) fn certificate_status(shared: &Shared) -> CertificateStatus {
    let inventory = shared.state.sessions.inventory(now());
    let mut devices_by_issuer: Vec<(String, usize)> = Vec::new();
    for (issuer, count) in inventory.by_issuer {
        let name = shared.state.revocation.name_of(&issuer).filter(|_| devices_by_issuer.len() < MAX_ISSUERS);
        let name = name.unwrap_or_else(|| "other".to_owned());
        // Two CAs may have the same name.
        match devices_by_issuer.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => devices_by_issuer.push((name, count)),
        }
    }
    CertificateStatus {
        certificates: shared.runtime.load().expiries(),
        crls: shared.state.revocation.crls(),
        devices_by_issuer,
        devices_expiring: inventory.expiring,
    }
}

/// Updates the gauges.
pub(crate) fn refresh_metrics(shared: &Shared) {
    let (metrics, status) = (&shared.state.observer.metrics, certificate_status(shared));
    metrics.set_certificate_expiry(&status.certificates);
    let crls = status.crls.into_iter();
    metrics.set_crls(crls.map(|crl| (crl.origin, crl.this_update, crl.next_update, crl.revoked)));
    metrics.set_inventory(&status.devices_by_issuer, &status.devices_expiring);
    let runtime = shared.runtime.load();
    let registries = runtime.authenticators.iter().filter_map(|it| Some((&*it.name, it.registry()?)));
    metrics.set_registries(registries.map(|(name, registry)| (name, registry.len(), registry.is_authoritative())));
}
