//! The header of the PROXY protocol for brokers. Enters: a client. Leaves: the bytes that come before the first of the
//! connection to the broker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader, SslInfo, Tlv};

use crate::config::tables::ProxyVersion;
use crate::peer::{Identity, Peer, TlsSession};

/// Types of TLVs that the standard leaves to implementations [proxy-protocol.txt, 2.2: PP2_TYPE_MIN_CUSTOM].
/// The identity of the client's pre-shared key.
const PSK_IDENTITY: u8 = 0xE0;
/// The name of the client's raw public key.
const KEY_NAME: u8 = 0xE1;
/// The SHA-256 of the client's raw public key, in hexadecimal.
const KEY_FINGERPRINT: u8 = 0xE2;

/// The longest name that is sent, in bytes: the header then has less than 1,024, which some receivers accept at most. A part of a longer one could be another's name.
const MAX_NAME: usize = 256;
/// The result of the verification of a certificate that is not there: any but 0 will do.
const NOT_VERIFIED: u32 = 1;
/// The position of version and command, and the command of a connection that is not the gateway's own.
const COMMAND: usize = 12;
const PROXY: u8 = 0x21;

/// The header for a client that is connected to the gateway at `listening`; `None`: to a Unix socket.
pub(super) fn of_client(version: ProxyVersion, peer: &Peer, listening: Option<SocketAddr>) -> Vec<u8> {
    let addresses = peer.address.ip().map(|ip| {
        let source = SocketAddr::new(ip, peer.address.port());
        // Of a client of a balancer that is connected by a Unix socket, the destination is not known.
        in_one_family(source, listening.unwrap_or_else(|| (unspecified(ip), 0).into()))
    });
    let mut bytes = Vec::with_capacity(256);
    match version {
        ProxyVersion::V1 => encode_v1(addresses, &mut bytes),
        ProxyVersion::V2 | ProxyVersion::V2Ssl => {
            let tlvs = if version == ProxyVersion::V2Ssl { tlvs_of(peer) } else { Vec::new() };
            encode_v2(&ProxyHeader::with_tlvs(addresses, tlvs), &mut bytes);
            bytes[COMMAND] = PROXY;
        }
    }
    bytes
}

/// The header for a connection of the gateway's own: LOCAL, or UNKNOWN.
pub(super) fn of_gateway(version: ProxyVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    match version {
        ProxyVersion::V1 => encode_v1(None, &mut bytes),
        ProxyVersion::V2 | ProxyVersion::V2Ssl => encode_v2(&ProxyHeader::with_local(), &mut bytes),
    }
    bytes
}

fn encode_v1(addresses: Option<ProxiedAddress>, bytes: &mut Vec<u8>) {
    let header = addresses.map_or_else(ProxyHeader::with_local, ProxyHeader::with_address);
    header.encode_v1(bytes).expect("both addresses are of one family, and there are no TLVs");
}

fn encode_v2(header: &ProxyHeader<'_>, bytes: &mut Vec<u8>) {
    header.encode_v2(bytes).expect("both addresses are of one family, and TLVs are bounded");
}

/// A header has one family: of two, IPv4 is mapped to IPv6.
fn in_one_family(source: SocketAddr, destination: SocketAddr) -> ProxiedAddress {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return ProxiedAddress::stream(source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    ProxiedAddress::stream(mapped(source), mapped(destination))
}

const fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// What the handshake of the client proved. What a balancer in front of the gateway says of a certificate is not passed on.
fn tlvs_of(peer: &Peer) -> Vec<Tlv<'_>> {
    let mut tlvs: Vec<Tlv<'_>> = peer.tls.iter().map(|tls| Tlv::Ssl(ssl_of(peer, tls))).collect();
    match &peer.identity {
        Identity::None | Identity::Certificate(_) => {}
        Identity::Psk(psk) => {
            tlvs.extend(name(&psk.identity).map(|identity| Tlv::Custom(PSK_IDENTITY, identity.as_bytes().into())));
        }
        Identity::RawKey(key) => {
            let key_name = key.name.as_deref().and_then(name);
            tlvs.extend(key_name.map(|name| Tlv::Custom(KEY_NAME, name.as_bytes().into())));
            tlvs.push(Tlv::Custom(KEY_FINGERPRINT, hex::encode(key.fingerprint).into_bytes().into()));
        }
    }
    tlvs
}

