//! Admission rules, and how CONNECT is rewritten.

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connack, connect, connect_v5, tls_config};

const ADMIT: &str = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";

async fn gateway(pki: &Pki, broker: &Broker, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER;
    TestGateway::start(&format!("{listener}{}{rest}{}", pki.listener_tls(), broker.upstream())).await
}

#[tokio::test]
async fn the_right_client_id_is_served_and_its_bytes_are_not_changed() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&pki, &broker, ADMIT).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    let pipelined = [connect("thing001"), b"\x82\x08\x00\x01\x00\x03a/b\x00".to_vec(), b"\xc0\x00".to_vec()].concat();
    client.write(&pipelined).await;
    let mut connection = broker.accept().await;
    connection.expect(&pipelined).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
    client.shutdown().await;
    assert!(connection.read_to_end().await.is_empty());
    drop(connection);
    assert_eq!(gateway.outcome().await, "200 ok");
}

#[tokio::test]
async fn another_client_id_is_refused_in_each_version_and_nothing_reaches_the_broker() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&pki, &broker, ADMIT).await;
    for (packet, answer) in
        [(connect("BADTHING"), &b"\x20\x02\x00\x05"[..]), (connect_v5("BADTHING"), b"\x20\x03\x00\x87\x00")]
    {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&packet).await;
        assert_eq!(client.read_to_end().await, answer);
    }
    assert!(broker.is_left_alone().await);
    for line in gateway.lines(2).await {
        assert!(line.ends_with(" - BADTHING identity_mismatch") && line.contains(" TLS 403 "), "{line}");
    }
}

#[tokio::test]
async fn identities_that_only_look_alike_are_refused() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&pki, &broker, ADMIT).await;
    let candidates =
        ["THING001", "thing001 ", " thing001", "thing0011", "thing00", "", "thing001/", "thing001\u{200b}"];
    for client_id in candidates {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&connect(client_id)).await;
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05", "{client_id:?}");
    }
    assert!(broker.is_left_alone().await);
    gateway.lines(candidates.len()).await;
}

#[tokio::test]
async fn on_reject_close_says_nothing() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let listener = TestGateway::LISTENER.replace("protocol", "on_reject = \"close\"\nprotocol");
    let configuration = format!("{listener}{}{ADMIT}{}", pki.listener_tls(), broker.upstream());
    let gateway = TestGateway::start(&configuration).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    client.write(&connect("BADTHING")).await;
    assert!(client.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "403 identity_mismatch");
}

#[tokio::test]
async fn without_a_certificate_every_expression_that_names_one_refuses() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    // With plain short-circuit evaluation these would be true. The gateway rejects them: they name a certificate.
    let expressions = [
        "cert.subject.cn == 'thing001' || mqtt.client_id == 'thing001'",
        "mqtt.client_id == 'thing001' || cert.subject.cn == 'thing001'",
        "cert.subject.cn != 'banned'",
        "!(cert.subject.cn in ['banned'])",
        "!cert.san.dns.exists(name, name == 'banned')",
        "cert.not_after > now || true",
    ];
    for expression in expressions {
        let optional = format!(
            "{}{}client_auth = \"optional\"\n[listener.admit]\nrequire = [\"{expression}\"]\n{}",
            TestGateway::LISTENER,
            pki.listener_tls(),
            broker.upstream()
        );
        let gateway = TestGateway::start(&optional).await;
        let config = tls_config(&pki, None, rustls::ALL_VERSIONS);
        let mut client = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
        client.write(&connect("thing001")).await;
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05", "{expression}");
        assert_eq!(gateway.outcome().await, "403 expression_failed", "{expression}");
    }
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn has_asks_whether_there_is_a_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = "client_auth = \"optional\"\n[listener.admit]\n\
                require = ['has(cert.subject) ? mqtt.client_id == cert.subject.cn : mqtt.client_id == \"guest\"']\n";
    let gateway = gateway(&pki, &broker, rest).await;
    let config = tls_config(&pki, None, rustls::ALL_VERSIONS);
    let mut guest = Client::try_tls(gateway.address(), config, "localhost").await.unwrap();
    guest.write(&connect("guest")).await;
    broker.accept().await.expect(&connect("guest")).await;
    let mut device = Client::tls(gateway.address(), &pki, "thing001").await;
    device.write(&connect("guest")).await;
    assert_eq!(device.read_to_end().await, b"\x20\x02\x00\x05");
}

