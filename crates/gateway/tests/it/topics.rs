//! Topic policies, mountpoints and stamps on real connections: rights from claims and services, wills, schemas, reloads, and
//! what logs and metrics say.

use portcullis_testkit::{
    Broker, BrokerConnection, Client, TestGateway, connack, connect, connect_v5, field, packet, publish, suback,
    subscribe,
};

const POLICY: &str = r#"
[[topic_policy]]
name = "p"
[[topic_policy.rule]]
publish = ["up/${mqtt.client_id}/#"]
subscribe = ["down/#"]
max_qos = 1
retain = false
max_payload = "8"
"#;

fn configuration(listener: &str, rest: &str, broker: &Broker) -> String {
    let first = TestGateway::LISTENER.replace("protocol = \"tls\"", &format!("protocol = \"tcp\"\n{listener}"));
    format!("{first}{rest}{}[admin]\nbind = \"127.0.0.1:0\"\n", broker.upstream())
}

async fn start(listener: &str, rest: &str) -> (TestGateway, Broker) {
    let broker = Broker::start().await;
    (TestGateway::start(&configuration(listener, rest, &broker)).await, broker)
}

async fn session(gateway: &TestGateway, broker: &Broker, version: u8) -> (Client, BrokerConnection) {
    let mut client = Client::tcp(gateway.address()).await;
    let packet = if version == 5 { connect_v5("dev-1") } else { connect("dev-1") };
    client.write(&packet).await;
    let mut connection = broker.accept().await;
    connection.expect(&packet).await;
    connection.write(&connack(version)).await;
    client.expect(&connack(version)).await;
    (client, connection)
}

async fn metrics(gateway: &TestGateway) -> String {
    let mut http = Client::tcp(gateway.gateway.admin_address().unwrap()).await;
    http.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    String::from_utf8(http.read_to_end().await).unwrap()
}

