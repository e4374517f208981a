//! The table of [`evaluate`]: what a client claims, what the configuration of the moment demands, and the verdict.
//! Without sockets and without waiting.

use std::fs;

use portcullis_testkit::{Pki, password_file};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::ProcessState;
use crate::evidence::Authenticated;
use crate::peer::KeyFormat;
use crate::pki::{ChainCertificate, IssuerId, Serial, VerifiedChain};
use crate::util::clock::now;
use crate::util::crypto::{sha256, tag};
use CloseReason::{
    AddressDenied, CaRemoved, CertificateExpired, CertificateRevoked, CredentialWithdrawn, TokenExpired,
};

const URL: &str = "http://127.0.0.1:1/auth";
const KEYS: &str = "thing001:0000000000000000000000000000000000000000000000000000000000000000\n";
const PSK: &str = "thing001:00112233445566778899aabbccddeeff\n";

/// Files that configurations name, and the evidence that goes with them.
struct Fixture {
    dir: TempDir,
    pki: Pki,
}

/// One row.
#[expect(clippy::option_option, reason = "as in `Proof`: pending, nothing, proved")]
struct Case<'a> {
    name: &'static str,
    runtime: &'a Runtime,
    /// The outer `None`: the handshake is not over.
    from_tls: Option<Option<Evidence>>,
    from_authenticator: Option<Option<Evidence>>,
    at: i64,
    verdict: Result<(), CloseReason>,
}

impl Fixture {
    fn new() -> Self {
        let (dir, pki) = (tempfile::tempdir().unwrap(), Pki::new());
        pki.device("thing001");
        fs::write(dir.path().join("keys.txt"), KEYS).unwrap();
        fs::write(dir.path().join("psk.txt"), PSK).unwrap();
        Self { dir, pki }
    }

    /// A configuration of one listener: more of its keys, its TLS table if it has one, and further tables.
    fn runtime(&self, listener: &str, tls: Option<&str>, tables: &str) -> Runtime {
        let protocol = if tls.is_some() { "tls" } else { "tcp" };
        let listener = format!(
            "[[listener]]\nname = \"devices\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n\
             protocol = \"{protocol}\"\n{listener}\n"
        );
        let upstream = "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1\"]\n";
        self.load(&format!("{listener}{}\n{upstream}{tables}", tls.unwrap_or_default()))
    }

    fn load(&self, configuration: &str) -> Runtime {
        let path = self.dir.path().join("portcullis.toml");
        fs::write(&path, configuration).unwrap();
        let loaded = Runtime::load(&path, &ProcessState::new());
        loaded.unwrap_or_else(|diagnostics| panic!("{configuration}\n{}", diagnostics.render(false))).runtime
    }

    fn psk(&self) -> String {
        format!("[listener.tls]\n[listener.tls.psk]\nformat = \"hex\"\nfile = {:?}\n", self.dir.path().join("psk.txt"))
    }

    fn raw_keys(&self) -> String {
        let file = self.dir.path().join("keys.txt");
        format!("{}[listener.tls.raw_keys]\nfile = {file:?}\n", self.pki.listener_tls_without_ca())
    }

    /// A TLS table with CRLs. The trust anchors name the intermediate CA too: a handshake would have made it known, and
    /// without its key its CRL cannot be verified.
    fn tls_with_crl(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.pki.dir().join(name)).unwrap();
        let bundle = self.dir.path().join("bundle.pem");
        fs::write(&bundle, read("root.pem") + &read("intermediate.pem")).unwrap();
        format!("{}client_ca = {bundle:?}\ncrl = [{:?}]\n", self.pki.listener_tls_without_ca(), self.pki.crls())
    }

    /// As it is verified in a handshake.
    fn chain(&self) -> VerifiedChain {
        let mut path = CertificateDer::pem_file_iter(self.pki.chain("thing001")).unwrap().map(Result::unwrap);
        let (leaf, intermediate) = (path.next().unwrap(), path.next().unwrap());
        let root = CertificateDer::from_pem_file(self.pki.root()).unwrap();
        let link = |der: &CertificateDer<'_>, issuer: &CertificateDer<'_>| {
            let (certificate, issuer) = (parse(der), parse(issuer));
            ChainCertificate {
                issuer: IssuerId::new(sha256(&[issuer.subject().as_raw(), issuer.public_key().raw].concat())),
                serial: Serial::new(certificate.raw_serial()).unwrap(),
                not_before: certificate.validity().not_before.timestamp(),
                not_after: certificate.validity().not_after.timestamp(),
                distribution_points: None,
                responder: None,
            }
        };
        VerifiedChain::new(sha256(&leaf), vec![link(&leaf, &intermediate), link(&intermediate, &root)]).unwrap()
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).unwrap().1
}

