//! Vectors by section of RFC 6455, and a client that does not read.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A frame of a client, masked, with this first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = match payload.len() {
        len @ 0..126 => vec![0x80 | u8::try_from(len).unwrap()],
        len @ 126..65_536 => [&[0xFE][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
        len => [&[0xFF][..], &(len as u64).to_be_bytes()].concat(),
    };
    let masked: Vec<u8> = payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    [&[first][..], &len, &MASK, &masked].concat()
}

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

/// What the server reads of these bytes, and all that it sends until it has closed the connection.
async fn received(bytes: &[u8]) -> (io::Result<Vec<u8>>, Vec<u8>) {
    let (mut far, near) = duplex(1 << 20);
    far.write_all(bytes).await.unwrap();
    let mut socket = WebSocket::new(near);
    let mut read = Vec::new();
    far.shutdown().await.unwrap();
    let result = socket.read_to_end(&mut read).await.map(|_| read);
    socket.shutdown().await.unwrap();
    drop(socket);
    let mut sent = Vec::new();
    far.read_to_end(&mut sent).await.unwrap();
    (result, sent)
}

fn close(code: u16) -> Vec<u8> {
    [&[CLOSE, 2][..], &code.to_be_bytes()].concat()
}

#[tokio::test]
async fn packets_are_cut_over_frames_and_several_are_in_one() {
    let long = vec![7; 70_000];
    for (frames, expected) in [
        (vec![frame(BINARY, b"ab")], b"ab".to_vec()),
        (vec![frame(BINARY, b"a"), frame(BINARY, b""), frame(BINARY, b"bcdefg")], b"abcdefg".to_vec()),
        (vec![frame(BINARY, &long[..200]), frame(BINARY, &long[..126]), frame(BINARY, &long)], vec![7; 70_326]),
        // Fragments [5.4], with control frames between them [5.5].
        (
            vec![frame(0x02, b"a"), frame(0, b"b"), frame(PONG, b"x"), frame(0x80, b"c"), frame(BINARY, b"d")],
            b"abcd".to_vec(),
        ),
        // Nothing behind Close counts [5.5.1].
        (vec![frame(BINARY, b"a"), frame(CLOSE, b""), frame(BINARY, b"b")], b"a".to_vec()),
    ] {
        let (read, _) = received(&frames.concat()).await;
        assert_eq!(read.unwrap(), expected);
        fuzz_websocket(&frames.concat());
    }
}

#[tokio::test]
async fn violations_have_their_codes() {
    let long_header = |len: u64| [&[BINARY, 0xFF][..], &len.to_be_bytes(), &MASK].concat();
    for (section, bytes, code, text) in [
        ("5.1", vec![BINARY, 1, b'a'], 1002, "not masked"),
        ("5.2", frame(0xC2, b"a"), 1002, "reserved bits"),
        ("5.2", frame(0xA2, b"a"), 1002, "reserved bits"),
        ("5.2", frame(0x92, b"a"), 1002, "reserved bits"),
        ("5.2", frame(0x83, b"a"), 1002, "reserved opcode"),
        ("5.2", frame(0x8B, b"a"), 1002, "reserved opcode"),
        ("5.2", long_header(1 << 63), 1002, "fewest bytes"),
        ("5.2", long_header(65_535), 1002, "fewest bytes"),
        ("5.2", [&[BINARY, 0xFE, 0, 125][..], &MASK].concat(), 1002, "fewest bytes"),
        ("5.4", frame(0x80, b"a"), 1002, "continues nothing"),
        ("5.4", [frame(0x02, b"a"), frame(BINARY, b"b")].concat(), 1002, "within another"),
        ("5.4", frame(0x09, b""), 1002, "fragmented"),
        ("5.5", frame(PING, &[0; 126]), 1002, "too long"),
        ("5.5.1", frame(CLOSE, b"\x03"), 1002, "half a status code"),
        ("7.4.1", frame(CLOSE, &1005_u16.to_be_bytes()), 1002, "not allowed"),
        ("7.4.2", frame(CLOSE, &999_u16.to_be_bytes()), 1002, "not allowed"),
        ("8.1", frame(CLOSE, b"\x03\xe8\xff"), 1007, "not UTF-8"),
        ("MQTT-6.0.0-1", frame(0x81, b"a"), 1003, "a text frame"),
        ("MQTT-6.0.0-1", frame(0x01, b"a"), 1003, "a text frame"),
    ] {
        let (read, sent) = received(&bytes).await;
        let error = read.unwrap_err().to_string();
        assert!(error.contains(text), "{section}: {error}");
        assert_eq!(sent, close(code), "{section}: {text}");
        fuzz_websocket(&bytes);
    }
}

