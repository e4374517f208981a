//! Upstreams: brokers that are up, down, or restart.

use std::time::Duration;

use portcullis_testkit::{Broker, Client, TestGateway, connack, connect};
use tokio::net::TcpListener;

/// An address without a listening socket.
async fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn upstream(servers: &[String], rest: &str) -> String {
    format!("[[upstream]]\nname = \"brokers\"\nservers = {servers:?}\n{rest}\n")
}

const OFF: &str = "health = { mode = \"off\" }";

#[tokio::test]
async fn the_next_server_is_tried_and_the_failed_one_left_alone() {
    let broker = Broker::start().await;
    let servers = [nowhere().await, broker.address().to_string()];
    let gateway = TestGateway::plain(&upstream(&servers, &format!("balance = \"round_robin\"\n{OFF}"))).await;
    for n in 0..4 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("thing001")).await;
        let mut connection = broker.accept().await;
        connection.expect(&connect("thing001")).await;
        connection.write(&connack(4)).await;
        client.expect(&connack(4)).await;
        drop((client, connection));
        let lines = gateway.lines(n + 1).await;
        assert!(lines[n].contains(&format!(" {} thing001 ", servers[1])), "{}", lines[n]);
    }
}

#[tokio::test]
async fn no_server_at_all_is_a_refusal_with_a_reason() {
    let gateway = TestGateway::plain(&upstream(&[nowhere().await, nowhere().await], OFF)).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x03");
    assert_eq!(gateway.outcome().await, "502 upstream_unreachable");
}

#[tokio::test]
async fn a_full_server_is_a_refusal_with_a_reason() {
    let broker = Broker::start().await;
    let server = format!("[{{ address = \"{}\", max_connections = 1 }}]", broker.address());
    let gateway = TestGateway::plain(&format!("[[upstream]]\nname = \"brokers\"\nservers = {server}\n{OFF}\n")).await;
    let mut first = Client::tcp(gateway.address()).await;
    first.write(&connect("thing001")).await;
    let connection = broker.accept().await;
    let mut second = Client::tcp(gateway.address()).await;
    second.write(&connect("thing002")).await;
    assert_eq!(second.read_to_end().await, b"\x20\x02\x00\x03");
    assert_eq!(gateway.outcome().await, "503 upstream_full");
    drop((first, connection));
    gateway.lines(2).await;
    let mut third = Client::tcp(gateway.address()).await;
    third.write(&connect("thing003")).await;
    broker.accept().await.expect(&connect("thing003")).await;
}

#[tokio::test]
async fn a_broker_that_does_not_answer_as_one_is_named() {
    for (answer, reason) in [(&b""[..], "502 upstream_closed_early"), (b"HTTP/1.1 400\r\n", "502 upstream_protocol")] {
        let broker = Broker::start().await;
        let gateway = TestGateway::plain(&broker.upstream()).await;
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("thing001")).await;
        let mut connection = broker.accept().await;
        connection.expect(&connect("thing001")).await;
        connection.write(answer).await;
        drop(connection);
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x03");
        assert_eq!(gateway.outcome().await, reason);
    }
}

#[tokio::test]
async fn one_client_id_goes_to_one_broker_and_no_client_id_to_any() {
    let (one, two) = (Broker::start().await, Broker::start().await);
    let servers = [one.address().to_string(), two.address().to_string()];
    let gateway = TestGateway::plain(&upstream(&servers, OFF)).await;
    let where_to = async |client_id: &str| {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect(client_id)).await;
        let (mut connection, number) = tokio::select! {
            connection = one.accept() => (connection, 1),
            connection = two.accept() => (connection, 2),
        };
        connection.expect(&connect(client_id)).await;
        connection.write(&connack(4)).await;
        client.expect(&connack(4)).await;
        number
    };
    let mut seen = std::collections::HashSet::new();
    for n in 0..12 {
        let client_id = format!("thing{n:03}");
        let first = where_to(&client_id).await;
        assert_eq!(where_to(&client_id).await, first, "{client_id}");
        seen.insert(first);
    }
    assert_eq!(seen.len(), 2, "both brokers have clients");
    let mut anywhere = std::collections::HashSet::new();
    for _ in 0..40 {
        anywhere.insert(where_to("").await);
    }
    assert_eq!(anywhere.len(), 2, "an empty client ID is no key");
}

