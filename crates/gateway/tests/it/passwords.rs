//! Password files, and clients that several authenticators know.

use std::fs;

use portcullis_gateway::{PasswordHash, set_password};
use portcullis_testkit::{Broker, Client, TestGateway, connect, connect_as, connect_v5, password_file};

const REFUSED: &[u8] = b"\x20\x02\x00\x04";

async fn gateway(broker: &Broker, authenticate: &str, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let upstream = broker.upstream();
    TestGateway::start(&format!("{listener}authenticate = {authenticate}\n{upstream}{rest}")).await
}

#[tokio::test]
async fn the_right_password_is_let_in_and_everything_else_looks_the_same() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let gateway =
        gateway(&broker, "[\"users\"]", &password_file(dir.path(), "users", &[("alice", "secret"), ("bob", "other")]))
            .await;
    let (mut client, mut connection) = gateway.session(&broker, &connect_as("a", "alice", b"secret")).await;
    client.shutdown().await;
    connection.read_to_end().await;
    drop((client, connection));
    gateway.lines(1).await;
    let wrong: &[(Vec<u8>, &str)] = &[
        (connect_as("a", "alice", b"Secret"), "bad_credentials"),
        (connect_as("a", "alice", b""), "bad_credentials"),
        (connect_as("a", "alice", b"other"), "bad_credentials"),
        (connect_as("a", "ALICE", b"secret"), "unknown_client"),
        (connect_as("a", "alice ", b"secret"), "unknown_client"),
        (connect_as("a", "", b"secret"), "unknown_client"),
        (connect_as("a", "nobody", b"secret"), "unknown_client"),
        (connect_as("a", "alice:secret", b""), "unknown_client"),
        (connect("a"), "unknown_client"),
    ];
    for (n, (packet, reason)) in wrong.iter().enumerate() {
        assert_eq!(gateway.refusal(packet).await, REFUSED, "{reason}");
        let line = gateway.lines(n + 2).await.pop().unwrap();
        assert!(line.ends_with(reason) && line.contains(" 403 "), "{line}");
    }
    // In MQTT 5, with the codes of MQTT 5.
    assert_eq!(gateway.refusal(&connect_v5("a")).await, b"\x20\x03\x00\x86\x00");
    assert!(broker.is_left_alone().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_from_one_address_keep_no_other_waiting() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let users = password_file(dir.path(), "users", &[("alice", "secret")]);
    let gateway = gateway(&broker, "[\"users\"]", &users).await;
    let mut guessing = Vec::new();
    for n in 0..60 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect_as("a", &format!("nobody{n}"), b"guess")).await;
        guessing.push(client);
    }
    let mut alice = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    alice.greet(&broker, &connect_as("alice", "alice", b"secret")).await;
    drop(alice);
    // In the order of arrival, all guesses would have been verified before.
    let lines =
        std::fs::read_to_string(gateway.path().with_file_name("access.log")).unwrap_or_default().lines().count();
    assert!(lines < 30, "{lines} guesses were verified first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_of_clients_that_left_are_not_verified() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let users = password_file(dir.path(), "users", &[("alice", "secret")]);
    let gateway = gateway(&broker, "[\"users\"]", &users).await;
    for n in 0..60 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect_as("a", &format!("nobody{n}"), b"guess")).await;
    }
    let lines = gateway.lines(60).await;
    let left = lines.iter().filter(|line| line.ends_with(" client_left")).count();
    // The threads have begun with some.
    assert!(left > 30, "{left} of 60: {lines:?}");
}

#[tokio::test]
async fn who_guesses_and_leaves_is_banned_all_the_same() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let users = password_file(dir.path(), "users", &[("alice", "secret")]);
    let ban = "[[listener.ban]]\non = [\"failure\"]\ncount = 5\nwindow = \"60s\"\nduration = \"10m\"\n";
    let gateway = gateway(&broker, "[\"users\"]", &format!("{ban}{users}")).await;
    let right = connect_as("alice", "alice", b"secret");
    let mut alice = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    // Her password is in the cache then: a right guess would not wait.
    alice.greet(&broker, &right).await;
    for n in 0..12 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect_as("alice", "alice", format!("guess{n}").as_bytes())).await;
    }
    gateway.lines(12).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&right).await;
    let line = gateway.lines(13).await.pop().unwrap();
    assert!(line.ends_with(" banned"), "{line}");
    // She is at another address.
    let mut again = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    again.greet(&broker, &right).await;
}

