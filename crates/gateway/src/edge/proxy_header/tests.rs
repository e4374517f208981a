//! Headers of both versions, split anywhere, with a client's bytes behind them.

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::outcome::traced;

const BEHIND: &[u8] = b"\x10\x0c\0\x04MQTT";

fn balancer() -> PeerAddress {
    ([192, 0, 2, 1], 1).into()
}

/// A header of version 2 with this command and family, and this behind its fixed part.
fn v2(command: u8, family: u8, rest: &[&[u8]]) -> Vec<u8> {
    let rest = rest.concat();
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&V2[..], &[0x20 | command, family], &len, &rest].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

/// 192.0.2.7:4711 to 198.51.100.1:8883
const IPV4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 0x22, 0xB3];

/// What comes of bytes that are sent in these parts, and what is left in the socket.
async fn received(parts: &[&[u8]], certificate: bool) -> (Result<(PeerAddress, ProxyHeader), Reject>, Vec<u8>) {
    let (mut far, near) = UnixStream::pair().unwrap();
    let mut near = Socket::Unix(near);
    let reading = async {
        let read = read(&mut near, balancer(), certificate).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (read, rest)
    };
    let writing = async {
        for part in parts {
            // A reader that has failed closes.
            let _ = far.write_all(part).await;
            tokio::task::yield_now().await;
        }
        drop(far);
    };
    tokio::join!(reading, writing).0
}

async fn reject(bytes: &[u8]) -> (Reject, String) {
    let (reject, trace) = traced(received(&[bytes], true)).await;
    (reject.0.unwrap_err(), trace.detail.unwrap_or_default().into())
}

#[tokio::test]
async fn each_kind_of_header_yields_an_address_and_leaves_what_is_behind_it() {
    let of = |text: &str| PeerAddress::Ip(text.parse().unwrap());
    let ipv6 = [&[0x20, 1, 0xD, 0xB8][..], &[0; 11], &[1], &[0; 16], &[0, 7, 0, 8]].concat();
    let unix = [b'/'; 216];
    for (header, expected) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8883\r\n".to_vec(), of("192.0.2.7:4711")),
        (b"PROXY TCP6 2001:db8::1 ::1 7 8\r\n".to_vec(), of("[2001:db8::1]:7")),
        (b"PROXY UNKNOWN\r\n".to_vec(), balancer()),
        (b"PROXY UNKNOWN ffff:f... 1 2 3\r\n".to_vec(), balancer()),
        (v2(1, 0x11, &[IPV4]), of("192.0.2.7:4711")),
        (v2(1, 0x21, &[&ipv6]), of("[2001:db8::1]:7")),
        (v2(1, 0x31, &[&unix]), PeerAddress::Unix),
        (v2(1, 0x00, &[]), balancer()),
        // LOCAL, by balancers' health checks: addresses do not count.
        (v2(0, 0x00, &[]), balancer()),
        (v2(0, 0x11, &[IPV4]), balancer()),
        (v2(0, 0x11, &[&IPV4[..3]]), balancer()),
        (v2(0, 0xFF, &[IPV4, &tlv(SSL, &[1])]), balancer()),
        (v2(0, 0x31, &[&unix]), balancer()),
        // Another vendor's TLVs, padding, no SSL.
        (v2(1, 0x11, &[IPV4, &tlv(0xEA, &[1; 600]), &tlv(4, &[0; 9])]), of("192.0.2.7:4711")),
    ] {
        for cut in [0, 1, 5, 6, 11, 12, 13, 15, 16, 17, header.len() - 1, header.len()] {
            let bytes = [&header, BEHIND].concat();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (read, rest) = received(&[first, second], false).await;
            let text = header.escape_ascii();
            assert_eq!(read.map(|(address, _)| address), Ok(expected), "{text} at {cut}");
            assert_eq!(rest, BEHIND, "{text} at {cut}");
        }
        let bytes: Vec<_> = header.chunks(1).collect();
        assert_eq!(received(&bytes, false).await.0.map(|(address, _)| address), Ok(expected), "byte by byte");
    }
}

