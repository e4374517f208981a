//! The pump between two streams in memory, with the codec that passes everything and with one that uses all a codec may.
//! Time is paused: waiting for a deadline takes none.

use std::future::poll_fn;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::time::timeout;

use super::*;
use crate::policy::PacketRules;
use crate::relay::opaque::Opaque;

/// Both ends of a session hold this many bytes that were not read.
const CAPACITY: usize = 64;
/// Longer than every deadline of the pump.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNACK: &[u8] = b"\x20\x03\x00\x00\x00";
const PINGRESP: &[u8] = b"\xd0\x00";
const SHUTTING_DOWN: &[u8] = b"\xe0\x02\x8b\x00";
const NOT_AUTHORIZED: &[u8] = b"\xe0\x02\x87\x00";

/// A session whose broker has sent `broker_first`; the client's and the broker's end of it.
fn session<C: Codec>(codec: C, broker_first: &[u8]) -> (Pump<C>, DuplexStream, DuplexStream) {
    let ((client, to_client), (broker, to_broker)) = (duplex(CAPACITY), duplex(CAPACITY));
    let (client, broker) = (Stream::Memory(client), Stream::Memory(broker));
    let ends = Ends { client, broker, broker_first: broker_first.to_vec(), max_disconnect: u32::MAX };
    (Pump::new(ends, codec), to_client, to_broker)
}

async fn run<C: Codec>(pump: &mut Pump<C>) -> CloseReason {
    poll_fn(|cx| pump.poll(cx, Until::AllClosed)).await
}

/// Pumps while `script` plays the client and the broker; the session is to outlast it.
async fn during<C: Codec, T>(pump: &mut Pump<C>, script: impl Future<Output = T>) -> T {
    tokio::select! {
        result = script => result,
        reason = run(pump) => panic!("the session ended: {reason:?}"),
    }
}

async fn expect(stream: &mut DuplexStream, bytes: &[u8]) {
    let mut buffer = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut buffer)).await.expect("bytes that do not come").unwrap();
    assert_eq!(buffer, bytes);
}

async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end that does not come").unwrap();
    bytes
}

/// Writes until nothing is taken any more; returns how many bytes were.
async fn flood(stream: &mut DuplexStream, byte: u8) -> usize {
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), stream.write(&[byte; CAPACITY])).await {
        taken += written.unwrap();
        assert!(taken < 100 * CHUNK, "nobody reads, and it still goes on");
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn bytes_pass_in_both_directions_and_are_counted() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), CONNACK);
    let script = async {
        expect(&mut client, CONNACK).await;
        client.write_all(b"not MQTT").await.unwrap();
        expect(&mut broker, b"not MQTT").await;
        broker.write_all(PINGRESP).await.unwrap();
        expect(&mut client, PINGRESP).await;
    };
    during(&mut pump, script).await;
    assert_eq!(pump.take_counts(), (8, 7));
    assert_eq!(pump.take_counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_slows_its_writer_and_nobody_else() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), CONNACK);
    let taken = during(&mut pump, flood(&mut client, b'x')).await;
    // Between the two: what the client's end holds, what was read once, what the broker's end holds.
    assert_eq!(taken, 3 * CAPACITY);
    let script = async {
        expect(&mut client, CONNACK).await;
        broker.write_all(PINGRESP).await.unwrap();
        expect(&mut client, PINGRESP).await;
        expect(&mut broker, &vec![b'x'; taken]).await;
    };
    during(&mut pump, script).await;
    assert_eq!((pump.client.buffered(), pump.broker.buffered()), (0, 0), "idle again");
}

#[tokio::test(start_paused = true)]
async fn a_half_that_stays_open_is_moved_until_it_ends() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), CONNACK);
    let script = async {
        client.write_all(b"\xe0\x00").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut broker).await, b"\xe0\x00");
        for _ in 0..3 {
            // In time each, later than the first deadline together.
            tokio::time::sleep(HALF_CLOSE / 2).await;
            broker.write_all(PINGRESP).await.unwrap();
        }
        broker.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, [CONNACK, PINGRESP, PINGRESP, PINGRESP].concat());
    };
    let (reason, ()) = tokio::join!(run(&mut pump), script);
    assert_eq!(reason, CloseReason::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_half_that_stays_silent_has_its_time_and_no_more() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), &[]);
    let begin = Instant::now();
    client.shutdown().await.unwrap();
    assert_eq!(run(&mut pump).await, CloseReason::HalfCloseTimeout);
    assert!(begin.elapsed() >= HALF_CLOSE && begin.elapsed() < HALF_CLOSE * 2, "{:?}", begin.elapsed());
    assert!(rest(&mut broker).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_ends_ends_the_client() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), CONNACK);
    let script = async {
        broker.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, CONNACK);
        client.shutdown().await.unwrap();
    };
    let (reason, ()) = tokio::join!(run(&mut pump), script);
    assert_eq!(reason, CloseReason::UpstreamClosed);
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_sent_before_it_was_lost_reaches_the_client() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), CONNACK);
    during(&mut pump, flood(&mut client, b'x')).await;
    broker.write_all(NOT_AUTHORIZED).await.unwrap();
    drop(broker);
    let script = async {
        expect(&mut client, &[CONNACK, NOT_AUTHORIZED].concat()).await;
        drop(client);
    };
    let (reason, ()) = tokio::join!(run(&mut pump), script);
    assert_eq!(reason, CloseReason::UpstreamDisconnected);
}

