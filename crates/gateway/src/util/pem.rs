//! Splits PEM text [RFC 7468] into sections, all of them: what looks like the beginning or the end of a section and is not
//! read is an error. A bundle that is half read would trust, or revoke, less than its author sees in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A section.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// The label, such as `CERTIFICATE`.
    pub(crate) label: String,
    /// The content.
    pub(crate) der: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// More sections than any bundle has. The number of sections costs memory beside their bytes.
const MAX_SECTIONS: usize = 20_000;

/// The sections of a text, in order. Accepts sections that are glued together or indented, a byte order mark, and any text
/// between sections.
///
/// # Errors
/// Names the line of a section that cannot be read; or there are too many.
pub(crate) fn sections(bytes: &[u8]) -> Result<Vec<Section>, String> {
    let text = String::from_utf8_lossy(bytes);
    // `line`: of the first byte of `rest`. Counted on the way, so that the time is linear in the length of the text.
    let (mut sections, mut rest, mut line) = (Vec::new(), &*text, 1);
    while let Some(at) = rest.find(BEGIN) {
        if sections.len() == MAX_SECTIONS {
            return Err(format!("line {line}: more than {MAX_SECTIONS} sections"));
        }
        let (between, section) = rest.split_at(at);
        reject_remains(between, line, !sections.is_empty())?;
        line += newlines(between);
        let (label, after) = section[BEGIN.len()..]
            .split_once(DASHES)
            .filter(|(label, _)| !label.contains('\n'))
            .ok_or_else(|| format!("line {line}: `-----BEGIN` without `-----` at its end"))?;
        if after.lines().next().is_some_and(|rest| !rest.trim().is_empty()) {
            return Err(format!("line {line}: text behind `-----BEGIN {label}-----`"));
        }
        let end = format!("-----END {label}-----");
        // The first dashes have to be those of the end: no search goes beyond the section.
        let (body, after) = after
            .find(DASHES)
            .map(|at| after.split_at(at))
            .and_then(|(body, after)| Some((body, after.strip_prefix(end.as_str())?)))
            .ok_or_else(|| format!("line {line}: the section has no `{end}`"))?;
        let der = decode(body).ok_or_else(|| format!("line {line}: the section `{label}` is not base64"))?;
        sections.push(Section { label: label.to_owned(), der });
        line += newlines(body);
        rest = after;
    }
    reject_remains(rest, line, !sections.is_empty())?;
    Ok(sections)
}

