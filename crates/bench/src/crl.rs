//! Long CRLs. Enters: a PKI, a number of entries. Leaves: a CRL of its intermediate, alone or as PEM with that of the root.

use std::path::Path;

use portcullis_pki::Authority;
use rcgen::{
    CertificateRevocationList, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
    SerialNumber,
};
use time::OffsetDateTime;

/// Of serial numbers, in bytes, as authorities usually have them.
const SERIAL_LEN: usize = 16;

/// The root's CRL, and a CRL of the intermediate as [`long`] makes it.
pub(crate) fn with_root(pki: &Path, entries: u32, devices: &[&str]) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(pki.join("crl.pem"))?;
    let root = &text[text.rfind("-----BEGIN X509 CRL").unwrap_or(0)..];
    Ok(long(pki, entries, SERIAL_LEN, devices)?.pem()? + root)
}

/// A CRL of the intermediate that revokes this many certificates that nobody has, and those of these devices.
/// `serial_len`: of the former, at least 5 bytes.
pub(crate) fn long(
    pki: &Path,
    entries: u32,
    serial_len: usize,
    devices: &[&str],
) -> anyhow::Result<CertificateRevocationList> {
    let read = |what: &str| std::fs::read_to_string(pki.join(format!("intermediate.{what}")));
    let issuer = Issuer::from_ca_cert_pem(&read("pem")?, KeyPair::from_pem(&read("key")?)?)?;
    let now = OffsetDateTime::now_utc();
    let entry = |serial: &[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let known = Authority::open(pki)?.list()?;
    let revoked = known.iter().filter(|it| devices.contains(&it.name.as_str()));
    let revoked = revoked.map(|it| Ok(entry(&bytes(&it.serial)?))).collect::<anyhow::Result<Vec<_>>>()?;
    let rest = vec![0x41; serial_len.saturating_sub(4)];
    let others = (0..entries).map(|n| entry(&[&rest[..], &n.to_be_bytes()].concat()));
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + time::Duration::days(1),
        crl_number: SerialNumber::from(u64::MAX),
        issuing_distribution_point: None,
        revoked_certs: others.chain(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&issuer)?)
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    Ok((0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16)).collect::<Result<_, _>>()?)
}