#[tokio::test]
async fn what_is_no_header_or_not_a_whole_one_is_rejected() {
    use Reject::{ProxyHeaderInvalid as Invalid, ProxyHeaderMissing as Missing};
    let valid = v2(1, 0x11, &[IPV4]);
    let long = v2(1, 0x11, &[IPV4, &tlv(0xEA, &[0; MAX_V2])]);
    for (bytes, expected, detail) in [
        (b"".as_slice(), Missing, "closed before"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03zzzz", Missing, "begins with TLS"),
        (b"\x10\x0c\0\x04MQTT", Missing, "begins with MQTT"),
        (b"GET / HTTP/1.1\r\n", Missing, "begins with text"),
        (b"PROXY UNKNOWNxx\r\n", Invalid, "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 8883\r\n", Invalid, "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 08883\r\n", Invalid, "malformed"),
        (&v2(1, 0x32, &[&[0; 216]]), Invalid, "datagram"),
        (b"\r\n\r\n\0\r\nQUIX", Missing, "begins with"),
        (b"PROXY", Invalid, "closed within"),
        (b"PROXY TCP4 192.0.2.7 198.", Invalid, "closed within"),
        (&valid[..14], Invalid, "closed within"),
        (&valid[..20], Invalid, "closed within"),
        (b"PROXY TCP5 192.0.2.7 198.51.100.1 4711 8883\r\n", Invalid, "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 88830\r\n", Invalid, "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8883\n", Invalid, "malformed"),
        (b"PROXY TCP4 2001:db8::1 ::1 4711 8883\r\n", Invalid, "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8883 9\r\n", Invalid, "malformed"),
        (b"PROXY TCP4\r\n", Invalid, "malformed"),
        (&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat(), Invalid, "no end within 107"),
        (&v2(2, 0x11, &[IPV4]), Invalid, "malformed"),
        (&v2(1, 0x11, &[&IPV4[..11]]), Invalid, "malformed"),
        (&v2(1, 0x41, &[IPV4]), Invalid, "malformed"),
        (&v2(1, 0x12, &[IPV4]), Invalid, "datagram"),
        (&v2(1, 0x11, &[IPV4, &[4, 0, 9, 0]]), Invalid, "a TLV is longer"),
        (&v2(1, 0x11, &[IPV4, &[4]]), Invalid, "a TLV is longer"),
        // At its announcement.
        (&long[..16], Invalid, "announces 1055 bytes"),
    ] {
        let (reject, why) = reject(bytes).await;
        assert_eq!(reject, expected, "{}: {why}", bytes.escape_ascii());
        assert!(why.contains(detail), "{}: {why}", bytes.escape_ascii());
    }
}

fn ssl(flags: u8, verify: u32, tlvs: &[Vec<u8>]) -> Vec<u8> {
    tlv(SSL, &[&[flags][..], &verify.to_be_bytes(), &tlvs.concat()].concat())
}

fn ssl_of(tlvs: &[Vec<u8>], certificate: bool) -> Result<Option<ProxySsl>, &'static str> {
    let rest: Vec<&[u8]> = std::iter::once(IPV4).chain(tlvs.iter().map(Vec::as_slice)).collect();
    parse(&v2(1, 0x11, &rest), balancer(), certificate).map(|(_, header)| header.ssl)
}