fn decode(body: &str) -> Option<Vec<u8>> {
    let mut encoded = Vec::with_capacity(body.len());
    for line in body.lines().skip_while(|line| line.trim().is_empty() || is_header(line)) {
        encoded.extend(line.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    }
    STANDARD.decode(encoded).ok()
}

/// Whether a line is a header of a traditional private key [RFC 1421, 4.6], such as `DEK-Info: AES-128-CBC,00FF`. It contains
/// no other section.
fn is_header(line: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    line.split_once(':').is_some_and(|(name, _)| is_name(name.trim())) && !line.contains("--")
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Rejects text between sections that was probably meant to be one: a section with a mistake, one without its first and last
/// line, DER, or PEM in UTF-16. `line`: of its first byte. `is_after_section`: text on the line on which a section ends is
/// part of a next one whose dashes are missing.
fn reject_remains(text: &str, line: usize, is_after_section: bool) -> Result<(), String> {
    let is_binary = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r');
    if let Some(at) = text.find(is_binary) {
        return Err(format!("line {}: binary data outside a section", line + newlines(&text[..at])));
    }
    let is_suspect = |line: &str| {
        // Word processors make one long dash of several.
        let line = line.to_ascii_uppercase().replace(is_long_dash, "--");
        if is_encoded(&line) {
            return true;
        }
        let mut words = ["--BEGIN", "-- BEGIN", "--END ", "-- END "].iter();
        // Its dashes may have been taken for those of the section before.
        let begins = || line.trim_start().starts_with("BEGIN ") || line.trim_start().starts_with("END ");
        words.any(|mark| line.contains(mark)) || (line.contains("--") && begins())
    };
    if is_after_section && text.lines().next().is_some_and(|rest| !rest.trim().is_empty()) {
        return Err(format!("line {line}: text behind the end of a section"));
    }
    match text.lines().position(is_suspect) {
        Some(at) => Err(format!("line {}: neither text nor a whole section", line + at)),
        None => Ok(()),
    }
}

/// Whether a line is one of base64. Fingerprints are hexadecimal.
fn is_encoded(line: &str) -> bool {
    const MIN_LEN: usize = 40;
    let line = line.trim().trim_end_matches('=');
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    line.len() >= MIN_LEN && line.bytes().all(is_base64) && !line.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const fn is_long_dash(c: char) -> bool {
    matches!(c, '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Result<Vec<String>, String> {
        sections(text.as_bytes()).map(|found| found.into_iter().map(|section| section.label).collect())
    }

    #[test]
    fn every_section_is_read_however_it_is_written() {
        let one = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        let crl = "-----BEGIN X509 CRL-----\nAw==\n-----END X509 CRL-----";
        for text in [
            format!("{one}{crl}"),
            format!("{}{crl}", one.trim_end()),
            format!("\u{feff}{one}# a comment\n{crl}\n"),
            format!("{one}{crl}").replace('\n', "\r\n"),
            format!("  {}", format!("{one}{crl}").replace('\n', " \n  ")),
            format!("subject=CN = a\nissuer=CN = b - Begin of c\n{one}\n\n{crl}"),
            format!("{one}{crl}").replace("AAEC", "AA\n\nEC"),
        ] {
            assert_eq!(labels(&text), Ok(vec!["CERTIFICATE".to_owned(), "X509 CRL".to_owned()]), "{text}");
        }
        assert_eq!(sections(one.as_bytes()).unwrap()[0].der, [0, 1, 2]);
        assert_eq!(labels("no PEM at all"), Ok(Vec::new()));
    }

    #[test]
    fn what_looks_like_a_section_and_is_none_is_an_error() {
        let whole = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        for (broken, line) in [
            ("-----BEGIN CERTIFICATE-----\nAAEC\n", 4),
            ("-----BEGIN CERTIFICATE-----\nAA*C\n-----END CERTIFICATE-----\n", 4),
            ("-----BEGIN CERTIFICATE-----\nAAEC\n-----END X509 CRL-----\n", 4),
            ("-----BEGIN CERTIFICATE-----\nAAEC\n-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n", 4),
            ("-----BEGIN CERTIFICATE\nAAEC\n-----END CERTIFICATE-----\n", 4),
            ("-----BEGIN K-----BEGIN K\nAAEC\n-----END K-----\n", 4),
            ("-----BEGIN K-----\nA: ----BEGIN B----\n-----END K-----\n", 4),
            ("-----BEGIN K-----\nAAEC\nA: AAEC\n-----END K-----\n", 4),
            ("----BEGIN CERTIFICATE----\nAAEC\n----END CERTIFICATE----\n", 4),
            ("-----Begin certificate-----\nAAEC\n-----End certificate-----\n", 4),
            ("AAEC\n-----END CERTIFICATE-----\n", 5),
            ("\u{2014}\u{2013}BEGIN CERTIFICATE\u{2014}-\nAAEC\n\u{2014}END CERTIFICATE\u{2014}\n", 4),
            ("BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n", 4),
            ("-----BEGIN K-----\n-----END K-----BEGIN K\n", 5),
            ("-----BEGIN K-----\n-----END K-----BEGIN K-----\n-----END K-----\n", 5),
        ] {
            let error = labels(&format!("{whole}{broken}")).unwrap_err();
            assert!(error.starts_with(&format!("line {line}: ")), "{broken}: {error}");
            assert!(labels(&format!("{broken}{whole}")).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_no_text_between_sections_is_an_error() {
        let whole = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        let utf16: Vec<u8> = whole.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let der = [0x30, 0x82, 0x01, 0x02, 0x30, 0x03];
        let bare = "MIIBtjCCAVugAwIBAgIUDZ0kz3P0mMjzJLWjZ0eVyq3Z0V8wCgYIKoZIzj0EAwIw\nAAEC\n";
        for part in [&utf16[..], &der, bare.as_bytes(), &[0x1f, 0x8b, 8, 0]] {
            for text in [[whole.as_bytes(), part].concat(), [part, b"\n", whole.as_bytes()].concat()] {
                assert!(sections(&text).is_err(), "{part:?}");
            }
        }
        let sha256 = "b4".repeat(32);
        for comment in [&*sha256, "====================================================", "C\u{f4}te\t\x0c", "# a:b"] {
            assert_eq!(labels(&format!("{comment}\n{whole}{comment}")).map(|found| found.len()), Ok(1), "{comment}");
        }
        let latin_1 = [b"C\xf4te\n", whole.as_bytes()].concat();
        assert_eq!(sections(&latin_1).map(|found| found.len()), Ok(1));
    }

    #[test]
    fn sections_that_share_their_dashes_are_an_error() {
        let one = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----";
        let shared = format!("{one}{}", one.trim_start_matches('-'));
        assert!(labels(&shared).unwrap_err().starts_with("line 3: "), "{:?}", labels(&shared));
    }

    #[test]
    fn the_time_is_linear_and_the_number_bounded() {
        let tiny = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        assert_eq!(sections(tiny.repeat(MAX_SECTIONS).as_bytes()).map(|found| found.len()), Ok(MAX_SECTIONS));
        assert!(sections(tiny.repeat(1_000_000).as_bytes()).unwrap_err().contains("more than 20000 sections"));
    }
}