#[tokio::test]
async fn pings_and_close_are_answered() {
    let (_, sent) = received(&[frame(PING, b"one"), frame(PING, b""), frame(CLOSE, &close(3000)[2..])].concat()).await;
    assert_eq!(sent, [b"\x8a\x03one\x8a\x00".as_slice(), &close(3000)].concat());
    let (_, sent) = received(&frame(CLOSE, b"")).await;
    assert_eq!(sent, [CLOSE, 0]);
    let (_, sent) = received(b"").await;
    assert_eq!(sent, close(1000), "an end without Close");
}

#[tokio::test]
async fn the_reason_of_the_gateway_is_told_once() {
    let (mut far, near) = duplex(100);
    let mut socket = WebSocket::new(near);
    socket.set_close_code(1008);
    socket.set_close_code(1000);
    socket.write_all(b"abc").await.unwrap();
    socket.shutdown().await.unwrap();
    assert!(socket.write_all(b"d").await.is_err());
    drop(socket);
    let mut sent = Vec::new();
    far.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent, [b"\x82\x03abc".as_slice(), &close(1008)].concat());
}

/// Reads frames of a server. Returns their payloads, and the number of pongs.
fn payloads(mut bytes: &[u8]) -> (Vec<u8>, usize) {
    let (mut payload, mut pongs) = (Vec::new(), 0);
    while let [first, second, rest @ ..] = bytes {
        let (len, rest) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            len => (usize::from(*len), rest),
        };
        match *first {
            BINARY => payload.extend_from_slice(&rest[..len]),
            PONG => pongs += 1,
            other => assert_eq!(other, CLOSE),
        }
        bytes = &rest[len..];
    }
    (payload, pongs)
}

#[tokio::test]
async fn frames_stay_whole_when_the_peer_takes_them_slowly_and_pings_need_bounded_memory() {
    let (mut far, near) = duplex(7);
    let mut socket = WebSocket::new(near);
    let message: Vec<u8> = (0..=255).cycle().take(40_000).collect();
    // Fills what is between both, and begins a frame.
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(matches!(Pin::new(&mut socket).poll_write(&mut cx, &message), Poll::Ready(Ok(MAX_PAYLOAD))));
    for _ in 0..1000 {
        for byte in frame(PING, &[9; 125]) {
            far.write_u8(byte).await.unwrap();
            let mut buffer = [0; 16];
            let read = Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(&mut buffer));
            assert!(read.is_pending());
        }
    }
    assert!(socket.outgoing.capacity() < 20_000 && socket.pong.is_some());
    let (writing, reading) = (
        async {
            socket.write_all(&message[MAX_PAYLOAD..]).await.unwrap();
            socket.shutdown().await.unwrap();
            assert_eq!(socket.outgoing.capacity(), 0, "an idle stream holds no buffer");
            drop(socket);
        },
        async {
            let mut sent = Vec::new();
            far.read_to_end(&mut sent).await.unwrap();
            sent
        },
    );
    let ((), sent) = tokio::join!(writing, reading);
    let (payload, pongs) = payloads(&sent);
    assert!(payload == message, "{} bytes", payload.len());
    assert_eq!(pongs, 1, "of the last ping");
}

#[tokio::test]
async fn frames_without_payload_do_not_keep_others_waiting() {
    let (mut far, near) = duplex(1 << 20);
    far.write_all(&frame(BINARY, b"").repeat(10_000)).await.unwrap();
    let mut socket = WebSocket::new(near);
    let mut buffer = [0; 16];
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(&mut buffer)).is_pending());
    let mut rest = Vec::new();
    far.shutdown().await.unwrap();
    drop(far);
    assert!(socket.read_to_end(&mut rest).await.is_ok_and(|read| read == 0));
}

#[test]
fn a_stream_costs_little_more_than_the_one_below() {
    assert!(size_of::<WebSocket<[u8; 32]>>() <= 32 + 168, "{}", size_of::<WebSocket<[u8; 32]>>());
}