/// CONNECT with a will.
fn with_will(version: u8, flags: u8, topic: &str, payload: &[u8], properties: &[u8]) -> Vec<u8> {
    let mut body = [field(b"MQTT"), vec![version, 0x06 | flags, 0, 60]].concat();
    body.extend(if version == 5 { vec![0] } else { vec![] });
    body.extend(field(b"dev-1"));
    if version == 5 {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    body.extend([field(topic.as_bytes()), field(payload)].concat());
    packet(0x10, &body)
}

#[tokio::test]
async fn denied_messages_stay_away_and_allowed_ones_arrive() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    for version in [4, 5] {
        let (mut client, mut connection) = session(&gateway, &broker, version).await;
        for qos in [0_u8, 1, 2] {
            let id = (qos > 0).then_some(u16::from(qos));
            client.write(&publish(version, qos << 1, "up/other", id, b"", b"x")).await;
        }
        let allowed = publish(version, 2, "up/dev-1/a", Some(9), b"", b"12345678");
        client.write(&allowed).await;
        connection.expect(&allowed).await;
        connection.write(b"\x40\x02\x00\x09").await;
        let answers: &[u8] = match version {
            5 => b"\x40\x03\x00\x01\x87\x50\x03\x00\x02\x87\x40\x02\x00\x09",
            _ => b"\x40\x02\x00\x01\x50\x02\x00\x02\x40\x02\x00\x09",
        };
        client.expect(answers).await;
        client.write(&subscribe(version, 3, &[("down/a", 2), ("up/#", 0), ("down/b", 0)])).await;
        connection.expect(&subscribe(version, 3, &[("down/a", 1), ("down/b", 0)])).await;
        connection.write(&suback(version, 3, &[1, 0])).await;
        client.expect(&suback(version, 3, &[1, if version == 5 { 0x87 } else { 0x80 }, 0])).await;
    }
    let text = metrics(&gateway).await;
    let of = |rule: &str, action: &str, verdict: &str| {
        let labels =
            format!("listener=\"devices\",policy=\"p\",rule=\"{rule}\",action=\"{action}\",verdict=\"{verdict}\"");
        let line = text.lines().find(|line| line.starts_with(&format!("portcullis_topic_decisions_total{{{labels}}}")));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    assert_eq!((of("no_match", "publish", "denied"), of("1", "publish", "allowed")), (6, 2), "{text}");
    assert_eq!((of("no_match", "subscribe", "denied"), of("1", "subscribe", "allowed")), (2, 4));
}

#[tokio::test]
async fn the_policy_can_end_the_session() {
    let policy = POLICY.replace("name = \"p\"", "name = \"p\"\non_deny = \"disconnect\"");
    let (gateway, broker) = start("topics = \"p\"", &policy).await;
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    client
        .write(&[&b"\xc0\x00"[..], &publish(5, 0, "up/dev-1/a", None, b"", b"123456789"), b"\xc0\x00"].concat())
        .await;
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x95\x00");
    assert_eq!(connection.read_to_end().await, b"\xc0\x00");
    assert_eq!(gateway.outcome().await, "403 topic_denied");
    let (mut client, mut connection) = session(&gateway, &broker, 4).await;
    client.write(&publish(4, 0, "up/other", None, b"", b"")).await;
    assert_eq!((client.read_to_end().await, connection.read_to_end().await), (vec![], vec![]));
}

#[tokio::test]
async fn wills_are_judged_at_connect() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let rows = [
        (with_will(5, 0, "up/other", b"x", b""), 0x87),
        (with_will(5, 0x10, "up/dev-1/a", b"x", b""), 0x9b),
        (with_will(5, 0x20, "up/dev-1/a", b"x", b""), 0x9a),
        (with_will(5, 0, "up/dev-1/a", b"123456789", b""), 0x95),
        (with_will(5, 0, "up/dev-1/a", b"x", b"\x08\x00\x05other"), 0x87),
    ];
    for (index, (connect, code)) in rows.into_iter().enumerate() {
        assert_eq!(gateway.refusal(&connect).await, [0x20, 3, 0, code, 0]);
        assert!(gateway.lines(index + 1).await[index].contains(" 403 "));
    }
    assert_eq!(gateway.refusal(&with_will(4, 0, "up/other", b"x", b"")).await, b"\x20\x02\x00\x05");
    let line = gateway.lines(6).await.pop().unwrap();
    assert!(line.ends_with(" topic_denied"), "{line}");
    let allowed = with_will(5, 8, "up/dev-1/a", b"x", b"\x08\x00\x06down/r");
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&allowed).await;
    broker.accept().await.expect(&allowed).await;
}

#[tokio::test]
async fn what_cannot_be_evaluated_refuses_the_client_or_leaves_the_rule_out() {
    let username = |name: &str| {
        let body = [field(b"MQTT"), vec![5, 0x82, 0, 60, 0], field(b"dev-1"), field(name.as_bytes())].concat();
        packet(0x10, &body)
    };
    let allow =
        "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"u/${mqtt.username}/#\", \"all\"]\n";
    let deny = allow.replace("publish", "effect = \"deny\"\npublish");
    let when = allow.replace("publish", "when = 'mqtt.username == \"a\"'\npublish");
    for (name, unfit) in [("a", false), ("", true), ("+", true), ("#", true), ("a/b", true), ("a#", true)] {
        for (listener, policy, must_refuse) in [
            ("topics = \"p\"", allow, false),
            ("topics = \"p\"", &deny, unfit),
            ("mountpoint = 't/${mqtt.username}/'", "", unfit),
        ] {
            let (gateway, broker) = start(listener, policy).await;
            let mut client = Client::tcp(gateway.address()).await;
            client.write(&username(name)).await;
            if must_refuse {
                assert_eq!(client.read_to_end().await, b"\x20\x03\x00\x87\x00", "{name} {policy}");
                assert_eq!(gateway.outcome().await, "403 expression_failed");
                continue;
            }
            let mut connection = broker.accept().await;
            connection.expect(&username(name)).await;
            connection.write(&connack(5)).await;
            client.expect(&connack(5)).await;
            if policy == allow {
                // Whatever the name is, nothing else is allowed by it.
                let topic = format!("u/{}/x", if unfit { "b" } else { name });
                let (message, end) = (publish(5, 0, &topic, None, b"", b""), publish(5, 0, "all", None, b"", b""));
                client.write(&[&message[..], &end].concat()).await;
                connection.expect(&if unfit { end } else { message }).await;
            }
        }
    }
    // A condition that fails is neither true nor false; a stamp without a value is none.
    for (listener, policy) in
        [("topics = \"p\"", &when[..]), ("", "[listener.publish]\nuser_properties = { u = 'mqtt.username' }\n")]
    {
        let (gateway, _broker) = start(listener, policy).await;
        assert_eq!(gateway.refusal(&connect_v5("dev-1")).await, b"\x20\x03\x00\x87\x00");
        assert_eq!(gateway.refusal(&connect("dev-1")).await, b"\x20\x02\x00\x05");
    }
}

