//! Revocation: updates the index, and signs the CRLs of root and intermediate from it.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    CertificateRevocationList, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    KeyIdMethod, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::error::file_error;
use crate::folder::replace;
use crate::index::{Index, Line, Reason};
use crate::reading::{first_pem, line_of, parse, serial_of};
use crate::{Authority, Entry, Error};

/// The validity of the root's CRL. It is long because the CRL changes only if the intermediate is revoked, and because the
/// key of the root is offline.
const ROOT_CRL_DAYS: i64 = 365;

impl Authority {
    /// Revokes every certificate with this common name, because a renewed certificate shares the key of the previous one;
    /// or the one with this serial number. Then regenerates the CRLs. Returns the certificates that it revoked.
    ///
    /// # Errors
    /// No certificate matches, all that match are already revoked, or a file cannot be read or written.
    pub fn revoke(&self, name: &str, reason: Reason, crl_days: u32) -> Result<Vec<Entry>, Error> {
        let _lock = self.lock()?;
        let entries = self.list()?;
        let is_leaf = |entry: &&Entry| !matches!(entry.kind, "root" | "intermediate");
        let mut found: Vec<Entry> =
            entries.iter().filter(is_leaf).filter(|entry| entry.name == name).cloned().collect();
        if found.is_empty() {
            let by_serial = |entry: &&Entry| entry.serial.eq_ignore_ascii_case(name) && entry.kind != "root";
            found.extend(entries.iter().find(by_serial).cloned());
        }
        if found.is_empty() {
            return Err(Error::Unknown(name.to_owned()));
        }
        found.retain(|entry| entry.revoked.is_none());
        if found.is_empty() {
            return Err(Error::Revoked(name.to_owned()));
        }
        let root_key = self.dir.join("root.key");
        if found.iter().any(|entry| entry.kind == "intermediate") && !root_key.exists() {
            return Err(Error::NoRootKey(root_key));
        }
        for entry in &mut found {
            let pem = first_pem(&entry.path)?;
            let mut line = line_of(&parse(&entry.path, &pem)?);
            line.revoked = Some((OffsetDateTime::now_utc(), reason));
            Index::of(&self.dir).put(&line)?;
            entry.revoked = Some(reason);
        }
        self.make_crls(crl_days)?;
        Ok(found)
    }

    /// Regenerates the CRLs: the intermediate's, valid for `days`, and the root's, if its key is present. Returns their
    /// files.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn crl(&self, days: u32) -> Result<Vec<PathBuf>, Error> {
        let _lock = self.lock()?;
        self.make_crls(days)
    }

    pub(crate) fn make_crls(&self, days: u32) -> Result<Vec<PathBuf>, Error> {
        let lines = Index::of(&self.dir).lines()?;
        let (intermediate, root) = (self.dir.join("intermediate.pem"), self.root());
        let intermediate_serial = serial_of(&parse(&intermediate, &first_pem(&intermediate)?)?);
        let is_intermediate = |line: &&Line| line.serial == intermediate_serial;
        let mut written = Vec::new();
        let of_leaves: Vec<&Line> = lines.iter().filter(|line| !is_intermediate(line)).collect();
        let crl = self.sign_crl("intermediate", &of_leaves, i64::from(days))?;
        written.push(self.write_crl("intermediate.crl", crl.der())?);
        let mut text = crl.pem()?;
        let root_crl = self.dir.join("root.crl");
        if self.dir.join("root.key").exists() {
            let of_root: Vec<&Line> = lines.iter().filter(is_intermediate).collect();
            let crl = self.sign_crl("root", &of_root, ROOT_CRL_DAYS)?;
            written.push(self.write_crl("root.crl", crl.der())?);
            text += &crl.pem()?;
        } else if root_crl.exists() {
            let der = fs::read(&root_crl).map_err(file_error(&root_crl))?;
            text += &pem::encode(&pem::Pem::new("X509 CRL", der));
        } else {
            return Err(Error::Content(root, "neither root.key nor root.crl exists: restore one of them".to_owned()));
        }
        replace(&self.crls(), text.as_bytes())?;
        written.push(self.crls());
        Ok(written)
    }

    fn write_crl(&self, file: &str, der: &[u8]) -> Result<PathBuf, Error> {
        let path = self.dir.join(file);
        replace(&path, der)?;
        Ok(path)
    }

    fn sign_crl(&self, authority: &str, lines: &[&Line], days: i64) -> Result<CertificateRevocationList, Error> {
        let now = OffsetDateTime::now_utc();
        let mut revoked_certs = Vec::new();
        for line in lines {
            let Some((revocation_time, reason)) = line.revoked else { continue };
            // Skipping it would silently accept a revoked certificate again.
            let broken =
                |_| Error::Content(self.dir.join("index.txt"), format!("`{}` is not a serial number", line.serial));
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&hex::decode(&line.serial).map_err(broken)?),
                revocation_time,
                reason_code: Some(reason.code()),
                invalidity_date: None,
            });
        }
        // OpenSSL checks the root against the root's CRL, too, and the root names no distribution point to match.
        let url = if authority == "root" { None } else { self.settings()?.crl(&format!("{authority}.crl")) };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(days),
            // Milliseconds since 1970: increases with each CRL without a file that counts.
            crl_number: SerialNumber::from(u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)),
            issuing_distribution_point: url.map(|url| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec![url] },
                scope: None,
            }),
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer(authority)?.0)?)
    }
}
