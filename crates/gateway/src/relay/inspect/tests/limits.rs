//! Limits, of the gateway, the broker and the client.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_limits_of_the_broker_are_enforced() {
    let connack = b"\x20\x0c\x00\x00\x09\x24\x01\x25\x00\x27\x00\x00\x00\x20";
    let open = || connected(OPEN, CONNECT_V5, connack);
    for (flags, payload, code) in [(4, &b""[..], 0x9b), (1, b"", 0x9a)] {
        let mut script = open();
        script.client(&publish(flags, "a", (flags > 1).then_some(1), Some(b""), payload));
        ends(&script, CloseReason::ProtocolViolation, code);
    }
    let mut script = open();
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 26]));
    assert_eq!(script.ending, None);
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 27]));
    ends(&script, CloseReason::PacketTooLarge, 0x95);
}

#[tokio::test(start_paused = true)]
async fn limits_of_the_gateway_are_told_in_connack() {
    const LIMITS: &str =
        "[listener.limits]\nmax_packet_size = \"1KiB\"\nmax_keep_alive = \"30s\"\nmax_session_expiry = \"1h\"\n";
    let connect = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\xff\xff\x00\x05dev-1";
    let mut script = Script::new(LIMITS, connect);
    assert_eq!(script.broker_got(), b"\x10\x17\x00\x04MQTT\x05\x02\x00\x1e\x05\x11\x00\x00\x0e\x10\x00\x05dev-1");
    script.broker(b"\x20\x09\x00\x00\x06\x22\x01\x00\x21\x00\x05");
    let told = [
        &b"\x20\x16\x00\x00\x13\x21\x00\x05"[..],
        b"\x13\x00\x1e",
        b"\x27\x00\x00\x04\x00",
        b"\x22\x00\x0a",
        b"\x11\x00\x00\x0e\x10",
    ];
    assert_eq!(script.client_got(), told.concat());
    script.client(b"\xe0\x07\x00\x05\x11\x00\x01\x00\x00");
    assert_eq!(script.broker_got(), b"\xe0\x07\x00\x05\x11\x00\x00\x0e\x10", "DISCONNECT cannot raise it");
    // What the broker says itself is kept if it is lower.
    let mut script = Script::new(LIMITS, CONNECT_V5);
    script.broker(b"\x20\x0b\x00\x00\x08\x13\x00\x14\x27\x00\x00\x00\xff");
    assert_eq!(script.client_got(), b"\x20\x0b\x00\x00\x08\x13\x00\x14\x27\x00\x00\x00\xff");
    // Before MQTT 5 nobody can be told.
    let mut script = Script::new(LIMITS, CONNECT_V3);
    assert_eq!(script.broker_got(), CONNECT_V3);
    script.broker(CONNACK_V3);
    assert_eq!(script.client_got(), CONNACK_V3);
}