#[tokio::test]
async fn payloads_meet_their_schema() {
    let policy = "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"t\"]\nschema = \"schema.json\"\n\
                  max_payload = \"1KiB\"\n[[topic_policy.rule]]\npublish = [\"#\"]\n";
    let broker = Broker::start().await;
    let gateway = TestGateway::start(&configuration("", "", &broker)).await;
    let schema =
        r#"{ "type": "object", "required": ["v"], "properties": { "v": { "type": "number", "maximum": 9 } } }"#;
    std::fs::write(gateway.path().with_file_name("schema.json"), schema).unwrap();
    gateway.write(&configuration("topics = \"p\"", policy, &broker));
    gateway.gateway.reload().await.unwrap();
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    let message = |payload: &str| publish(5, 2, "t", Some(1), b"", payload.as_bytes());
    for (payload, is_valid) in [
        (r#"{"v":1}"#, true),
        (r#"{"v":10}"#, false),
        ("{}", false),
        ("", false),
        ("not JSON", false),
        (r#"{"v":1e0 }"#, true),
    ] {
        // In pieces, because it is collected.
        let (first, second) = (&message(payload)[..5], &message(payload)[5..]);
        client.write(first).await;
        client.write(second).await;
        if is_valid {
            connection.expect(&message(payload)).await;
            connection.write(b"\x40\x02\x00\x01").await;
            client.expect(b"\x40\x02\x00\x01").await;
        } else {
            client.expect(b"\x40\x03\x00\x01\x99").await;
        }
    }
    // What is too large is not collected; what another rule allows is not validated.
    client.write(&message(&" ".repeat(1025))).await;
    client.expect(b"\x40\x03\x00\x01\x87").await;
    let other = publish(5, 0, "other", None, b"", b"not JSON");
    client.write(&other).await;
    connection.expect(&other).await;
    std::fs::write(gateway.path().with_file_name("schema.json"), "{ \"type\": 7 }").unwrap();
    let error = gateway.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("schema.json"), "{error}");
}

#[tokio::test]
async fn a_reload_that_takes_a_right_away_reaches_live_sessions() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let (mut one, mut one_at_broker) = session(&gateway, &broker, 5).await;
    let (mut other, mut other_at_broker) = session(&gateway, &broker, 5).await;
    for (client, connection, filter) in
        [(&mut one, &mut one_at_broker, "down/a/1"), (&mut other, &mut other_at_broker, "down/b")]
    {
        client.write(&subscribe(5, 1, &[(filter, 0)])).await;
        connection.expect(&subscribe(5, 1, &[(filter, 0)])).await;
        connection.write(&suback(5, 1, &[0])).await;
        client.expect(&suback(5, 1, &[0])).await;
    }
    let narrower = POLICY.replace("\"down/#\"", "\"down/a/#\"").replace("up/${mqtt.client_id}/#", "up/new/#");
    gateway.write(&configuration("topics = \"p\"", &narrower, &broker));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(other.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_policy_changed");
    // The one that holds only what is still allowed goes on by the new rules.
    let (old, new) = (publish(5, 2, "up/dev-1/a", Some(1), b"", b""), publish(5, 0, "up/new/a", None, b"", b""));
    one.write(&[&old[..], &new].concat()).await;
    one.expect(b"\x40\x03\x00\x01\x87").await;
    one_at_broker.expect(&new).await;
    one_at_broker
        .write(&[publish(5, 0, "down/b", None, b"", b"x"), publish(5, 0, "down/a", None, b"", b"y")].concat())
        .await;
    one.expect(&publish(5, 0, "down/a", None, b"", b"y")).await;
    // Without a policy, everything is allowed again.
    gateway.write(&configuration("", "", &broker));
    gateway.gateway.reload().await.unwrap();
    one.write(&old).await;
    one_at_broker.expect(&old).await;
}

#[tokio::test]
async fn a_session_that_was_not_inspected_ends_when_it_has_to_be() {
    let (gateway, broker) = start("", "").await;
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    // In shadow mode and with limits alone it may go on.
    let shadow = POLICY.replace("name = \"p\"", "name = \"p\"\nmode = \"shadow\"");
    for (listener, rest) in [("topics = \"p\"", &shadow[..]), ("", "[listener.limits]\nmax_topic_levels = 3\n")] {
        gateway.write(&configuration(listener, rest, &broker));
        gateway.gateway.reload().await.unwrap();
        client.write(b"\xc0\x00").await;
        connection.expect(b"\xc0\x00").await;
    }
    gateway.write(&configuration("topics = \"p\"", POLICY, &broker));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_policy_changed");
    // Subscribers trust stamps.
    let (gateway, broker) = start("", "").await;
    let (mut client, _connection) = session(&gateway, &broker, 5).await;
    let stamps = "[listener.publish]\nuser_properties = { by = 'mqtt.client_id' }\n";
    gateway.write(&configuration("", stamps, &broker));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn a_will_that_is_no_longer_allowed_is_discarded() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let mut client = Client::tcp(gateway.address()).await;
    let connect = with_will(5, 0, "up/dev-1/a", b"x", b"");
    client.write(&connect).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect).await;
    connection.write(&connack(5)).await;
    client.expect(&connack(5)).await;
    gateway.write(&configuration("topics = \"p\"", &POLICY.replace("up/", "other/"), &broker));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(connection.read_to_end().await, b"\xe0\x00", "the broker would publish it otherwise");
    assert_eq!(gateway.outcome().await, "403 session_policy_changed");
}

#[tokio::test]
async fn a_will_is_discarded_however_the_session_ends_by_a_reload() {
    let connect = with_will(5, 0, "up/dev-1/a", b"x", b"");
    let narrow = POLICY.replace("up/", "other/");
    let unfit = POLICY.replace("publish", "when = 'mqtt.username == \"a\"'\npublish");
    // Before the broker has answered; where a condition has no value; where packets were not inspected before.
    for (before, after, has_connack) in
        [(POLICY, &narrow, false), (POLICY, &unfit, true), ("", &narrow, true), (POLICY, &unfit, false)]
    {
        let topics = if before.is_empty() { "" } else { "topics = \"p\"" };
        let (gateway, broker) = start(topics, before).await;
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect).await;
        let mut connection = broker.accept().await;
        connection.expect(&connect).await;
        if has_connack {
            connection.write(&connack(5)).await;
            client.expect(&connack(5)).await;
        }
        gateway.write(&configuration("topics = \"p\"", after, &broker));
        gateway.gateway.reload().await.unwrap();
        assert_eq!(connection.read_to_end().await, b"\xe0\x00", "{before} {after}");
        let told = client.read_to_end().await;
        assert_eq!(told, if has_connack { &b"\xe0\x02\x87\x00"[..] } else { b"\x20\x03\x00\x87\x00" });
        assert_eq!(gateway.outcome().await, "403 session_policy_changed");
    }
}