#[tokio::test]
async fn all_three_fields_are_replaced_and_the_rest_is_kept() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = "[listener.connect]\nclient_id = \"cert.subject.cn + '/' + mqtt.client_id\"\n\
                username = 'cert.subject.dn'\npassword = \"'verified by ' + conn.listener\"\n";
    let gateway = gateway(&pki, &broker, rest).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    // MQTT 5, will with properties, user property, a user name and password that are replaced, then a PINGREQ.
    let tail = b"\x00\x03a/b\x00\x04gone";
    let sent = [
        &b"\x10\x47\x00\x04MQTT\x05\xee\x00\x3c\x0c\x11\x00\x00\x0e\x10\x26\x00\x01k\x00\x01v"[..],
        b"\x00\x03old\x07\x26\x00\x01w\x00\x01x",
        tail,
        b"\x00\x05admin\x00\x09forbidden\xc0\x00",
    ]
    .concat();
    let sent = {
        let mut sent = sent;
        sent[1] = u8::try_from(sent.len() - 4).unwrap();
        sent
    };
    client.write(&sent).await;
    let field = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let body = [
        &b"\x00\x04MQTT\x05\xee\x00\x3c\x0c\x11\x00\x00\x0e\x10\x26\x00\x01k\x00\x01v"[..],
        &field("thing001/old"),
        b"\x07\x26\x00\x01w\x00\x01x",
        tail,
        &field(r"CN=thing001,O=M\C3\B6bel & S\C3\B6hne\, Inc."),
        &field("verified by devices"),
    ]
    .concat();
    let expected = [&[0x10, u8::try_from(body.len()).unwrap()], &body[..], b"\xc0\x00"].concat();
    broker.accept().await.expect(&expected).await;
}

#[tokio::test]
async fn a_rewriting_that_cannot_be_written_refuses() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for (connect_table, reason) in [
        // MQTT strings must not contain U+0000.
        ("username = '\"a\\u0000b\"'", "403 rewrite_failed"),
        // MQTT 3.1.1 does not allow a password without a user name.
        ("password = '\"secret\"'", "403 rewrite_failed"),
        ("username = 'cert.san.dns[0]'", "403 expression_failed"),
        ("username = 'mqtt.username'", "403 expression_failed"),
        ("client_id = '\"\"'", "200 "),
    ] {
        let gateway = gateway(&pki, &broker, &format!("{ADMIT}[listener.connect]\n{connect_table}\n")).await;
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&connect("thing001")).await;
        if reason == "200 " {
            // Legal: a clean session may have no client ID [MQTT-3.1.3-7 (3.1.1)].
            broker.accept().await.expect(&connect("")).await;
            continue;
        }
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05", "{connect_table}");
        assert_eq!(gateway.outcome().await, reason, "{connect_table}");
    }
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn an_empty_client_id_is_refused_where_the_version_wants_one() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&pki, &broker, "").await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    // MQTT 3.1.1 without a clean session [MQTT-3.1.3-8 (3.1.1)].
    client.write(b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x3c\x00\x00").await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x02");
    assert_eq!(gateway.outcome().await, "400 client_id_rejected");
}