#[tokio::test(start_paused = true)]
async fn the_gateways_own_packets_are_no_larger_than_the_client_accepts() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"30s\"\n";
    let connect =
        |max: u8| [&b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00"[..], &[max], b"\x00\x05dev-1"].concat();
    let mut script = Script::new(LIMITS, &connect(8));
    // A reason string is left out first.
    script.broker(b"\x20\x09\x00\x00\x06\x1f\x00\x03all");
    assert_eq!(script.client_got(), b"\x20\x06\x00\x00\x03\x13\x00\x1e");
    // A client that cannot be told what applies is refused; one that accepts no CONNACK at all gets none, and no DISCONNECT in
    // its place. No CONNACK is smaller than an acknowledgement with a code.
    for (limits, max, told) in [(LIMITS, 7, &b"\x20\x03\x00\x95\x00"[..]), (POLICY, 4, b"")] {
        let mut script = Script::new(limits, &connect(max));
        script.broker(CONNACK_V5);
        let ending = script.ending.as_ref().unwrap();
        assert_eq!((ending.reason, ending.disconnect), (CloseReason::PacketTooLarge, None));
        assert_eq!(script.client_got(), told);
    }
    let mut script = connected(POLICY, &connect(5), CONNACK_V5);
    script.client(&publish(4, "up/other", Some(1), Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\x50\x03\x00\x01\x87");
    // What does not fit at all is not sent.
    script.client(&subscribe(0x82, 1, Some(b""), &[("other", 0)]));
    assert_eq!(script.client_got(), b"");
    let mut script = Script::new("mountpoint = 'tenants/a/'\n", &connect(9));
    script.broker(b"\x20\x0b\x00\x87\x08\x1f\x00\x05xxxxx");
    assert_eq!(script.client_got(), b"\x20\x03\x00\x87\x00");
    // With a mountpoint, the broker was told a larger maximum: its packets lose what is only informative.
    let mut script = Script::new("mountpoint = 'tenants/a/'\n", &connect(9));
    let text = |id: u8, len: u8| [&[id, 0, len], &vec![b'x'; usize::from(len)][..]].concat();
    let with_reason =
        |first: u8, head: &[u8], codes: &[u8]| packet(first, &[head, &[8], &text(0x1f, 5), codes].concat());
    script.broker(&with_reason(0x20, b"\x00\x00", b""));
    assert_eq!(script.client_got(), CONNACK_V5);
    script.client(&subscribe(0x82, 1, Some(b""), &[("a", 0)]));
    script.broker(&with_reason(0x90, b"\x00\x01", b"\x00"));
    script.broker(&with_reason(0x40, b"\x00\x07\x87", b""));
    script.broker(&with_reason(0xe0, b"\x8b", b""));
    assert_eq!(script.client_got(), b"\x90\x04\x00\x01\x00\x00\x40\x03\x00\x07\x87\xe0\x02\x8b\x00");
    assert_eq!(script.ending, None);
}

#[tokio::test(start_paused = true)]
async fn packets_and_subscriptions_are_limited() {
    const LIMITS: &str = "[listener.limits]\nmax_packet_size = \"100\"\nmax_topic_levels = 3\nmax_subscriptions = 2\n";
    let mut script = v5_with(LIMITS, b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x64");
    script.broker_got();
    script.client(&publish(2, "a/b/c/d", Some(1), Some(b""), b"x"));
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x40\x03\x00\x01\x90".to_vec()));
    let filters = [("a", 0), ("a/b/c/d", 0), ("$share/g/a/b/c", 0), ("a", 0), ("c", 0)];
    script.client(&subscribe(0x82, 1, Some(b""), &filters));
    assert_eq!(script.broker_got(), subscribe(0x82, 1, Some(b""), &[("a", 0), ("$share/g/a/b/c", 0), ("a", 0)]));
    script.broker(b"\x90\x06\x00\x01\x00\x00\x00\x00");
    assert_eq!(script.client_got(), b"\x90\x08\x00\x01\x00\x00\x8f\x00\x00\x97");
    script.client(&subscribe(0xa2, 2, Some(b""), &[("a", 0)]));
    script.client(&subscribe(0x82, 3, Some(b""), &[("c", 0)]));
    assert!(script.broker_got().ends_with(&subscribe(0x82, 3, Some(b""), &[("c", 0)])), "there is room again");
    script.client(b"\x30\x63");
    ends(&script, CloseReason::PacketTooLarge, 0x95);
    assert_eq!(script.broker_got(), b"", "nothing of the packet");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_fast_is_delayed_or_disconnected() {
    let limits = |rate: &str| format!("[listener.limits]\n{rate}\n");
    let message = publish(0, "a", None, Some(b""), b"");
    let mut script = v5(&limits("message_rate = \"10/s\""));
    script.client(&[message.repeat(25), b"\xc0\x00".to_vec()].concat());
    assert_eq!(script.broker_got(), message.repeat(10));
    let mut ticks = 0;
    while !script.codec.held.is_empty() {
        assert!(!script.codec.may_read(Direction::ToBroker) && !script.codec.has_work(Direction::ToBroker));
        let at = script.codec.wake_at().unwrap();
        tokio::time::advance(at - Instant::now()).await;
        script.codec.wake(Instant::now(), Stalled::default()).unwrap();
        assert!(script.codec.has_work(Direction::ToBroker));
        script.client(b"");
        ticks += 1;
    }
    assert_eq!(ticks, 15, "one every tenth of a second");
    assert_eq!(script.broker_got(), [message.repeat(15), b"\xc0\x00".to_vec()].concat());
    let mut script = v5(&limits("message_rate = { rate = \"10/s\", burst = 2 }\non_exceed = \"disconnect\""));
    script.client(&message.repeat(3));
    assert_eq!(script.broker_got(), message.repeat(2));
    ends(&script, CloseReason::QuotaExceeded, 0x96);
    // Bytes are counted whatever they are.
    let mut script = v5(&limits("byte_rate = \"100/s\""));
    let large = publish(0, "a", None, Some(b""), &[b'x'; 244]);
    script.client(&large);
    assert_eq!(script.broker_got(), large[..100]);
    let start = Instant::now();
    while !script.codec.held.is_empty() {
        let at = script.codec.wake_at().unwrap();
        tokio::time::advance(at - Instant::now()).await;
        script.codec.wake(Instant::now(), Stalled::default()).unwrap();
        script.client(b"");
    }
    assert_eq!(script.broker_got(), large[100..]);
    assert!((1400..1600).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_for_too_long_is_disconnected() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"20s\"\n";
    for (version, after) in [(5, 30), (4, 90)] {
        let mut script = if version == 5 { v5_with(LIMITS, b"\x20\x06\x00\x00\x03\x13\x00\x14") } else { v3(LIMITS) };
        tokio::time::advance(Duration::from_secs(after - 1)).await;
        script.codec.wake(Instant::now(), Stalled::default()).unwrap();
        // The first byte of a packet is no packet.
        script.client(b"\xc0\x00\xc0");
        tokio::time::advance(Duration::from_secs(after - 1)).await;
        script.codec.wake(Instant::now(), Stalled::default()).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let ending = script.codec.wake(Instant::now(), Stalled::default()).unwrap_err();
        let expected = (CloseReason::KeepAliveTimeout, Some(Disconnect::KeepAliveTimeout));
        assert_eq!((ending.reason, ending.disconnect), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_grows_without_end_is_too_large() {
    let mut script = v5(OPEN);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\xff\xff\x7f");
    ends(&script, CloseReason::PacketTooLarge, 0x95);
    // A large payload is no problem: it is not collected.
    let mut script = v5(OPEN);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\x00");
    for _ in 0..100 {
        script.client(&[b'x'; 16 << 10]);
    }
    assert_eq!((script.broker_got().len(), &script.ending), (9 + (100 << 14), &None));
    assert_eq!(script.codec.to_broker.head.capacity(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_very_many_filters_takes_bounded_memory() {
    let filters = |first: u8, count: usize| {
        let filter: &[u8] = if first == 0x82 { b"\x00\x01a\x00" } else { b"\x00\x01a" };
        packet(first, &[&b"\x00\x01\x00"[..], &filter.repeat(count)].concat())
    };
    let mut script = v5(OPEN);
    script.client(&filters(0xa2, 60_000));
    ends(&script, CloseReason::QuotaExceeded, 0x97);
    assert_eq!(script.broker_got(), b"");
    let mut script = v5(OPEN);
    script.client(&filters(0x82, 60_000));
    let at_broker = script.broker_got();
    let asked = (at_broker.len() - 7) / 4;
    assert!((10_000..20_000).contains(&asked), "{asked}");
    script.broker(&packet(0x90, &[&b"\x00\x01\x00"[..], &vec![0; asked]].concat()));
    let codes = [vec![0; asked], vec![0x97; 60_000 - asked]].concat();
    assert_eq!(script.client_got(), packet(0x90, &[&b"\x00\x01\x00"[..], &codes].concat()));
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_for_a_broker_that_does_not_answer_and_not_for_ever() {
    let mut script = v3(POLICY);
    let long = "x".repeat(60_000);
    let request = |id: u16| subscribe(0x82, id, None, &[(&format!("down/{id}{long}"), 0)]);
    for id in 1..=9 {
        script.client(&request(id));
    }
    assert!(!script.codec.may_read(Direction::ToBroker));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(script.codec.wake(Instant::now(), Stalled::default()), Ok(()));
    let mut answered = v3(POLICY);
    for id in 1..=9 {
        answered.client(&request(id));
    }
    for id in 1..=5 {
        answered.broker(&[0x90, 3, 0, id, 0]);
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(
        script.codec.wake(Instant::now(), Stalled::default()).unwrap_err().reason,
        CloseReason::UpstreamViolation
    );
    // A client that does not read a delivery gets no answers either, and that is its own fault.
    let mut unread = v5(&POLICY.replace("\"8\"", "\"1MiB\""));
    unread.broker(&publish(0, "down/a", None, Some(b""), &[b'x'; 1000])[..500]);
    unread.client(&publish(2, "up/other", Some(1), Some(b""), b"x").repeat(1000));
    assert!(!unread.codec.may_read(Direction::ToBroker));
    tokio::time::advance(Duration::from_secs(31)).await;
    let client_stalled = Stalled { client: true, broker: false };
    assert_eq!(unread.codec.wake(Instant::now(), client_stalled).unwrap_err().reason, CloseReason::QuotaExceeded);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(answered.codec.wake(Instant::now(), Stalled::default()), Ok(()));
    // An identifier that is used twice costs nothing for ever.
    let mut script = v3(POLICY);
    for _ in 0..1000 {
        let unsubscribe = subscribe(0xa2, 1, None, &[(&"y".repeat(1000), 0)]);
        script.client(&[subscribe(0x82, 1, None, &[("down/a", 0)]), unsubscribe].concat());
        script.broker(b"\x90\x03\x00\x01\x00\xb0\x02\x00\x01");
    }
    assert!(script.codec.may_read(Direction::ToBroker));
}

#[tokio::test(start_paused = true)]
async fn the_broker_is_sent_pings_while_the_client_waits() {
    // 60 seconds in CONNECT; a message a minute.
    let mut script = v5("[listener.limits]\nmessage_rate = \"1/m\"\n");
    let message = publish(0, "a", None, Some(b""), b"");
    script.client(&message.repeat(3));
    assert_eq!(script.broker_got(), message);
    let (start, mut at_broker) = (Instant::now(), Vec::new());
    while !script.codec.held.is_empty() {
        let at = script.codec.wake_at().unwrap();
        tokio::time::advance(at - Instant::now()).await;
        script.codec.wake(Instant::now(), Stalled::default()).unwrap();
        script.client(b"");
        at_broker.push((start.elapsed().as_secs(), script.broker_got()));
    }
    at_broker.retain(|(_, bytes)| !bytes.is_empty());
    let ping = b"\xc0\x00".to_vec();
    let expected = [(30, ping.clone()), (60, [&ping[..], &message].concat()), (90, ping), (120, message.clone())];
    let seconds: Vec<_> = at_broker.iter().map(|(second, _)| *second).collect();
    assert_eq!(seconds.len(), expected.len(), "{at_broker:02x?}");
    assert!(
        at_broker.iter().zip(&expected).all(|((at, _), (second, _))| at.abs_diff(*second) <= 1),
        "{at_broker:02x?}"
    );
    // The answers are for nobody.
    script.client_got();
    script.broker(b"\xd0\x00\xd0\x00");
    assert_eq!(script.client_got(), b"");
    // In the payload of a message there is no room for one.
    let mut script = v5("[listener.limits]\nbyte_rate = { rate = \"1/s\", burst = 10 }\n");
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 100]));
    tokio::time::advance(Duration::from_secs(40)).await;
    script.codec.wake(Instant::now(), Stalled::default()).unwrap();
    assert!(!script.codec.is_ping_due);
    // While a denied payload arrives.
    let mut script = v5(&POLICY.replace("\"8\"", "\"1MiB\""));
    script.client(&publish(0, "other", None, Some(b""), &vec![b'x'; 100_000])[..20_000]);
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(31)).await;
        script.client(&[b'x'; 2000]);
        assert_eq!(script.broker_got(), b"\xc0\x00");
    }
}

#[tokio::test(start_paused = true)]
async fn keep_alive_counts_from_connack() {
    for (connect, connack, after) in [(CONNECT_V3, CONNACK_V3, 90), (CONNECT_V5, CONNACK_V5, 30)] {
        let mut script = Script::new("[listener.limits]\nmax_keep_alive = \"20s\"\n", connect);
        for wait in [after - 1, 2] {
            tokio::time::advance(Duration::from_secs(wait)).await;
            assert_eq!(
                script.codec.wake(Instant::now(), Stalled::default()),
                Ok(()),
                "the broker is slow, not the client"
            );
        }
        script.broker(connack);
        tokio::time::advance(Duration::from_secs(after - 1)).await;
        assert_eq!(script.codec.wake(Instant::now(), Stalled::default()), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(script.codec.wake(Instant::now(), Stalled::default()).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn keep_alive_counts_what_moves() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"20s\"\n";
    let told = b"\x20\x06\x00\x00\x03\x13\x00\x14";
    // A large payload that arrives slowly.
    let mut script = v5_with(LIMITS, told);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\x00");
    for _ in 0..4 {
        tokio::time::advance(Duration::from_secs(20)).await;
        script.client(&[b'x'; 1024]);
        assert_eq!(script.codec.wake(Instant::now(), Stalled::default()), Ok(()));
    }
    // A byte a second is none.
    for _ in 0..30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        script.client(b"x");
    }
    assert!(script.codec.wake(Instant::now(), Stalled::default()).is_err());
    // A client that is not read, because the broker takes nothing.
    let mut script = v5_with(LIMITS, told);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(script.codec.wake(Instant::now(), BROKER_STALLED), Ok(()));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(script.codec.wake(Instant::now(), Stalled::default()), Ok(()));
    // A reload: the client keeps the interval that it was told.
    script.reload("[listener.limits]\nmax_keep_alive = \"2s\"\nmax_packet_size = \"64\"\n");
    tokio::time::advance(Duration::from_secs(20)).await;
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 100]));
    assert_eq!((script.codec.wake(Instant::now(), Stalled::default()), &script.ending), (Ok(()), &None));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_grows_too_large_is_answered() {
    let mut script = Script::new("mountpoint = 'a-long-mountpoint-indeed/'\n", CONNECT_V5);
    script.broker(b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\xff");
    assert_eq!(script.client_got(), b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\xc7");
    script.broker_got();
    let filters: Vec<String> = (10..30).map(|number| format!("f{number}")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
    script.client(&subscribe(0x82, 1, Some(b""), &filters));
    assert_eq!(script.broker_got(), b"");
    assert_eq!(script.client_got(), [&b"\x90\x17\x00\x01\x00"[..], &[0x97; 20]].concat());
    assert_eq!(script.codec.subscriptions.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_much_work_are_delayed() {
    let rule = |rule: i32| format!("[[topic_policy.rule]]\nsubscribe = [\"{rule}/#\"]\nmax_qos = 1\n");
    let rules = (0..1000).map(rule).collect::<Vec<_>>().concat();
    let policy =
        format!("topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n{rules}[[topic_policy.rule]]\nsubscribe = [\"#\"]\n");
    let mut script = v3(&policy);
    let request = subscribe(0x82, 1, None, &[("#", 0), ("#", 0)]);
    script.client(&request.repeat(1000));
    let passed = script.broker_got().len() / request.len();
    assert!((40..150).contains(&passed), "{passed} of a thousand");
    assert!(!script.codec.may_read(Direction::ToBroker) && script.codec.wake_at().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_largest_packet_of_a_client_is_counted_without_the_mountpoint() {
    let connect = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x14\x00\x05dev-1";
    let mut script = Script::new("mountpoint = 'mount/'\n", connect);
    let told = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x28\x00\x05dev-1";
    assert_eq!(script.broker_got(), told);
    script.broker(CONNACK_V5);
    script.client_got();
    let fits = publish(2, "a", Some(1), Some(b""), &[b'x'; 12]);
    assert_eq!(fits.len(), 20);
    script.broker(&publish(2, "mount/a", Some(1), Some(b""), &[b'x'; 12]));
    assert_eq!(script.client_got(), fits);
    script.broker(&publish(2, "mount/a", Some(1), Some(b""), &[b'x'; 13]));
    assert_eq!((script.client_got(), script.broker_got()), (vec![], b"\x40\x02\x00\x01".to_vec()), "[MQTT-3.1.2-25]");
}
