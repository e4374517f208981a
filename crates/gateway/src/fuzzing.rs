//! Readers of bytes that come from outside, for the fuzzers in `fuzz/`. Each takes any input, and panics if it breaks a
//! promise. The tests replay the committed corpus.

use std::path::Path;

use crate::{auth, config, edge, files, net, peer, pki, relay, tls, util};

/// A reader.
pub type Target = fn(&[u8]);

/// The readers, by the names of their fuzz targets.
pub const TARGETS: &[(&str, Target)] = &[
    ("pem", pem),
    ("credentials", credentials),
    ("configuration", configuration),
    ("certificate", certificate),
    ("crl", pki::fuzz_crl),
    ("ocsp", pki::fuzz_ocsp),
    ("ticket", tls::fuzz_ticket),
    ("client_hello", tls::fuzz_client_hello),
    ("token", auth::fuzz_token),
    ("service", auth::fuzz_response),
    ("session", relay::fuzz_session),
    ("proxy_header", edge::fuzz_proxy_header),
    ("upgrade", edge::fuzz_upgrade),
    ("websocket", net::fuzz_websocket),
];

/// Whatever looks like the beginning of a section is read, or is an error.
fn pem(bytes: &[u8]) {
    if let Ok(sections) = util::pem::sections(bytes) {
        let text = String::from_utf8_lossy(bytes).to_ascii_uppercase();
        assert_eq!(text.matches("--BEGIN").count(), sections.len());
    }
}

/// Whatever is neither blank nor a comment is read, or is an error.
fn credentials(bytes: &[u8]) {
    let mut entries = 0;
    let read = files::parse_entries(bytes, |name, _| {
        assert!(!name.is_empty() && !name.contains(':'));
        entries += 1;
        Ok(())
    });
    if read.is_ok() {
        let is_entry = |line: &&[u8]| {
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            !line.trim_ascii().is_empty() && !line.starts_with(b"#")
        };
        assert_eq!(bytes.split(|byte| *byte == b'\n').filter(is_entry).count(), entries);
    }
    auth::fuzz_password_hash(bytes);
}

/// Every problem has a location that can be shown.
fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (_, diagnostics) = config::parse(Path::new("portcullis.toml"), &text);
    let _ = diagnostics.render(false);
}

fn certificate(bytes: &[u8]) {
    if let Some(certificate) = peer::Certificate::from_der(bytes) {
        let _ = (certificate.fingerprints(), certificate.sha256(), format!("{certificate:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_replayed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs > 3, "{name}: {inputs} inputs");
        }
    }
}