#[tokio::test]
async fn rules_that_are_added_reach_sessions_that_were_only_limited() {
    let (gateway, broker) = start("", "[listener.limits]\nmax_topic_levels = 3\n").await;
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    let shadow = POLICY.replace("name = \"p\"", "name = \"p\"\nmode = \"shadow\"");
    let stamps = "[listener.limits]\nmax_topic_levels = 3\n[listener.publish]\nuser_properties = { by = '\"g\"' }\n";
    gateway.write(&configuration("topics = \"p\"", &format!("{stamps}{shadow}"), &broker));
    gateway.gateway.reload().await.unwrap();
    client.write(&publish(5, 0, "other", None, b"", b"x")).await;
    let by = [&[0x26][..], &field(b"by"), &field(b"g")].concat();
    connection.expect(&publish(5, 0, "other", None, &by, b"x")).await;
    client.write(&publish(5, 2, "a/b/c/d", Some(1), b"", b"x")).await;
    client.expect(b"\x40\x03\x00\x01\x90").await;
    let text = metrics(&gateway).await;
    for line in [
        "portcullis_topic_decisions_total{listener=\"devices\",policy=\"p\",rule=\"no_match\",action=\"publish\",verdict=\"shadow_denied\"} 1",
        "portcullis_limits_exceeded_total{listener=\"devices\",limit=\"max_topic_levels\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn sessions_of_a_listener_that_was_renamed_follow_its_rules() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    // Another listener would admit the client, too, without any rules.
    let other = TestGateway::LISTENER.replace("protocol = \"tls\"", "protocol = \"tcp\"").replace("devices", "open");
    let renamed =
        configuration("topics = \"p\"", &POLICY.replace("up/", "new/"), &broker).replace("devices", "renamed");
    gateway.write(&format!("{other}{renamed}"));
    gateway.gateway.reload().await.unwrap();
    let allowed = publish(5, 0, "new/dev-1/a", None, b"", b"");
    client.write(&[&publish(5, 2, "up/dev-1/a", Some(1), b"", b"")[..], &allowed].concat()).await;
    client.expect(b"\x40\x03\x00\x01\x87").await;
    connection.expect(&allowed).await;
    // Nothing is left that could admit it with another topic space.
    gateway.write(&configuration("mountpoint = 'm/'", "", &broker).replace("devices", "again"));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn a_session_without_rules_goes_on_where_a_listener_without_rules_would_admit_it() {
    let (gateway, broker) = start("", "").await;
    let (mut client, mut connection) = session(&gateway, &broker, 5).await;
    let plain = TestGateway::LISTENER.replace("protocol = \"tls\"", "protocol = \"tcp\"").replace("devices", "plain");
    let strict = configuration("topics = \"p\"", POLICY, &broker).replace("devices", "strict");
    gateway.write(&format!("{strict}{plain}"));
    gateway.gateway.reload().await.unwrap();
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    gateway.write(&strict);
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}

#[tokio::test]
async fn packets_behind_connect_are_judged_and_answered_behind_connack() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let mut client = Client::tcp(gateway.address()).await;
    let denied = publish(5, 2, "up/other", Some(7), b"", b"x");
    client.write(&[connect_v5("dev-1"), denied, b"\xc0\x00".to_vec()].concat()).await;
    let mut connection = broker.accept().await;
    connection.expect(&[&connect_v5("dev-1")[..], b"\xc0\x00"].concat()).await;
    connection.write(&[&connack(5)[..], b"\xd0\x00"].concat()).await;
    client.expect(&[&connack(5)[..], b"\x40\x03\x00\x07\x87\xd0\x00"].concat()).await;
    // A violation there rejects the client.
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&[connect_v5("dev-1"), b"\x20\x02\x00\x00".to_vec()].concat()).await;
    assert_eq!(client.read_to_end().await, b"\x20\x03\x00\x82\x00");
    assert!(broker.is_left_alone().await);
    let line = gateway.lines(1).await.remove(0);
    assert!(line.ends_with(" protocol_violation"), "{line}");
}

#[tokio::test]
async fn rules_see_the_client_as_the_broker_does() {
    let connect = "[listener.connect]\nclient_id = '\"real\"'\n";
    let (gateway, broker) = start("topics = \"p\"", &format!("{connect}{POLICY}")).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect_v5("pretended")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect_v5("real")).await;
    connection.write(&connack(5)).await;
    client.expect(&connack(5)).await;
    for round in 0..2 {
        let own = publish(5, 0, "up/real/a", None, b"", b"");
        client.write(&[&publish(5, 2, "up/pretended/a", Some(1), b"", b"")[..], &own].concat()).await;
        client.expect(b"\x40\x03\x00\x01\x87").await;
        connection.expect(&own).await;
        if round == 0 {
            gateway.gateway.reload().await.unwrap();
        }
    }
}
