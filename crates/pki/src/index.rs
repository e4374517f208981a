//! The index of issued and revoked certificates, in the format of OpenSSL's `index.txt`, so that `openssl ocsp` and
//! `openssl ca` can use it. A line has six columns, separated by tabs: `V`, `R` or `E`; the expiry; the time of revocation
//! and the reason; the serial number; a file name, which is always `unknown`; the subject.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::RevocationReason;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::Error;
use crate::error::file_error;
use crate::folder::replace;

const TIME: StaticFormatDescription = format_description!("[year][month][day][hour][minute][second]Z");
/// The format that OpenSSL uses for years before 2050.
const SHORT_TIME: StaticFormatDescription =
    format_description!("[year repr:last_two][month][day][hour][minute][second]Z");

/// A line of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) expires: OffsetDateTime,
    pub(crate) revoked: Option<(OffsetDateTime, Reason)>,
    /// Upper-case hex.
    pub(crate) serial: String,
    /// `/O=.../CN=...`
    pub(crate) subject: String,
}

/// The reason of a revocation [RFC 5280, 5.3.1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum Reason {
    #[default]
    Unspecified,
    KeyCompromise,
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

const REASONS: &[(Reason, &str, RevocationReason)] = &[
    (Reason::Unspecified, "unspecified", RevocationReason::Unspecified),
    (Reason::KeyCompromise, "keyCompromise", RevocationReason::KeyCompromise),
    (Reason::CaCompromise, "CACompromise", RevocationReason::CaCompromise),
    (Reason::AffiliationChanged, "affiliationChanged", RevocationReason::AffiliationChanged),
    (Reason::Superseded, "superseded", RevocationReason::Superseded),
    (Reason::CessationOfOperation, "cessationOfOperation", RevocationReason::CessationOfOperation),
    (Reason::PrivilegeWithdrawn, "privilegeWithdrawn", RevocationReason::PrivilegeWithdrawn),
];

impl Reason {
    /// The reason as OpenSSL writes it.
    pub fn label(self) -> &'static str {
        REASONS.iter().find(|(reason, ..)| *reason == self).map_or("unspecified", |(_, label, _)| label)
    }

    pub(crate) fn code(self) -> RevocationReason {
        REASONS.iter().find(|(reason, ..)| *reason == self).map_or(RevocationReason::Unspecified, |(.., code)| *code)
    }

    fn read(text: &str) -> Self {
        let same = |label: &str| label.eq_ignore_ascii_case(text);
        REASONS.iter().find(|(_, label, _)| same(label)).map_or(Reason::Unspecified, |(reason, ..)| *reason)
    }
}

impl Line {
    fn read(text: &str) -> Option<Self> {
        let columns: Vec<&str> = text.split('\t').collect();
        let [_, expires, revoked, serial, _, subject] = columns.as_slice() else { return None };
        let revoked = match revoked.split_once(',') {
            Some((when, why)) => Some((read_time(when)?, Reason::read(why))),
            None if revoked.is_empty() => None,
            None => Some((read_time(revoked)?, Reason::Unspecified)),
        };
        let (serial, subject) = ((*serial).to_owned(), (*subject).to_owned());
        Some(Self { expires: read_time(expires)?, revoked, serial, subject })
    }

    fn write(&self) -> String {
        let revoked = self.revoked.map(|(when, why)| match why {
            Reason::Unspecified => write_time(when),
            why => format!("{},{}", write_time(when), why.label()),
        });
        let state = if revoked.is_some() { 'R' } else { 'V' };
        let (expires, revoked) = (write_time(self.expires), revoked.unwrap_or_default());
        // Programs that read the index know no escapes.
        let subject = self.subject.replace(['\t', '\n', '\r'], " ");
        format!("{state}\t{expires}\t{revoked}\t{}\tunknown\t{subject}\n", self.serial)
    }
}

fn read_time(text: &str) -> Option<OffsetDateTime> {
    if text.len() > 13 {
        return PrimitiveDateTime::parse(text, TIME).ok().map(PrimitiveDateTime::assume_utc);
    }
    // A two-digit year means 1950 to 2049 [RFC 5280, 4.1.2.5.1].
    let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
    PrimitiveDateTime::parse(&format!("{century}{text}"), TIME).ok().map(PrimitiveDateTime::assume_utc)
}

fn write_time(time: OffsetDateTime) -> String {
    let form = if time.year() < 2050 { SHORT_TIME } else { TIME };
    // Both formats can represent every time in range.
    time.format(form).unwrap_or_default()
}

/// The index file.
#[derive(Debug)]
pub(crate) struct Index(PathBuf);

impl Index {
    pub(crate) fn of(dir: &Path) -> Self {
        Self(dir.join("index.txt"))
    }

    /// Reads all lines; none if the file does not exist.
    pub(crate) fn lines(&self) -> Result<Vec<Line>, Error> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error(&self.0)(error)),
        };
        let broken = |line: &str| Error::Content(self.0.clone(), format!("invalid index line: {line:?}"));
        text.lines().map(|line| Line::read(line).ok_or_else(|| broken(line))).collect()
    }

    /// Adds a line, or replaces the one with the same serial number.
    pub(crate) fn put(&self, line: &Line) -> Result<(), Error> {
        let mut lines = self.lines()?;
        match lines.iter_mut().find(|other| other.serial == line.serial) {
            Some(other) => *other = line.clone(),
            None => lines.push(line.clone()),
        }
        let text: String = lines.iter().map(Line::write).collect();
        replace(&self.0, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_way_there_and_back() {
        for text in [
            "V\t270101000000Z\t\t0A\tunknown\t/CN=a\n",
            "R\t20510101000000Z\t261122030405Z,keyCompromise\t0B\tunknown\t/O=x/CN=a b\n",
            "R\t491231235959Z\t20500101000000Z\t0C\tunknown\t/CN=ü\n",
        ] {
            assert_eq!(Line::read(text.trim_end()).unwrap().write(), text);
        }
        assert_eq!(Line::read("V\t270101000000Z\t\t0A\tunknown"), None);
    }
}