fn authenticated(by: &str, what: Authenticated) -> Evidence {
    Evidence::Authenticated { by: by.into(), what }
}

#[expect(clippy::option_option, clippy::ref_option, reason = "a field of a row")]
fn proof(stage: &Option<Option<Evidence>>) -> Proof<'_> {
    match stage {
        None => Proof::Pending,
        Some(None) => Proof::Nothing,
        Some(Some(evidence)) => Proof::Proved(evidence),
    }
}

fn assert_verdicts(cases: Vec<Case<'_>>) {
    for case in cases {
        let client = ClientEvidence {
            listener: "devices",
            address: Some(([192, 0, 2, 1], 1).into()),
            socket: ([192, 0, 2, 1], 1).into(),
            balancer: None,
            http_proxy: None,
            origin: None,
            from_tls: proof(&case.from_tls),
            from_authenticator: proof(&case.from_authenticator),
        };
        assert_eq!(evaluate(client, case.runtime, case.at), case.verdict, "{}", case.name);
    }
}

#[test]
fn what_tls_proved_is_compared_with_what_the_listener_requires_now() {
    let (fixture, other) = (Fixture::new(), Pki::named("Other"));
    let (pki, now) = (&fixture.pki, now());
    let (chain, optional) = (fixture.chain(), format!("{}client_auth = \"optional\"\n", pki.listener_tls()));
    let (before, after) = (chain.certificates()[0].not_before, chain.not_after());
    let chain = || Some(Evidence::Chain(chain.clone()));
    let key =
        |octet, name: &str, format| Some(Evidence::RawKey { fingerprint: [octet; 32], name: name.into(), format });
    let raw = |octet| key(octet, "thing001", KeyFormat::Raw);
    let in_certificate = || key(0, "thing001", KeyFormat::Certificate);
    let of = |tls: &str| fixture.runtime("", Some(tls), "");
    let required = of(&pki.listener_tls());
    let optional = of(&optional);
    let depth = of(&format!("{}verify_depth = 0\n", pki.listener_tls()));
    let no_ca = of(&pki.listener_tls_without_ca());
    let other_ca = of(&format!("{}client_ca = {:?}\n", pki.listener_tls_without_ca(), other.root()));
    let checked = of(&fixture.tls_with_crl());
    pki.revoke("thing001");
    let revoked = of(&fixture.tls_with_crl());
    let missing = of(&format!("{}crl = [{:?}]\n", pki.listener_tls(), other.crls()));
    let allowed = of(&format!("{}crl = [{:?}]\ncrl_missing = \"allow\"\n", pki.listener_tls(), other.crls()));
    let raw_keys = of(&fixture.raw_keys());
    let in_certificates = of(&format!("{}certificates = true\n", fixture.raw_keys()));
    let clear = fixture.runtime("", None, "");
    let denied = fixture.runtime("deny = [\"192.0.2.0/24\"]", Some(&pki.listener_tls()), "");
    let case = |name, runtime, from_tls, at, verdict| Case {
        name,
        runtime,
        from_tls: Some(from_tls),
        from_authenticator: Some(None),
        at,
        verdict,
    };
    assert_verdicts(vec![
        case("a chain, required", &required, chain(), now, Ok(())),
        case("a chain, optional", &optional, chain(), now, Ok(())),
        case("a chain, in its last second", &required, chain(), after, Ok(())),
        case("a chain, a second later", &required, chain(), after + 1, Err(CertificateExpired)),
        case("a chain that is not yet valid, after the clock was set back", &required, chain(), before - 1, Ok(())),
        case("a chain that is too long now", &depth, chain(), now, Err(CaRemoved)),
        case("a chain, where no certificates are asked for", &no_ca, chain(), now, Err(CaRemoved)),
        case("a chain of a CA that was replaced", &other_ca, chain(), now, Err(CaRemoved)),
        case("a chain, in the clear", &clear, chain(), now, Err(CaRemoved)),
        case("a chain, where raw keys are required", &raw_keys, chain(), now, Err(CaRemoved)),
        case("a chain that no CRL lists", &checked, chain(), now, Ok(())),
        case("a chain that a CRL lists", &revoked, chain(), now, Err(CertificateRevoked)),
        case("a chain whose CRLs are lost, which ends no session", &missing, chain(), now, Ok(())),
        case("a chain without its CRLs, which is allowed", &allowed, chain(), now, Ok(())),
        case("nothing, where a certificate is required", &required, None, now, Err(CredentialWithdrawn)),
        case("nothing, where a raw key is required", &raw_keys, None, now, Err(CredentialWithdrawn)),
        case("nothing, where a certificate is optional", &optional, None, now, Ok(())),
        case("nothing, where no certificates are asked for", &no_ca, None, now, Ok(())),
        case("nothing, in the clear", &clear, None, now, Ok(())),
        case("a raw key that is listed", &raw_keys, raw(0), now, Ok(())),
        case("a raw key that is not listed any more", &raw_keys, raw(1), now, Err(CredentialWithdrawn)),
        case(
            "a raw key that has another name now",
            &raw_keys,
            key(0, "thing002", KeyFormat::Raw),
            now,
            Err(CredentialWithdrawn),
        ),
        case("a key in a certificate, where it may be", &in_certificates, in_certificate(), now, Ok(())),
        case(
            "a key in a certificate, where it no longer may",
            &raw_keys,
            in_certificate(),
            now,
            Err(CredentialWithdrawn),
        ),
        case("a raw key, where it may be in a certificate", &in_certificates, raw(0), now, Ok(())),
        case("a raw key, where certificates are required", &required, raw(0), now, Err(CredentialWithdrawn)),
        case("a raw key, in the clear", &clear, raw(0), now, Err(CredentialWithdrawn)),
        case("an address that is denied now", &denied, chain(), now, Err(AddressDenied)),
        case("an address that is denied now, in the handshake", &denied, None, now, Err(AddressDenied)),
    ]);
}