#[tokio::test(start_paused = true)]
async fn a_stop_between_packets_is_told_at_once() {
    let (mut pump, mut client, _broker) = session(Opaque::default(), CONNACK);
    pump.stop(CloseReason::Drained);
    assert_eq!(run(&mut pump).await, CloseReason::Drained);
    assert_eq!(pump.take_counts(), (0, 9));
    expect(&mut client, &[CONNACK, SHUTTING_DOWN].concat()).await;
    // What the client still sends is read, so that no reset overtakes the DISCONNECT.
    let script = async {
        client.write_all(b"\xc0\x00").await.unwrap();
        client.shutdown().await.unwrap();
    };
    tokio::join!(pump.close(), script);
    drop(pump);
    assert!(rest(&mut client).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_more_of_a_client_passes_once_it_may_do_nothing() {
    for (reason, passes) in [(CloseReason::CertificateRevoked, false), (CloseReason::Drained, true)] {
        // It does not read: it is disconnected after `STOP` only.
        let (mut pump, mut client, mut broker) = session(Opaque::default(), &b"\x30\x7e\x00\x01aaaaa".repeat(20));
        pump.stop(reason);
        client.write_all(PINGRESP).await.unwrap();
        let (ended, received) = tokio::join!(
            async {
                let ended = run(&mut pump).await;
                drop(pump);
                ended
            },
            rest(&mut broker)
        );
        assert_eq!((ended, !received.is_empty()), (reason, passes), "{received:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_within_a_packet_waits_for_the_boundary() {
    let (mut pump, mut client, mut broker) = session(Opaque::default(), b"\x30\x06\x00\x01a");
    pump.stop(CloseReason::Drained);
    let script = async {
        expect(&mut client, b"\x30\x06\x00\x01a").await;
        broker.write_all(b"b").await.unwrap();
        expect(&mut client, b"b").await;
        broker.write_all(b"cd\xd0\x00\x30").await.unwrap();
        assert_eq!(rest(&mut client).await, [b"cd", PINGRESP, SHUTTING_DOWN].concat());
    };
    let (reason, ()) = tokio::join!(run(&mut pump), script);
    assert_eq!(reason, CloseReason::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_no_boundary_that_does_not_come() {
    let (mut pump, mut client, _broker) = session(Opaque::default(), b"\x30\x06\x00\x01a");
    pump.stop(CloseReason::Drained);
    let begin = Instant::now();
    assert_eq!(run(&mut pump).await, CloseReason::Drained);
    assert!(begin.elapsed() >= STOP && begin.elapsed() < STOP * 2, "{:?}", begin.elapsed());
    drop(pump);
    assert_eq!(rest(&mut client).await, b"\x30\x06\x00\x01a");
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_mqtt_end_without_a_disconnect() {
    for (broker_first, more) in [(&b"\x00junk"[..], &b""[..]), (b"\x30\x06\x00\x01a", b"bcd\x00junk")] {
        let (mut pump, mut client, mut broker) = session(Opaque::default(), broker_first);
        pump.stop(CloseReason::Drained);
        broker.write_all(more).await.unwrap();
        assert_eq!(run(&mut pump).await, CloseReason::Drained);
        drop(pump);
        assert_eq!(rest(&mut client).await, [broker_first, more].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_may_not_be_told_is_closed() {
    let (mut pump, mut client, _broker) = session(Opaque::default(), CONNACK);
    pump.max_disconnect = 0;
    pump.stop(CloseReason::Drained);
    assert_eq!(run(&mut pump).await, CloseReason::Drained);
    drop(pump);
    assert_eq!(rest(&mut client).await, CONNACK);
}

/// Each letter is a packet, but `H` and the letter behind it are one: lower-case letters pass, `D` is dropped, `R` is
/// replaced, `Q` is answered to its sender and dropped, `X` ends the session.
#[derive(Default)]
struct Letters {
    has_held_back: bool,
}

impl Codec for Letters {
    const INSPECTS: bool = false;

    fn take<'c>(&mut self, _: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending> {
        let is_decided = |byte: &u8| byte.is_ascii_uppercase() || self.has_held_back;
        let (passed, others) = chunk.split_at(chunk.iter().position(is_decided).unwrap_or(chunk.len()));
        for letter in others {
            match letter {
                letter if std::mem::take(&mut self.has_held_back) => injected.forward.extend([b'H', *letter]),
                b'D' => {}
                b'H' => self.has_held_back = true,
                b'R' => injected.forward.extend(b"replaced"),
                b'Q' => injected.reply.push(b'a'),
                b'X' => {
                    injected.forward.splice(0..0, passed.iter().copied());
                    return Err(CloseReason::CaRemoved.into());
                }
                letter => injected.forward.push(*letter),
            }
        }
        Ok(passed)
    }

    fn disconnected(&self) -> Option<Direction> {
        None
    }

    fn set_rules(&mut self, _: Arc<PacketRules>) -> Result<(), Ending> {
        Ok(())
    }

    fn is_between_packets_to_broker(&self) -> bool {
        true
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        Boundary::At(chunk.len())
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_holds_back_drops_and_replaces() {
    let (mut pump, mut client, mut broker) = session(Letters::default(), b"gDg");
    let script = async {
        expect(&mut client, b"gg").await;
        client.write_all(b"abDcRd").await.unwrap();
        expect(&mut broker, b"abcreplacedd").await;
        client.write_all(b"eH").await.unwrap();
        expect(&mut broker, b"e").await;
        let early = timeout(Duration::from_secs(1), broker.read_u8()).await;
        assert!(early.is_err(), "half a packet was passed");
        client.write_all(b"if").await.unwrap();
        expect(&mut broker, b"Hif").await;
    };
    during(&mut pump, script).await;
    assert_eq!((pump.client.buffered(), pump.broker.buffered()), (0, 0), "idle again");
}

#[tokio::test(start_paused = true)]
async fn a_codec_answers_the_sender() {
    let (mut pump, mut client, mut broker) = session(Letters::default(), &[]);
    for _ in 0..2 {
        // Twice: each direction has the first turn once.
        let script = async {
            client.write_all(b"bQc").await.unwrap();
            expect(&mut client, b"a").await;
            expect(&mut broker, b"bc").await;
            broker.write_all(b"dQe").await.unwrap();
            expect(&mut broker, b"a").await;
            expect(&mut client, b"de").await;
        };
        during(&mut pump, script).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_client_sends_before_the_brokers_answer_passes_the_codec_too() {
    let ((client, mut to_client), (broker, mut to_broker)) = (duplex(CAPACITY), duplex(CAPACITY));
    let (mut codec, mut packets) = (Letters::default(), b"connect".to_vec());
    super::super::take_early(&mut codec, b"aDb", &mut packets).unwrap();
    assert_eq!(packets, b"connectab");
    let ends = Ends {
        client: Stream::Memory(client),
        broker: Stream::Memory(broker),
        broker_first: b"connack".to_vec(),
        max_disconnect: u32::MAX,
    };
    let mut pump = Pump::new(ends, codec);
    let script = async {
        expect(&mut to_client, b"connack").await;
        to_client.write_all(b"cd").await.unwrap();
        expect(&mut to_broker, b"cd").await;
    };
    during(&mut pump, script).await;
    let refused = super::super::take_early(&mut Letters::default(), b"X", &mut packets);
    assert_eq!(refused, Err(CloseReason::CaRemoved.into()));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_nothing_keeps_no_answer_from_the_sender() {
    let (mut pump, mut client, mut broker) = session(Letters::default(), &[]);
    let script = async {
        client.write_all(&[b'x'; CAPACITY]).await.unwrap();
        client.write_all(b"xxxQ").await.unwrap();
        expect(&mut client, b"a").await;
        expect(&mut broker, &[b'x'; CAPACITY + 3]).await;
    };
    during(&mut pump, script).await;
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_reads_no_answers_is_read_no_further() {
    let (mut pump, mut client, _broker) = session(Letters::default(), &[]);
    let taken = during(&mut pump, flood(&mut client, b'Q')).await;
    // What the client's end holds of answers, what waits of them, and what was not read.
    assert_eq!(taken, 3 * CAPACITY);
    assert!(pump.client.buffered() <= CAPACITY);
    let (mut reader, mut writer) = split(client);
    let script = async {
        let mut answers = vec![0; taken + 10 * CAPACITY];
        let more = writer.write_all(&[b'Q'; 10 * CAPACITY]);
        let (_, written) = tokio::join!(reader.read_exact(&mut answers), more);
        written.unwrap();
        assert!(answers.iter().all(|byte| *byte == b'a'));
    };
    during(&mut pump, script).await;
    assert_eq!(pump.client.buffered(), 0, "idle again");
}

#[tokio::test(start_paused = true)]
async fn a_codec_ends_the_session_with_its_reason() {
    for turns in 0..2 {
        let (mut pump, mut client, mut broker) = session(Letters::default(), &[]);
        for _ in 0..turns {
            assert!(poll_fn(|cx| Poll::Ready(pump.poll(cx, Until::AllClosed))).await.is_pending());
        }
        client.write_all(b"bXc").await.unwrap();
        let begin = Instant::now();
        assert_eq!(run(&mut pump).await, CloseReason::CaRemoved);
        assert!(begin.elapsed() < STOP, "told at once, not when its time was up");
        drop(pump);
        assert_eq!(rest(&mut client).await, NOT_AUTHORIZED);
        assert_eq!(rest(&mut broker).await, b"b", "what is in front of it passes, what is behind it does not");
    }
    let (mut pump, mut client, _broker) = session(Letters::default(), b"gX");
    assert_eq!(run(&mut pump).await, CloseReason::CaRemoved);
    drop(pump);
    assert_eq!(rest(&mut client).await, [b"g", NOT_AUTHORIZED].concat());
}

/// Passes bytes, but `T` sets an alarm; when it rings, the broker gets a `w`. No rules can be applied to it.
#[derive(Default)]
struct Timed {
    alarm: Option<Instant>,
    has_rung: bool,
}

impl Codec for Timed {
    const INSPECTS: bool = false;

    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending> {
        if std::mem::take(&mut self.has_rung) {
            assert_eq!(direction, Direction::ToBroker);
            injected.forward.push(b'w');
        }
        if chunk == b"T" {
            self.alarm = Some(Instant::now() + Duration::from_secs(1));
            return Ok(b"");
        }
        Ok(chunk)
    }

    fn disconnected(&self) -> Option<Direction> {
        None
    }

    fn set_rules(&mut self, _: Arc<PacketRules>) -> Result<(), Ending> {
        Err(CloseReason::SessionPolicyChanged.into())
    }

    fn is_between_packets_to_broker(&self) -> bool {
        true
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        Boundary::At(chunk.len())
    }

    fn may_read(&self, direction: Direction) -> bool {
        direction == Direction::ToClient || self.alarm.is_none()
    }

    fn has_work(&self, direction: Direction) -> bool {
        direction == Direction::ToBroker && self.has_rung
    }

    fn wake_at(&self) -> Option<Instant> {
        self.alarm
    }

    fn wake(&mut self, now: Instant, _: Stalled) -> Result<(), Ending> {
        self.has_rung |= self.alarm.take_if(|at| *at <= now).is_some();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_is_woken_and_then_has_something_to_do() {
    for direction in [Direction::ToBroker, Direction::ToClient] {
        let (mut pump, mut client, mut broker) = session(Timed::default(), CONNACK);
        let script = async {
            expect(&mut client, CONNACK).await;
            let begin = Instant::now();
            // Whichever direction sets the alarm.
            match direction {
                Direction::ToBroker => client.write_all(b"T").await.unwrap(),
                Direction::ToClient => broker.write_all(b"T").await.unwrap(),
            }
            expect(&mut broker, b"w").await;
            assert_eq!(begin.elapsed().as_secs(), 1);
            client.write_all(b"a").await.unwrap();
            expect(&mut broker, b"a").await;
        };
        during(&mut pump, script).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rules_that_cannot_be_applied_end_the_session_and_discard_the_will() {
    for is_begun in [false, true] {
        let (mut pump, mut client, mut broker) = session(Timed::default(), CONNACK);
        if is_begun {
            during(&mut pump, expect(&mut client, CONNACK)).await;
        }
        pump.set_rules(Arc::default());
        assert_eq!(run(&mut pump).await, CloseReason::SessionPolicyChanged);
        drop(pump);
        // Nothing that the broker has sent is decided on by rules of before, and no DISCONNECT precedes CONNACK.
        assert_eq!(rest(&mut client).await, if is_begun { NOT_AUTHORIZED } else { b"" });
        assert_eq!(rest(&mut broker).await, b"\xe0\x00");
    }
}