/// Version, cipher suite, and the certificate's common name. A certificate that could not be verified is never here.
fn ssl_of(peer: &Peer, tls: &TlsSession) -> SslInfo<'static> {
    let certificate = peer.certificate();
    let has_certificate = certificate.is_some();
    let verify = if has_certificate { 0 } else { NOT_VERIFIED };
    let mut ssl = SslInfo::new(true, has_certificate && !tls.resumed, has_certificate, verify);
    ssl.append_tlv(Tlv::SslVersion(tls.version.into()));
    if let Some(cn) = certificate.and_then(|certificate| certificate.subject.cn.as_deref()).and_then(name) {
        ssl.append_tlv(Tlv::SslCn(cn.into()));
    }
    ssl.append_tlv(Tlv::SslCipher(openssl_name(&tls.cipher).into()));
    ssl
}

/// A name that brokers may take for an identity: whole, and without characters that end it for some.
fn name(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control))
}

/// OpenSSL's name of a cipher suite, which HAProxy sends, by its standard name.
fn openssl_name(suite: &str) -> String {
    let Some(rest) = suite.strip_prefix("TLS_").filter(|rest| rest.contains("_WITH_")) else { return suite.to_owned() };
    let rest = rest.replace("_WITH_", "_").replace("AES_", "AES").replace("CCM_8", "CCM8");
    let rest = match rest.strip_suffix("_SHA256") {
        Some(chacha) if chacha.ends_with("POLY1305") => chacha,
        _ => &rest,
    };
    rest.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::peer::{Certificate, PeerAddress, Psk, RawKey};

    fn peer(address: PeerAddress, identity: Identity, resumed: bool) -> Peer {
        let (version, cipher) = ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into());
        let tls = Some(TlsSession { version, cipher, sni: None, alpn: None, resumed });
        Peer::new(address, tls, identity)
    }

    fn client() -> PeerAddress {
        ([192, 0, 2, 7], 4711).into()
    }

    fn listening() -> SocketAddr {
        "198.51.100.1:8883".parse().unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        bytes.escape_ascii().to_string()
    }

    #[test]
    fn version_1_has_the_addresses_or_unknown() {
        let v1 = |address: &str, listening: Option<&str>| {
            let address = address.parse::<SocketAddr>().map_or(PeerAddress::Unix, PeerAddress::Ip);
            text(&of_client(ProxyVersion::V1, &Peer::plain(address), listening.map(|it| it.parse().unwrap())))
        };
        for (address, listening, expected) in [
            ("192.0.2.7:4711", Some("198.51.100.1:8883"), "PROXY TCP4 192.0.2.7 198.51.100.1 4711 8883\\r\\n"),
            ("[2001:db8::1]:7", Some("[::1]:8"), "PROXY TCP6 2001:db8::1 ::1 7 8\\r\\n"),
            ("192.0.2.7:4711", Some("[::1]:8"), "PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 8\\r\\n"),
            ("[::ffff:192.0.2.7]:1", Some("198.51.100.1:2"), "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\\r\\n"),
            ("192.0.2.7:4711", None, "PROXY TCP4 192.0.2.7 0.0.0.0 4711 0\\r\\n"),
            ("unix", None, "PROXY UNKNOWN\\r\\n"),
        ] {
            assert_eq!(v1(address, listening), expected);
        }
        assert_eq!(text(&of_gateway(ProxyVersion::V1)), "PROXY UNKNOWN\\r\\n");
    }

    #[test]
    fn version_2_distinguishes_clients_from_the_gateway() {
        const SIGNATURE: &str = "\\r\\n\\r\\n\\x00\\r\\nQUIT\\n";
        let v2 = |address| text(&of_client(ProxyVersion::V2, &Peer::plain(address), Some(listening())));
        let addresses = "\\xc0\\x00\\x02\\x07\\xc63d\\x01\\x12g\\\"\\xb3";
        assert_eq!(v2(client()), format!("{SIGNATURE}!\\x11\\x00\\x0c{addresses}"));
        assert_eq!(v2(PeerAddress::Unix), format!("{SIGNATURE}!\\x00\\x00\\x00"), "PROXY, UNSPEC");
        assert_eq!(text(&of_gateway(ProxyVersion::V2)), format!("{SIGNATURE} \\x00\\x00\\x00"), "LOCAL");
        assert_eq!(of_gateway(ProxyVersion::V2Ssl), of_gateway(ProxyVersion::V2));
    }

    fn certificate(cn: Option<&str>) -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(cn) = cn {
            params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        }
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Identity::Certificate(Arc::new(Certificate::from_der(certificate.der()).unwrap()))
    }

    /// Flags and verification result, and the TLVs within.
    fn ssl(identity: Identity, resumed: bool) -> (u8, u32, Vec<String>) {
        let bytes = of_client(ProxyVersion::V2Ssl, &peer(client(), identity, resumed), Some(listening()));
        let (header, _) = ProxyHeader::parse(&bytes, proxy_header::ParseConfig::default()).unwrap();
        let ssl = header.ssl().unwrap();
        let flags =
            u8::from(ssl.client_ssl()) | u8::from(ssl.client_cert_conn()) << 1 | u8::from(ssl.client_cert_sess()) << 2;
        let tlvs = ssl.tlvs().map(|tlv| format!("{:?}", tlv.unwrap())).collect();
        (flags, ssl.verify(), tlvs)
    }

    #[test]
    fn the_common_name_is_sent_with_a_verified_certificate_only() {
        let (version, cipher) = ("SslVersion(\"TLSv1.2\")", "SslCipher(\"ECDHE-RSA-AES128-GCM-SHA256\")");
        let all = |cn: &str| vec![version.to_owned(), format!("SslCn({cn:?})"), cipher.to_owned()];
        let without = || vec![version.to_owned(), cipher.to_owned()];
        assert_eq!(ssl(certificate(Some("thing001")), false), (7, 0, all("thing001")));
        assert_eq!(ssl(certificate(Some("thing001")), true), (5, 0, all("thing001")));
        assert_eq!(ssl(certificate(None), false), (7, 0, without()));
        assert_eq!(ssl(certificate(Some("thing001\0evil")), false), (7, 0, without()));
        assert_eq!(ssl(certificate(Some(&"x".repeat(MAX_NAME + 1))), false), (7, 0, without()));
        assert_eq!(ssl(Identity::None, false), (1, NOT_VERIFIED, without()));
    }

    #[test]
    fn other_identities_are_custom_tlvs_and_plain_clients_have_none() {
        let custom = |identity| {
            let bytes = of_client(ProxyVersion::V2Ssl, &peer(client(), identity, false), Some(listening()));
            let (header, _) = ProxyHeader::parse(&bytes, proxy_header::ParseConfig::default()).unwrap();
            let custom = header.tlvs().filter_map(|tlv| match tlv.unwrap() {
                Tlv::Custom(kind, value) => Some((kind, text(&value))),
                _ => None,
            });
            custom.collect::<Vec<_>>()
        };
        let psk = Psk { identity: "sensor-1".into(), tag: 7 };
        assert_eq!(custom(Identity::Psk(psk)), [(PSK_IDENTITY, "sensor-1".to_owned())]);
        let key = RawKey { fingerprint: [0xAB; 32], name: Some("thing".into()) };
        assert_eq!(custom(Identity::RawKey(key)), [(KEY_NAME, "thing".to_owned()), (KEY_FINGERPRINT, "ab".repeat(32))]);
        let plain = Peer::plain(client());
        assert_eq!(
            of_client(ProxyVersion::V2Ssl, &plain, Some(listening())),
            of_client(ProxyVersion::V2, &plain, Some(listening()))
        );
    }

    #[test]
    fn cipher_suites_have_the_names_of_openssl() {
        let of_rustls = crate::util::crypto::provider().cipher_suites.clone();
        let of_rustls =
            of_rustls.iter().filter_map(|suite| suite.suite().as_str()).filter(|it| !it.starts_with("TLS13"));
        let of_psk = [
            "TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256",
            "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256",
            "TLS_PSK_WITH_AES_128_GCM_SHA256",
            "TLS_PSK_WITH_AES_256_GCM_SHA384",
            "TLS_PSK_WITH_CHACHA20_POLY1305_SHA256",
            "TLS_PSK_WITH_AES_128_CBC_SHA256",
            "TLS_PSK_WITH_AES_128_CCM",
            "TLS_PSK_WITH_AES_128_CCM_8",
            "TLS_AES_128_GCM_SHA256",
        ];
        for standard in of_rustls.chain(of_psk) {
            assert_eq!(openssl_name(standard), openssl::ssl::cipher_name(standard), "{standard}");
        }
    }
}