#[test]
fn a_handshake_that_is_not_over_is_not_judged_by_what_it_has_not_proved() {
    let fixture = Fixture::new();
    let mut configurations = vec![fixture.pki.listener_tls(), fixture.raw_keys()];
    if cfg!(feature = "psk") {
        configurations.push(fixture.psk());
    }
    for tls in configurations {
        let (same, denied) =
            (fixture.runtime("", Some(&tls), ""), fixture.runtime("deny = [\"192.0.2.0/24\"]", Some(&tls), ""));
        let case = |name, runtime, verdict| Case {
            name,
            runtime,
            from_tls: None,
            from_authenticator: None,
            at: now(),
            verdict,
        };
        assert_verdicts(vec![
            case("in the handshake", &same, Ok(())),
            case("in the handshake, from an address that is denied", &denied, Err(AddressDenied)),
        ]);
    }
}

#[cfg(feature = "psk")]
#[test]
fn a_pre_shared_key_is_compared_with_the_file() {
    let fixture = Fixture::new();
    let (listed, required) =
        (fixture.runtime("", Some(&fixture.psk()), ""), fixture.runtime("", Some(&fixture.pki.listener_tls()), ""));
    let key = hex::decode(PSK.trim().split_once(':').unwrap().1).unwrap();
    let psk = |identity: &str, key: &[u8]| Some(Evidence::Psk { identity: identity.into(), tag: tag(key) });
    let case = |name, runtime, from_tls, verdict| Case {
        name,
        runtime,
        from_tls: Some(from_tls),
        from_authenticator: Some(None),
        at: now(),
        verdict,
    };
    assert_verdicts(vec![
        case("listed", &listed, psk("thing001", &key), Ok(())),
        case("of a key that was changed", &listed, psk("thing001", b"other"), Err(CredentialWithdrawn)),
        case("of an identity that was removed", &listed, psk("thing002", &key), Err(CredentialWithdrawn)),
        case("where certificates are required", &required, psk("thing001", &key), Err(CredentialWithdrawn)),
        case("nothing, where a key is required", &listed, None, Err(CredentialWithdrawn)),
        case("a chain, where a key is required", &listed, Some(Evidence::Chain(fixture.chain())), Err(CaRemoved)),
    ]);
}