#[test]
fn a_common_name_counts_only_if_it_is_one_and_was_verified() {
    let cn = |name: &[u8]| tlv(SSL_CN, name);
    for (flags, verify, tlvs, verified, expected) in [
        (0b101, 0, vec![cn(b"thing001")], true, Some("thing001")),
        (0b011, 0, vec![tlv(0x21, b"TLSv1.3"), cn("größe".as_bytes()), tlv(0x23, b"X")], true, Some("größe")),
        // HAProxy with `verify optional` and `ca-ignore-err`.
        (0b111, 18, vec![cn(b"thing001")], false, None),
        (0b001, 0, vec![cn(b"thing001")], false, None),
        (0b110, 0, vec![cn(b"thing001")], false, None),
        (0b111, 0, vec![], true, None),
        (0b111, 0, vec![cn(b"")], true, None),
        (0b111, 0, vec![cn(b"thing\xFF")], true, None),
        (0b111, 0, vec![cn(b"thing001\0.evil")], true, None),
        (0b111, 0, vec![cn(b"thing001"), cn(b"thing002")], true, None),
        (0b111, 0, vec![cn(b"thing001"), cn(b"thing\xFF")], true, None),
    ] {
        let of = ssl_of(&[ssl(flags, verify, &tlvs)], true);
        assert_eq!(of, Ok(Some(ProxySsl { verified, cn: expected.map(Into::into) })), "{flags:b} {verify} {tlvs:?}");
        assert_eq!(ssl_of(&[ssl(flags, verify, &tlvs)], false), Ok(None), "only where it counts");
    }
    assert_eq!(ssl_of(&[], true), Ok(None));
    assert_eq!(ssl_of(&[tlv(SSL, &[1, 0, 0, 0])], true), Err("its SSL TLV is malformed"));
    assert_eq!(ssl_of(&[ssl(7, 0, &[vec![SSL_CN, 0, 9, b'a']])], true), Err("its SSL TLV is malformed"));
    let twice = [ssl(7, 0, &[cn(b"a")]), ssl(7, 0, &[cn(b"b")])];
    assert_eq!(ssl_of(&twice, true), Err("it has two SSL TLVs"));
}

#[test]
fn names_of_the_connection_and_its_checksum() {
    let of = |tlvs: &[&[u8]]| parse(&v2(1, 0x11, &[&[IPV4][..], tlvs].concat()), balancer(), false).map(|it| it.1);
    let named = of(&[&tlv(2, b"mqtt.example.com"), &tlv(5, b"A1:2")]).unwrap();
    assert_eq!(named.authority.as_deref(), Some("mqtt.example.com"));
    assert_eq!(named.unique_id.as_deref(), Some("A1:2"));
    assert_eq!(of(&[&tlv(5, b"a\n\xFF")]).unwrap().unique_id.as_deref(), Some("610aff"));
    assert_eq!(of(&[&tlv(2, b"\xFF")]).unwrap().authority, None);
    assert_eq!(of(&[&tlv(CRC, &[0; 3])]).unwrap_err(), "its checksum has not four bytes");
    let mut header = v2(1, 0x11, &[IPV4, &tlv(CRC, &[0; 4]), &tlv(5, b"A1:2")]);
    let sum = crc32c::crc32c(&header).to_be_bytes();
    let at = header.len() - 7 - 4;
    header[at..at + 4].copy_from_slice(&sum);
    assert!(parse(&header, balancer(), false).is_ok());
    header[16] ^= 1;
    assert_eq!(parse(&header, balancer(), false).unwrap_err(), "its checksum is wrong");
}

proptest! {
    #[test]
    fn another_reader_reads_the_same(
        source: std::net::SocketAddr, destination: std::net::SocketAddr, version in 1..3_u8, id in "[a-z0-9]{0,40}",
    ) {
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        // Scopes and flow labels are no part of the header.
        let plain = |it: std::net::SocketAddr| std::net::SocketAddr::new(it.ip(), it.port());
        let (source, destination) = (plain(source), plain(destination));
        let bytes = if version == 1 {
            ppp::v1::Addresses::from((source, destination)).to_string().into_bytes()
        } else {
            let command = ppp::v2::Version::Two | ppp::v2::Command::Proxy;
            let builder = ppp::v2::Builder::with_addresses(command, ppp::v2::Protocol::Stream, (source, destination));
            builder.write_tlv(ppp::v2::Type::NoOp, id.as_bytes()).unwrap().build().unwrap()
        };
        let read = parse(&bytes, balancer(), true).map(|(address, _)| address);
        prop_assert_eq!(read, Ok(PeerAddress::Ip(source)));
    }
}