#[tokio::test]
async fn a_client_is_sent_no_larger_packet_than_it_accepts() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&pki, &broker, "[listener.admit]\nrequire = ['mqtt.client_id == \"good\"']\n").await;
    let packet = |size: u8, id: &str| {
        let body = [b"\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00", &[size][..], &[0, 4], id.as_bytes()].concat();
        [&[0x10, u8::try_from(body.len()).unwrap()], &*body].concat()
    };
    // The CONNACK of a rejection has five bytes [MQTT-3.1.2-24].
    for (size, answer) in [(4, &b""[..]), (5, b"\x20\x03\x00\x87\x00")] {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&packet(size, "evil")).await;
        assert_eq!(client.read_to_end().await, answer, "at most {size} bytes");
    }
    // A DISCONNECT has four.
    for (size, goodbye) in [(3, &b""[..]), (4, b"\xe0\x02\x8b\x00")] {
        let gateway = self::gateway(&pki, &broker, "").await;
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&packet(size, "good")).await;
        let mut connection = broker.accept().await;
        connection.expect(&packet(size, "good")).await;
        connection.write(b"\x20\x03\x00\x00\x00").await;
        client.expect(b"\x20\x03\x00\x00\x00").await;
        gateway.gateway.stop().await;
        assert_eq!(client.read_to_end().await, goodbye, "at most {size} bytes");
    }
}

#[tokio::test]
async fn expressions_see_tls_and_the_connection() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = r#"[listener.admit]
require = [
    'tls.version == "TLSv1.3" && tls.cipher in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"]',
    'tls.sni == "localhost" && !tls.resumed && !has(tls.psk_identity) && !has(tls.alpn)',
    'conn.remote_addr == "127.0.0.1" && conn.remote_port > 0 && conn.listener == "devices"',
    'cert.issuer.cn == "Test intermediate" && cert.issuer.dn == "CN=Test intermediate" && cert.subject.o.contains("Inc.")',
    'cert.serial.matches("^[0-9A-F]{32}$") && cert.fingerprint.sha256.matches("^[0-9a-f]{64}$")',
    'cert.fingerprint.sha1.size() == 40 && cert.not_before < now && now < cert.not_after',
    'mqtt.version == 4 && mqtt.keep_alive == 60 && mqtt.clean_start && !has(mqtt.username) && !has(mqtt.will)',
    'size(mqtt.user_properties) == 0 && !has(cert.subject.l) && size(cert.san.uri) == 0',
]
"#;
    let gateway = gateway(&pki, &broker, rest).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
}

#[tokio::test]
async fn expressions_do_not_convert_any_number_of_user_properties() {
    let broker = Broker::start().await;
    let rest = "[listener.admit]\nrequire = ['size(mqtt.user_properties) >= 0']\n";
    let gateway = TestGateway::plain(&format!("{rest}{}", broker.upstream())).await;
    let with = |count: usize| {
        let properties: Vec<u8> = (0..count)
            .flat_map(|n| [b"\x26\x00\x05".to_vec(), format!("{n:05}").into(), b"\0\x01v".to_vec()].concat())
            .collect();
        let body = [b"\x00\x04MQTT\x05\x02\x00\x3c", &*length(properties.len()), &properties, b"\x00\x00"].concat();
        [b"\x10", &*length(body.len()), &body].concat()
    };
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&with(900)).await;
    broker.accept().await.expect(&with(900)).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&with(5_000)).await;
    client.read_to_end().await;
    drop(client);
    let lines = gateway.lines(1).await;
    assert!(lines[0].ends_with(" expression_failed"), "{lines:?}");
}

/// A variable byte integer [MQTT-1.5.5].
fn length(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value % 128).unwrap();
        value /= 128;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[tokio::test]
async fn user_properties_given_twice_are_both_seen() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let rest = "[listener.admit]\nrequire = ['mqtt.user_properties.site == [\"a\", \"b\"]']\n";
    let gateway = gateway(&pki, &broker, rest).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    let body = b"\x00\x04MQTT\x05\x02\x00\x3c\x14\x26\x00\x04site\x00\x01a\x26\x00\x04site\x00\x01b\x00\x00";
    let packet = [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    client.write(&packet).await;
    broker.accept().await.expect(&packet).await;
}