#[test]
fn what_an_authenticator_verified_is_compared_with_what_it_would_say_now() {
    let (fixture, now) = (Fixture::new(), now());
    let users = password_file(fixture.dir.path(), "users", &[("thing001", "secret")]);
    let hash = fs::read_to_string(fixture.dir.path().join("users")).unwrap();
    let hash = hash.trim().strip_prefix("thing001:").unwrap().to_owned();
    let service = |url: &str| format!("[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = \"{url}\"\n");
    let asked = |names: &str, tables: &str| fixture.runtime(&format!("authenticate = {names}"), None, tables);
    let both = asked("[\"users\", \"service\"]", &format!("{users}{}", service(URL)));
    let other_url = asked("[\"users\", \"service\"]", &format!("{users}{}", service("http://127.0.0.1:2/auth")));
    let unasked = asked("[\"service\"]", &format!("{users}{}", service(URL)));
    let removed = asked("[\"service\"]", &service(URL));
    let other_kind = asked("[\"users\"]", &service(URL).replace("\"service\"", "\"users\""));
    let nobody = fixture.runtime("", None, &users);
    let password = |user: &str, hash: &str| {
        let what = Authenticated::Password { user: user.into(), tag: tag(hash.as_bytes()) };
        Some(Some(authenticated("users", what)))
    };
    let response = |expires_at| {
        let what = Authenticated::Response { service: tag(URL.as_bytes()), expires_at };
        Some(Some(authenticated("service", what)))
    };
    let case = |name, runtime, from_authenticator, verdict| Case {
        name,
        runtime,
        from_tls: Some(None),
        from_authenticator,
        at: now,
        verdict,
    };
    let thing001 = || password("thing001", &hash);
    assert_verdicts(vec![
        case("a password", &both, thing001(), Ok(())),
        case("a password that was changed", &both, password("thing001", "$7$other"), Err(CredentialWithdrawn)),
        case("a password of a user who was removed", &both, password("thing002", &hash), Err(CredentialWithdrawn)),
        case("a password of an authenticator not asked any more", &unasked, thing001(), Err(CredentialWithdrawn)),
        case("a password of an authenticator that was removed", &removed, thing001(), Err(CredentialWithdrawn)),
        case("a password, where the name is another kind's", &other_kind, thing001(), Err(CredentialWithdrawn)),
        case("a password, where nobody is asked any more", &nobody, thing001(), Ok(())),
        case("a response", &both, response(None), Ok(())),
        case("a response, in its last second", &both, response(Some(now + 1)), Ok(())),
        case("a response that has expired", &both, response(Some(now)), Err(TokenExpired)),
        case("a response of another service", &other_url, response(None), Err(CredentialWithdrawn)),
        case("nothing, where nobody was asked and nobody is", &nobody, Some(None), Ok(())),
        case("nothing, where somebody is asked now", &both, Some(None), Err(CredentialWithdrawn)),
        case("nothing yet: authenticators are still to be asked", &both, None, Ok(())),
    ]);
}

#[test]
fn a_session_outlives_its_listener_where_another_accepts_what_it_rests_on() {
    let (fixture, other) = (Fixture::new(), Pki::named("Other"));
    let listener = |name: &str, tls: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\nprotocol = \"tls\"\n{tls}"
        )
    };
    let upstream = "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1\"]\n";
    let of = |tls: &[&str]| {
        let listeners: Vec<_> =
            tls.iter().enumerate().map(|(place, tls)| listener(&format!("other{place}"), tls)).collect();
        fixture.load(&format!("{}{upstream}", listeners.concat()))
    };
    let (good, foreign) = (fixture.pki.listener_tls(), other.listener_tls());
    let (renamed, replaced, either) = (of(&[&good]), of(&[&foreign]), of(&[&foreign, &good]));
    let open = of(&[&foreign, &fixture.pki.listener_tls_without_ca()]);
    let denied = fixture.runtime("deny = [\"192.0.2.0/24\"]", Some(&good), "");
    fixture.pki.revoke("thing001");
    let revoked = of(&[&good, &fixture.tls_with_crl()]);
    let case = |name, runtime, from_tls, verdict| Case {
        name,
        runtime,
        from_tls: Some(from_tls),
        from_authenticator: Some(None),
        at: now(),
        verdict,
    };
    let chain = || Some(Evidence::Chain(fixture.chain()));
    assert_verdicts(vec![
        case("renamed", &renamed, chain(), Ok(())),
        case("only listeners of another CA are left", &replaced, chain(), Err(CaRemoved)),
        case("one of those that are left trusts its CA", &either, chain(), Ok(())),
        case("one of those that are left knows that it is revoked", &revoked, chain(), Err(CertificateRevoked)),
        case("it proved nothing, where a certificate is required", &renamed, None, Err(CredentialWithdrawn)),
        case("it proved nothing, where that is enough", &open, None, Ok(())),
        case("its address is denied where its certificate is accepted", &denied, chain(), Err(AddressDenied)),
    ]);
}