#[tokio::test]
async fn health_checks_take_a_broker_down_and_up_again() {
    let broker = Broker::start().await;
    let health = "health = { interval = \"100ms\", timeout = \"500ms\" }";
    let configuration = format!(
        "{}{}[admin]\nbind = \"127.0.0.1:0\"\n",
        TestGateway::LISTENER.replace("\"tls\"", "\"tcp\""),
        upstream(&[broker.address().to_string()], health)
    );
    let gateway = TestGateway::start(&configuration).await;
    // A CONNECT of MQTT 3.1.1 with a client ID of its own; it gets "server unavailable".
    let mut check = broker.accept().await;
    let packet = check.read(37).await;
    assert_eq!(packet[..13], *b"\x10\x23\x00\x04MQTT\x04\x02\x00\x3c\x00", "{packet:?}");
    assert!(packet[14..].starts_with(b"portcullis-"), "{packet:?}");
    check.write(b"\x20\x02\x00\x03").await;
    let admin = gateway.gateway.admin_address().unwrap();
    let ask = async |path: &str| {
        let mut http = Client::tcp(admin).await;
        http.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        String::from_utf8(http.read_to_end().await).unwrap()
    };
    while !ask("/readyz").await.contains("503 Service Unavailable") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ask("/readyz").await.contains("upstream brokers has no server that is up"));
    assert!(ask("/livez").await.contains("200 OK"));
    let down = format!("portcullis_upstream_up{{upstream=\"brokers\",server=\"{}\"}} 0", broker.address());
    assert!(ask("/metrics").await.contains(&down));
    // A broker that rejects the check's user is up nevertheless.
    let mut check = broker.accept().await;
    check.read(37).await;
    check.write(b"\x20\x02\x00\x05").await;
    assert_eq!(check.read_to_end().await, b"\xe0\x00");
    while !ask("/readyz").await.contains("200 OK") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn names_are_resolved() {
    let broker = Broker::start().await;
    let server = format!("localhost:{}", broker.address().port());
    let gateway = TestGateway::plain(&upstream(&[server], &format!("connect_timeout = \"2s\"\n{OFF}"))).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
}

#[tokio::test]
async fn a_broker_that_returns_is_used_again() {
    let address = nowhere().await;
    let rest = format!("fail_timeout = \"200ms\"\n{OFF}");
    let gateway = TestGateway::plain(&upstream(std::slice::from_ref(&address), &rest)).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x03");
    let listener = TcpListener::bind(&address).await.unwrap();
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    let accepted = tokio::time::timeout(portcullis_testkit::PATIENCE, listener.accept()).await;
    assert!(accepted.is_ok(), "a server that is down is tried if no other is left");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let broker = Broker::start().await;
    // It accepts connections and never answers the TLS handshake.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pki = portcullis_testkit::Pki::new();
    let rest = format!("connect_timeout = \"200ms\"\n{OFF}\n[upstream.tls]\nca = {:?}\n", pki.root());
    let gateway = TestGateway::plain(&upstream(&[silent.local_addr().unwrap().to_string()], &rest)).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x03");
    assert_eq!(gateway.outcome().await, "502 upstream_unreachable");
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn both_wildcards_may_be_bound_and_a_unix_socket_answers() {
    let broker = Broker::start().await;
    let port = TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let both = format!("[\"0.0.0.0:{port}\", \"[::]:{port}\"]");
    let configuration = format!(
        "{}{}[admin]\nbind = \"unix:{}\"\n",
        listener.replace("\"127.0.0.1:0\"", &both),
        broker.upstream(),
        socket.display()
    );
    let gateway = TestGateway::start(&configuration).await;
    assert_eq!(gateway.gateway.addresses().len(), 2);
    let mut http = tokio::net::UnixStream::connect(&socket).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut http, b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut http, &mut answer).await.unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_server_is_taken_out_of_service_step_by_step_or_kept_by_its_sessions() {
    let brokers = [Broker::start().await, Broker::start().await];
    let configuration = |option: &str| {
        let servers = format!(
            "servers = [{{ address = \"{}\"{option} }}, {{ address = \"{}\", backup = true }}]",
            brokers[0].address(),
            brokers[1].address()
        );
        format!(
            "{}[[upstream]]\nname = \"brokers\"\n{servers}\ndrain_pace = 2\n{OFF}",
            TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"")
        )
    };
    let gateway = TestGateway::start(&configuration("")).await;
    let mut sessions = Vec::new();
    for n in 0..5 {
        let mut client = Client::tcp(gateway.address()).await;
        let connection = client.greet(&brokers[0], &connect(&format!("thing{n}"))).await;
        sessions.push((client, connection));
    }
    // The sessions stay, and new ones go elsewhere.
    gateway.write(&configuration(", down = true"));
    gateway.gateway.reload().await.unwrap();
    gateway.gateway.run_maintenance().await;
    let mut elsewhere = Client::tcp(gateway.address()).await;
    let _elsewhere = elsewhere.greet(&brokers[1], &connect("elsewhere")).await;
    for (client, connection) in &mut sessions {
        client.write(b"\xc0\x00").await;
        connection.expect(b"\xc0\x00").await;
    }
    // They end, two a second, although new sessions use another upstream.
    let moved = format!("\n[[upstream]]\nname = \"new\"\nservers = [\"{}\"]\n{OFF}", brokers[1].address());
    let listener = configuration(", drain = true").replacen("upstream = \"brokers\"", "upstream = \"new\"", 1);
    gateway.write(&(listener + &moved));
    gateway.gateway.reload().await.unwrap();
    for (client, _) in &mut sessions {
        client.read_to_end().await;
    }
    drop(sessions);
    let lines = gateway.lines(5).await;
    assert!(lines.iter().all(|line| line.ends_with(" server_drained")), "{lines:#?}");
    let time = |line: &String| line.split(['[', ']']).nth(1).unwrap().to_owned();
    let seconds: std::collections::BTreeSet<String> = lines.iter().map(time).collect();
    assert!(seconds.len() >= 2, "{seconds:?}");
    elsewhere.write(b"\xc0\x00").await;
    let mut late = Client::tcp(gateway.address()).await;
    let _late = late.greet(&brokers[1], &connect("late")).await;
}

