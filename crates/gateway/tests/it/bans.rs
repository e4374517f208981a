//! Bans of clients that connect or fail too often.

use std::time::Duration;

use portcullis_gateway::PasswordHash;
use portcullis_testkit::{
    Broker, Client, Pki, TestGateway, advance, connack, connect, connect_as, eventually, tls_config,
};

async fn gateway(broker: &Broker, ban: &str, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    TestGateway::start(&format!("{listener}[[listener.ban]]\n{ban}\n{rest}{}", broker.upstream())).await
}

/// A client that is admitted and disconnects.
async fn visit(gateway: &TestGateway, broker: &Broker, id: &str) {
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect(id)).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect(id)).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
    client.shutdown().await;
    connection.read_to_end().await;
}

#[tokio::test]
async fn an_address_that_comes_too_often_is_refused_before_anything_is_read() {
    let broker = Broker::start().await;
    let gateway = gateway(&broker, "on = [\"connect\"]\ncount = 3\nduration = \"1h\"", "").await;
    for _ in 0..3 {
        visit(&gateway, &broker, "a").await;
    }
    for lines in 4..6 {
        let mut client = Client::tcp(gateway.address()).await;
        assert!(client.read_to_end().await.is_empty(), "closed without sending a byte");
        let line = gateway.lines(lines).await.pop().unwrap();
        assert!(line.contains(" 403 0 0 ") && line.ends_with(" - - banned"), "{line}");
    }
    // Also across a reload.
    gateway.gateway.reload().await.unwrap();
    assert!(Client::tcp(gateway.address()).await.read_to_end().await.is_empty());
    advance(Duration::from_secs(55 * 60));
    assert!(Client::tcp(gateway.address()).await.read_to_end().await.is_empty(), "not before its time");
    advance(Duration::from_secs(5 * 60));
    visit(&gateway, &broker, "a").await;
}

#[tokio::test]
async fn a_banned_address_gets_no_handshake() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let listener = TestGateway::LISTENER;
    let ban = "[[listener.ban]]\non = [\"failure\"]\ncount = 1\n";
    let configuration = format!("{listener}{}{ban}{}", pki.listener_tls(), broker.upstream());
    let gateway = TestGateway::start(&configuration).await;
    for _ in 0..2 {
        let config = tls_config(&pki, None, &[&rustls::version::TLS12]);
        assert!(Client::try_tls(gateway.address(), config, "localhost").await.is_err());
    }
    let mut client = Client::tcp(gateway.address()).await;
    assert!(client.read_to_end().await.is_empty(), "not even an alert");
    let lines = gateway.lines(3).await;
    assert!(lines[1].ends_with(" no_certificate") && lines[2].contains(" 403 0 0 "), "{lines:#?}");
    assert!(lines[2].ends_with(" banned"));
}

#[tokio::test]
async fn who_fails_too_often_is_refused_and_who_does_not_is_not() {
    let broker = Broker::start().await;
    let rest = "[listener.admit]\nrequire = ['mqtt.client_id == \"good\"']\n";
    let gateway = gateway(&broker, "on = [\"failure\"]\ncount = 2", rest).await;
    for _ in 0..5 {
        visit(&gateway, &broker, "good").await;
    }
    for _ in 0..3 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("bad")).await;
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05");
    }
    let mut client = Client::tcp(gateway.address()).await;
    assert!(client.read_to_end().await.is_empty());
    let lines = gateway.lines(9).await;
    assert!(lines[7].ends_with(" identity_mismatch") && lines[8].ends_with(" banned"), "{lines:#?}");
}

#[tokio::test]
async fn networks_that_are_excepted_may_come_as_they_like() {
    let broker = Broker::start().await;
    let gateway = gateway(&broker, "count = 1\nexcept = [\"::ffff:127.0.0.0/104\"]", "").await;
    for _ in 0..4 {
        visit(&gateway, &broker, "a").await;
    }
}

#[tokio::test]
async fn a_client_id_is_counted_once_it_is_proved() {
    let broker = Broker::start().await;
    let rest = "[listener.admit]\nrequire = ['mqtt.client_id != \"stranger\"']\n";
    let gateway = gateway(&broker, "key = \"client_id\"\ncount = 2", rest).await;
    for _ in 0..4 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("stranger")).await;
        assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05");
    }
    assert!(gateway.lines(4).await.iter().all(|line| line.ends_with(" identity_mismatch")));
    visit(&gateway, &broker, "a").await;
    visit(&gateway, &broker, "b").await;
    visit(&gateway, &broker, "a").await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("a")).await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05");
    assert!(gateway.lines(8).await[7].ends_with(" banned"));
    visit(&gateway, &broker, "b").await;
}

#[tokio::test]
async fn guesses_at_once_are_banned_one_after_the_other() {
    let broker = Broker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    portcullis_gateway::set_password(&users, "alice", &PasswordHash::make(b"secret").unwrap()).unwrap();
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"users\"]\n[[listener.ban]]\non = [\"failure\"]\ncount = 2\n{}\
         [[authenticator]]\nname = \"users\"\nkind = \"password_file\"\nfile = {users:?}\n",
        broker.upstream()
    ))
    .await;
    // All are accepted before the first one fails.
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::tcp(gateway.address()).await);
    }
    eventually("all connections", || (gateway.gateway.connections() == 8).then_some(())).await;
    for client in &mut clients {
        client.write(&connect_as("x", "alice", b"guess")).await;
        client.read_to_end().await;
    }
    let lines = gateway.lines(8).await;
    let banned = lines.iter().filter(|line| line.ends_with(" banned")).count();
    assert_eq!(banned, 5, "{lines:#?}");
}

#[tokio::test]
async fn a_right_guess_among_wrong_ones_comes_too_late_once_the_ban_has_begun() {
    let broker = Broker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    portcullis_gateway::set_password(&users, "alice", &PasswordHash::make(b"secret").unwrap()).unwrap();
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"users\"]\n[[listener.ban]]\non = [\"failure\"]\ncount = 1\n{}\
         [[authenticator]]\nname = \"users\"\nkind = \"password_file\"\nfile = {users:?}\n",
        broker.upstream()
    ))
    .await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::tcp(gateway.address()).await);
    }
    eventually("all connections", || (gateway.gateway.connections() == 6).then_some(())).await;
    // Verified in this order, one or a few at a time; all have arrived before the first result.
    for (n, client) in clients.iter_mut().enumerate() {
        let password: &[u8] = if n == 5 { b"secret" } else { b"guess" };
        client.write(&connect_as("x", "alice", password)).await;
    }
    let lines = gateway.lines(6).await;
    assert!(broker.is_left_alone().await, "{lines:#?}");
    let banned = lines.iter().filter(|line| line.ends_with(" banned")).count();
    assert!(banned >= 3, "those in progress do not learn their result: {lines:#?}");
}

#[tokio::test]
async fn the_client_id_that_counts_is_the_one_the_broker_gets() {
    let broker = Broker::start().await;
    let rest = "[listener.connect]\nclient_id = 'mqtt.client_id == \"\" ? \"\" : \"same\"'\n";
    let gateway = gateway(&broker, "key = \"client_id\"\ncount = 2", rest).await;
    for id in ["a", "b"] {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect(id)).await;
        let mut connection = broker.accept().await;
        connection.expect(&connect("same")).await;
        connection.write(&connack(4)).await;
        client.expect(&connack(4)).await;
    }
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("c")).await;
    assert_eq!(client.read_to_end().await, b"\x20\x02\x00\x05");
    // An empty client ID is not counted.
    for _ in 0..4 {
        visit(&gateway, &broker, "").await;
    }
}
