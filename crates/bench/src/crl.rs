//! Long CRLs. Enters: a PKI, a number of entries. Leaves: PEM of its CRLs, of which that of the intermediate is long.

use std::path::Path;

use portcullis_pki::Authority;
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use time::OffsetDateTime;

/// Returns the root's CRL, and a CRL of the intermediate that revokes this many certificates that nobody has, and those of
/// these devices.
pub(crate) fn long(pki: &Path, entries: u32, devices: &[&str]) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(pki.join("crl.pem"))?;
    let root = &text[text.rfind("-----BEGIN X509 CRL").unwrap_or(0)..];
    let read = |what: &str| std::fs::read_to_string(pki.join(format!("intermediate.{what}")));
    let issuer = Issuer::from_ca_cert_pem(&read("pem")?, KeyPair::from_pem(&read("key")?)?)?;
    let now = OffsetDateTime::now_utc();
    let entry = |serial: &[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let issued = Authority::open(pki)?.list()?;
    let revoked = issued.iter().filter(|it| devices.contains(&it.name.as_str()));
    let revoked = revoked.map(|it| Ok(entry(&bytes(&it.serial)?))).collect::<anyhow::Result<Vec<_>>>()?;
    let others = (0..entries).map(|n| entry(&[&[0x41; 12], &n.to_be_bytes()[..]].concat()));
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + time::Duration::days(1),
        crl_number: SerialNumber::from(u64::MAX),
        issuing_distribution_point: None,
        revoked_certs: others.chain(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&issuer)?.pem()? + root)
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    Ok((0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16)).collect::<Result<_, _>>()?)
}