#[tokio::test]
async fn the_log_says_who_knew_the_client() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let tables = password_file(dir.path(), "users", &[("alice", "one")]) + "[access_log]\nformat = \"json\"\n";
    let gateway = gateway(&broker, "[\"users\"]", &tables).await;
    drop(gateway.session(&broker, &connect_as("a", "alice", b"one")).await);
    assert_eq!(gateway.field(1, "authenticator").await, "users");
}

#[tokio::test]
async fn a_user_who_is_removed_or_changed_is_out() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let gateway =
        gateway(&broker, "[\"users\"]", &password_file(dir.path(), "users", &[("alice", "one"), ("bob", "two")])).await;
    let (mut alice, _a) = gateway.session(&broker, &connect_as("a", "alice", b"one")).await;
    let (mut bob, mut at_broker) = gateway.session(&broker, &connect_as("b", "bob", b"two")).await;
    let path = dir.path().join("users");
    set_password(&path, "alice", &PasswordHash::make(b"new").unwrap()).unwrap();
    alice.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_credential_withdrawn"));
    assert_eq!(gateway.refusal(&connect_as("a", "alice", b"one")).await, REFUSED, "the cache is not used");
    let (mut alice, _a) = gateway.session(&broker, &connect_as("a", "alice", b"new")).await;
    bob.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
    // A malformed file changes nothing; a file without bob closes bob's session.
    fs::write(&path, "bob\n").unwrap();
    gateway.gateway.run_maintenance().await;
    bob.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
    fs::write(&path, "# nobody\n").unwrap();
    bob.read_to_end().await;
    alice.read_to_end().await;
}

#[tokio::test]
async fn a_reload_that_asks_others_ends_those_who_are_known_to_nobody() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let tables = password_file(dir.path(), "users", &[("alice", "one")])
        + &password_file(dir.path(), "staff", &[("bob", "two")]);
    let gateway = gateway(&broker, "[\"users\", \"staff\"]", &tables).await;
    let (mut alice, _a) = gateway.session(&broker, &connect_as("a", "alice", b"one")).await;
    let (mut bob, mut at_broker) = gateway.session(&broker, &connect_as("b", "bob", b"two")).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.replace("[\"users\", \"staff\"]", "[\"staff\"]");
    gateway.write(text.split("[access_log]").next().unwrap());
    gateway.gateway.reload().await.unwrap();
    alice.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_credential_withdrawn"));
    bob.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_reload_that_asks_at_all_ends_those_who_were_not_asked() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let gateway = TestGateway::plain(&broker.upstream()).await;
    let (mut client, _connection) = gateway.session(&broker, &connect("a")).await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let tables = password_file(dir.path(), "users", &[("alice", "one")]);
    gateway.write(&format!("{listener}authenticate = [\"users\"]\n{}{tables}", broker.upstream()));
    gateway.gateway.reload().await.unwrap();
    client.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_credential_withdrawn"));
}

#[test]
fn a_users_line_is_changed_and_the_others_stay() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    assert!(!set_password(&path, "alice", "$1").unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, "# staff\n\nalice:$1\nbob:$2").unwrap();
    assert!(set_password(&path, "alice", "$3").unwrap());
    assert!(!set_password(&path, "carol", "$4").unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "# staff\n\nalice:$3\nbob:$2\ncarol:$4\n");
    for wrong in ["", "a:b", "#a", "a\nb"] {
        assert!(set_password(&path, wrong, "$5").is_err(), "{wrong:?}");
    }
    for other in ["-----BEGIN CERTIFICATE-----\nMIIB\n", "name: value\n", "\u{0}"] {
        let file = dir.path().join("users");
        fs::write(&file, other).unwrap();
        assert!(set_password(&file, "alice", "$6").is_err(), "{other:?} is no password file");
        assert_eq!(fs::read_to_string(&file).unwrap(), other, "and stays as it is");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}