#[tokio::test]
async fn local_addresses_are_used_evenly_by_sessions_and_health_checks_and_counted() {
    let broker = Broker::start().await;
    let upstream = format!(
        "[[upstream]]\nname = \"brokers\"\nservers = [\"{}\"]\nsource_addresses = [\"127.0.0.5\", \"127.0.0.6\"]\n\
         [admin]\nbind = \"127.0.0.1:0\"\n",
        broker.address()
    );
    let gateway = TestGateway::plain(&upstream).await;
    let source = |connection: &portcullis_testkit::BrokerConnection| connection.0.peer_addr().unwrap().ip().to_string();
    // A health check.
    let check = broker.accept().await;
    assert!(["127.0.0.5", "127.0.0.6"].contains(&source(&check).as_str()));
    drop(check);
    let mut sessions = Vec::new();
    for n in 0..6 {
        let mut client = Client::tcp(gateway.address()).await;
        let packet = connect(&format!("thing{n}"));
        client.write(&packet).await;
        // Others are health checks.
        let connection = loop {
            let mut connection = broker.accept().await;
            if connection.read(packet.len().min(14)).await == packet[..14] {
                break connection;
            }
        };
        let mut connection = connection;
        connection.expect(&packet[14..]).await;
        connection.write(&portcullis_testkit::connack(4)).await;
        client.expect(&portcullis_testkit::connack(4)).await;
        sessions.push((client, connection));
    }
    let mut sources: Vec<String> = sessions.iter().map(|(_, connection)| source(connection)).collect();
    sources.sort();
    assert_eq!(sources, ["127.0.0.5", "127.0.0.5", "127.0.0.5", "127.0.0.6", "127.0.0.6", "127.0.0.6"]);
    let mut http = Client::tcp(gateway.gateway.admin_address().unwrap()).await;
    http.write(b"GET /metrics HTTP/1.0\r\n\r\n").await;
    let metrics = String::from_utf8(http.read_to_end().await).unwrap();
    for source in ["127.0.0.5", "127.0.0.6"] {
        let series = format!(
            "portcullis_upstream_local_ports_used{{upstream=\"brokers\",server=\"{}\",source_address=\"{source}\"}} 3",
            broker.address()
        );
        assert!(metrics.contains(&series), "{metrics}");
    }
}

#[test]
fn local_addresses_have_to_be_of_this_machine_and_of_the_servers_family() {
    let problems = |sources: &str, servers: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
        let upstream =
            format!("[[upstream]]\nname = \"brokers\"\nservers = [{servers}]\nsource_addresses = {sources}\n");
        std::fs::write(&path, format!("{listener}{upstream}")).unwrap();
        portcullis_gateway::Runtime::load(&path, &portcullis_gateway::ProcessState::new())
            .map_or_else(|problems| problems.render(false), |_| "none".to_owned())
    };
    for (sources, expected) in [
        ("[\"127.0.0.5\"]", "none"),
        ("[\"192.0.2.77\"]", "cannot use `192.0.2.77` as a local address"),
        ("[\"0.0.0.0\"]", "is no address of this machine"),
        ("[\"127.0.0.5\", \"127.0.0.5\"]", "is there twice"),
        ("[]", "`source_addresses` is empty"),
        ("[\"localhost\"]", "`localhost` is not an IP address"),
        ("[\"127.0.0.5:0\"]", "`127.0.0.5:0` is not an IP address"),
        ("\"127.0.0.5\"", "expected a list"),
        ("[\"::1\"]", "no source address is of IPv4"),
    ] {
        let found = problems(sources, "\"127.0.0.1:1\"");
        assert!(found.contains(expected), "{sources}: {found}");
    }
}
