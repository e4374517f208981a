//! Distinguished names have the format of OpenSSL, as in NGINX.

use std::process::Command;

use portcullis_gateway::peer::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// A self-signed certificate with this subject section of an OpenSSL configuration; its DER and OpenSSL's text.
fn certificate(dir: &std::path::Path, subject: &str, string_mask: &str) -> (CertificateDer<'static>, String) {
    let config = format!(
        "[req]\nprompt = no\nutf8 = yes\nstring_mask = {string_mask}\ndistinguished_name = dn\n[dn]\n{subject}\n"
    );
    std::fs::write(dir.join("req.cnf"), config).unwrap();
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{subject}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem -config req.cnf -out c.pem -days 1",
    );
    let text = openssl("x509 -in c.pem -noout -subject -nameopt RFC2253");
    let text = text.trim_end_matches('\n').strip_prefix("subject=").unwrap().to_owned();
    (CertificateDer::from_pem_file(dir.join("c.pem")).unwrap(), text)
}

#[test]
fn the_same_text_as_openssl() {
    let dir = tempfile::tempdir().unwrap();
    for subject in [
        "CN = thing001",
        "C = DE\nST = Bayern\nL = München\nO = Möbel & Söhne, Inc.\nOU = Fleet + Edge\nCN = thing001",
        "O = \"quoted \\\"name\\\"\"\nCN = a\\\\b",
        "O = <Angle>; semicolon\nCN = \\#hash",
        "O = \" leading and trailing \"\nCN = \" \"",
        "O = 東京\nCN = 🛰",
        "C = US\nO = Example\n+OU = Left\n+UID = right\nCN = multi",
        "DC = com\n1.DC = example\nCN = dots\nemailAddress = a@example.com",
        "serialNumber = 0042\nSN = Sur\nGN = Given\ntitle = Dr\ninitials = X\npseudonym = p\nCN = many",
        "organizationIdentifier = VATDE-1\ndnQualifier = q\ngenerationQualifier = jr\nCN = rare",
        "1.2.3.4.5 = unknown type\nCN = unknown",
        "postalCode = 80331\nstreetAddress = Marienplatz 1\nbusinessCategory = b\nname = n\ndescription = d\nCN = more",
        "CN = tab\\tand\\nnewline",
        "OU = first\n1.OU = second\nCN = one\n1.CN = two",
    ] {
        for mask in ["utf8only", "pkix", "default", "MASK:0x800", "MASK:0x100"] {
            // BMPString cannot represent every character.
            if mask.starts_with("MASK") && (subject.contains('🛰') || subject.contains("C = ") || subject.contains("DC"))
            {
                continue;
            }
            let (der, expected) = certificate(dir.path(), subject, mask);
            let found = Certificate::from_der(&der).unwrap().subject.dn;
            assert_eq!(found.as_deref(), Some(expected.as_str()), "{mask}: {subject}");
        }
    }
}

#[test]
fn first_values_and_empty_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (der, _) = certificate(dir.path(), "OU = first\n1.OU = second\nCN = one\n1.CN = two", "utf8only");
    let subject = Certificate::from_der(&der).unwrap().subject;
    assert_eq!((subject.cn.as_deref(), subject.ou.as_deref(), subject.o), (Some("one"), Some("first"), None));
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "");
    let empty = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let subject = Certificate::from_der(empty.der()).unwrap().subject;
    assert_eq!(subject.cn, None, "an empty name equals no client ID, not even an empty one");
}

#[test]
fn serial_and_fingerprints_are_openssl_s() {
    let dir = tempfile::tempdir().unwrap();
    let (der, _) = certificate(dir.path(), "CN = x", "utf8only");
    let found = Certificate::from_der(&der).unwrap();
    let openssl = |what: &[&str]| {
        let arguments = [&["x509", "-in", "c.pem", "-noout"], what].concat();
        let output = Command::new("openssl").args(arguments).current_dir(dir.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().split_once('=').unwrap().1.replace(':', "")
    };
    assert_eq!(found.serial, openssl(&["-serial"]));
    assert_eq!(found.sha256(), openssl(&["-fingerprint", "-sha256"]).to_lowercase());
    assert_eq!(found.sha1(), openssl(&["-fingerprint", "-sha1"]).to_lowercase());
}
