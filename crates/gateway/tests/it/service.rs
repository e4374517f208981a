//! The `http` authenticator and its authentication service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis_testkit::{
    Broker, Client, Pki, Service, TestGateway, advance, connack, connect, connect_as, eventually,
};
use serde_json::Value;

const REFUSED: &[u8] = b"\x20\x02\x00\x04";
const LATER: &[u8] = b"\x20\x02\x00\x03";

async fn gateway(broker: &Broker, service: &Service, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    TestGateway::start(&format!(
        "{listener}authenticate = [\"service\"]\n{}[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = {:?}\n{rest}",
        broker.upstream(),
        service.url("/mqtt")
    ))
    .await
}

/// A client that is admitted with `packet`; the broker receives the expected one.
async fn visit(gateway: &TestGateway, broker: &Broker, packet: &[u8], arrives: &[u8]) {
    let mut client = Client::tcp(gateway.address()).await;
    client.write(packet).await;
    let mut connection = broker.accept().await;
    connection.expect(arrives).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
}

#[tokio::test]
async fn the_service_is_told_who_it_is_and_says_who_it_shall_be() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let service = Service::start(|_| {
        Some((
            "200 OK",
            r#"{"result":"allow","client_id":"lyon/7","username":"pump","attributes":{"site":"lyon"}}"#.to_owned(),
        ))
    })
    .await;
    let gateway = TestGateway::start(&format!(
        "{}authenticate = [\"service\"]\n{}[listener.admit]\nrequire = ['http.site == \"lyon\"']\n{}\
         [[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = {:?}\nheaders = {{ Authorization = \"Bearer s3cret\" }}\n",
        TestGateway::LISTENER,
        pki.listener_tls(),
        broker.upstream(),
        service.url("/mqtt")
    ))
    .await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    client.write(&connect_as("thing001", "user", b"pass\xff")).await;
    broker.accept().await.expect(&connect_as("lyon/7", "pump", b"pass\xff")).await;
    let (head, body) = service.asked().remove(0);
    assert!(head.starts_with("post /mqtt http/1.1") && head.contains("authorization: bearer s3cret"), "{head}");
    let asked: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&asked["client_id"], &asked["username"]), (&"thing001".into(), &"user".into()));
    assert_eq!(asked["password_base64"], "cGFzc/8=");
    assert_eq!((&asked["mqtt_version"], &asked["listener"]), (&4.into(), &"devices".into()));
    assert_eq!(asked["remote_addr"], "127.0.0.1");
    assert_eq!(asked["certificate"]["common_name"], "thing001");
    assert_eq!(asked["tls"]["version"], "TLSv1.3");
}

#[tokio::test]
async fn answers_are_remembered_each_for_its_own_question() {
    let broker = Broker::start().await;
    let service = Service::start(|body| {
        let result = if body.contains("\"secret\"") { "allow" } else { "deny" };
        Some(("200 OK", format!("{{\"result\":\"{result}\"}}")))
    })
    .await;
    let gateway = gateway(&broker, &service, "cache = \"60s\"\nnegative_cache = \"60s\"\n").await;
    let good = connect_as("a", "alice", b"secret");
    for _ in 0..3 {
        visit(&gateway, &broker, &good, &good).await;
        assert_eq!(gateway.refusal(&connect_as("a", "alice", b"wrong")).await, REFUSED);
    }
    assert_eq!(service.asked().len(), 2);
    // The response for one client is not used for another.
    assert_eq!(gateway.refusal(&connect_as("b", "alice", b"wrong")).await, REFUSED);
    let other = connect_as("b", "alice", b"secret");
    visit(&gateway, &broker, &other, &other).await;
    assert_eq!(service.asked().len(), 4);
    let forgetful = self::gateway(&broker, &service, "cache = \"50ms\"\nnegative_cache = \"0s\"\n").await;
    visit(&forgetful, &broker, &good, &good).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    visit(&forgetful, &broker, &good, &good).await;
    for _ in 0..2 {
        assert_eq!(forgetful.refusal(&connect_as("a", "alice", b"wrong")).await, REFUSED);
    }
    assert_eq!(service.asked().len(), 8);
}

#[tokio::test]
async fn an_answer_that_is_none_lets_nobody_in_and_the_service_is_left_alone() {
    let broker = Broker::start().await;
    let is_well = Arc::new(AtomicBool::new(false));
    let health = Arc::clone(&is_well);
    let service = Service::start(move |body| {
        if health.load(Ordering::SeqCst) {
            return Some(("204 No Content", String::new()));
        }
        match body {
            body if body.contains("html") => Some(("200 OK", "<html>allow</html>".to_owned())),
            body if body.contains("redirect") => Some(("302 Found", r#"{"result":"allow"}"#.to_owned())),
            body if body.contains("broken") => Some(("500 Internal Server Error", r#"{"result":"allow"}"#.to_owned())),
            _ => None,
        }
    })
    .await;
    let rest = "timeout = \"300ms\"\nbreak_after = 4\nbreak_time = \"30s\"\n";
    let gateway = gateway(&broker, &service, rest).await;
    let faulty = ["html", "redirect", "broken", "broken", "broken", "broken"];
    for (n, id) in faulty.into_iter().chain(["silent"; 6]).enumerate() {
        let begin = Instant::now();
        assert_eq!(gateway.refusal(&connect(id)).await, LATER, "{id}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{id}: {:?}", begin.elapsed());
        let reason = if id == "silent" { " authentication_unavailable" } else { " authentication_error" };
        assert!(gateway.lines(n + 1).await[n].ends_with(reason));
    }
    let asked = || service.asked().iter().filter(|(head, _)| head.starts_with("post")).count();
    assert_eq!(asked(), 10, "errors for one client do not open the breaker, silence does");
    // The gateway's own requests, which are not answered either: after the first errors, and at once when the breaker opens.
    let probes = || service.asked().iter().filter(|(head, _)| head.starts_with("head /mqtt")).count();
    eventually("probes", || (probes() == 2).then_some(())).await;
    advance(Duration::from_secs(31));
    assert_eq!(gateway.refusal(&connect("silent")).await, LATER);
    is_well.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        advance(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(probes(), 3, "a further probe, and none once the breaker is closed");
    assert_eq!(asked(), 10, "no client's request before the probe has succeeded");
    visit(&gateway, &broker, &connect("a"), &connect("a")).await;
    visit(&gateway, &broker, &connect("b"), &connect("b")).await;
}

#[tokio::test]
async fn questions_that_the_service_does_not_like_do_not_close_it_for_others() {
    let broker = Broker::start().await;
    let service = Service::start(|body| match body {
        body if body.contains("bad") => Some(("400 Bad Request", String::new())),
        _ => Some(("204 No Content", String::new())),
    })
    .await;
    let gateway = gateway(&broker, &service, "break_after = 2\n").await;
    for _ in 0..5 {
        assert_eq!(gateway.refusal(&connect("bad")).await, LATER);
    }
    visit(&gateway, &broker, &connect("good"), &connect("good")).await;
}

#[tokio::test]
async fn a_client_that_the_service_stumbles_on_is_banned_and_harms_no_other() {
    let broker = Broker::start().await;
    let service = Service::start(|body| {
        let response = |text: &str| Some(("200 OK", text.to_owned()));
        match body {
            body if body.contains('#') => Some(("500 Internal Server Error", String::new())),
            body if body.contains("float") => response(r#"{"result":"allow","expires_at":1893456000.5}"#),
            body if body.contains("misspelt") => response(r#"{"result":"allow","expiresAt":1}"#),
            _ => response(r#"{"result":"allow"}"#),
        }
    })
    .await;
    let gateway = gateway(&broker, &service, "break_after = 2\n").await;
    for id in ["a/#", "a/#", "a/#", "float", "float", "float", "misspelt", "misspelt", "misspelt"] {
        assert_eq!(gateway.refusal(&connect(id)).await, LATER, "{id}");
        visit(&gateway, &broker, &connect("good"), &connect("good")).await;
    }
    let ban = "[[listener.ban]]\non = [\"failure\"]\ncount = 3\n";
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let banning = TestGateway::start(&format!(
        "{listener}authenticate = [\"service\"]\n{ban}{}[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = {:?}\n",
        broker.upstream(),
        service.url("/mqtt")
    ))
    .await;
    for _ in 0..4 {
        assert_eq!(banning.refusal(&connect("a/#")).await, LATER);
    }
    assert_eq!(banning.refusal(&connect("a/#")).await, b"", "banned");
}

#[tokio::test]
async fn a_service_that_fails_for_all_gets_nobody_banned() {
    let broker = Broker::start().await;
    let is_broken = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&is_broken);
    // It accepts HEAD even while it is broken.
    let service = Service::start(move |body| {
        let is_probe = body.is_empty();
        Some((if is_probe || !state.load(Ordering::SeqCst) { "204 No Content" } else { "500 Oh" }, String::new()))
    })
    .await;
    let ban = "[[listener.ban]]\non = [\"failure\"]\ncount = 5\n";
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"service\"]\n{ban}{}[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = {:?}\n\
         break_after = 1000\n",
        broker.upstream(),
        service.url("/mqtt")
    ))
    .await;
    let from = async |host: u8| Client::tcp_from([127, 0, 0, host], gateway.address()).await;
    is_broken.store(true, Ordering::SeqCst);
    // Many devices behind 127.0.0.2, and one elsewhere.
    for device in 0..10 {
        for (host, id) in [(2, format!("device{device}")), (3, "single".to_owned())] {
            let mut client = from(host).await;
            client.write(&connect(&id)).await;
            assert_eq!(client.read_to_end().await, LATER, "{id}");
        }
    }
    is_broken.store(false, Ordering::SeqCst);
    for host in [2, 3] {
        from(host).await.greet(&broker, &connect("device")).await;
    }
}

#[tokio::test]
async fn a_service_that_fails_for_itself_gets_a_single_network_not_banned() {
    let broker = Broker::start().await;
    let service = Service::start(|_| Some(("500 Oh", String::new()))).await;
    let ban = "[[listener.ban]]\non = [\"failure\"]\ncount = 3\n";
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"service\"]\n{ban}{}[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = {:?}\n",
        broker.upstream(),
        service.url("/mqtt")
    ))
    .await;
    for n in 0..10 {
        assert_eq!(gateway.refusal(&connect("a")).await, LATER);
        assert!(gateway.lines(n + 1).await[n].ends_with(" authentication_unavailable"));
    }
}

#[tokio::test]
async fn who_is_ignored_is_somebody_elses_and_who_is_denied_is_not() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().unwrap());
    let users = dir.path().join("users");
    let hash = portcullis_gateway::PasswordHash::make(b"pw").unwrap();
    for user in ["alice", "mallory"] {
        portcullis_gateway::set_password(&users, user, &hash).unwrap();
    }
    let service = Service::start(|body| {
        let result = if body.contains("mallory") { "deny" } else { "ignore" };
        Some(("200 OK", format!("{{\"result\":\"{result}\"}}")))
    })
    .await;
    let rest = format!("[[authenticator]]\nname = \"users\"\nkind = \"password_file\"\nfile = {users:?}\n");
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"service\", \"users\"]\n{}[[authenticator]]\nname = \"service\"\nkind = \"http\"\n\
         url = {:?}\n{rest}",
        broker.upstream(),
        service.url("/")
    ))
    .await;
    let alice = connect_as("a", "alice", b"pw");
    visit(&gateway, &broker, &alice, &alice).await;
    assert_eq!(gateway.refusal(&connect_as("a", "mallory", b"pw")).await, REFUSED);
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn a_session_ends_when_the_answer_expires_and_questions_are_bounded() {
    let broker = Broker::start().await;
    let service = Service::start(|body| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let at = if body.contains("past") { now - 1 } else { now + 60 };
        (!body.contains("slow")).then(|| ("200 OK", format!("{{\"result\":\"allow\",\"expires_at\":{at}}}")))
    })
    .await;
    let rest = "timeout = \"2s\"\nmax_concurrency = 1\nbreak_after = 100\n";
    let gateway = gateway(&broker, &service, rest).await;
    assert_eq!(gateway.refusal(&connect("past")).await, REFUSED);
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("a")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect("a")).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
    advance(Duration::from_secs(60));
    client.read_to_end().await;
    assert!(gateway.lines(2).await[1].ends_with(" session_token_expired"));
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("slow")).await;
        slow.push(client);
    }
    eventually("the service to be asked", || (service.asked().len() > 2).then_some(())).await;
    // Long enough for one that comes after them to be served.
    let mut other = Client::tcp(gateway.address()).await;
    other.write(b"\x30\x00").await;
    other.read_to_end().await;
    assert!(gateway.lines(3).await[2].ends_with(" not_connect"));
    assert_eq!(service.asked().len(), 3, "one at once");
    advance(Duration::from_secs(2));
    for mut client in slow {
        assert_eq!(client.read_to_end().await, LATER);
    }
    for line in &gateway.lines(8).await[3..] {
        assert!(line.ends_with(" authentication_busy") || line.ends_with(" authentication_unavailable"), "{line}");
    }
}

#[tokio::test]
async fn a_flood_from_one_address_leaves_places_to_others() {
    let broker = Broker::start().await;
    let service = Service::start(|body| (!body.contains("slow")).then(|| ("204 No Content", String::new()))).await;
    let gateway = gateway(&broker, &service, "max_concurrency = 8\ntimeout = \"5s\"\nbreak_after = 1000\n").await;
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect(&format!("slow{n}"))).await;
        slow.push(client);
    }
    eventually("requests", || (service.asked().len() == 4).then_some(())).await;
    for host in 2..6 {
        let mut other = Client::tcp_from([127, 0, 0, host], gateway.address()).await;
        other.greet(&broker, &connect("good")).await;
    }
    assert_eq!(service.asked().iter().filter(|(_, body)| body.contains("slow")).count(), 4, "half of all places");
}

#[tokio::test]
async fn the_service_is_not_asked_about_clients_that_left_while_they_waited() {
    let broker = Broker::start().await;
    let service = Service::start(|body| (!body.contains("slow")).then(|| ("204 No Content", String::new()))).await;
    let gateway = gateway(&broker, &service, "max_concurrency = 1\ntimeout = \"1s\"\nbreak_after = 1000\n").await;
    let mut slow = Client::tcp(gateway.address()).await;
    slow.write(&connect("slow")).await;
    eventually("a request", || (service.asked().len() == 1).then_some(())).await;
    for n in 0..5 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect(&format!("gone{n}"))).await;
        drop(client);
    }
    let lines = gateway.lines(5).await;
    assert!(lines.iter().all(|line| line.contains("gone") && line.ends_with(" client_left")), "{lines:?}");
    // Only now the place is free.
    assert_eq!(slow.try_read(4).await.unwrap(), LATER);
    let mut good = Client::tcp(gateway.address()).await;
    good.greet(&broker, &connect("good")).await;
    assert_eq!(service.asked().len(), 2);
}

#[tokio::test]
async fn who_waits_for_the_same_request_is_served_if_the_other_leaves() {
    let broker = Broker::start().await;
    let service = Service::start(|body| (!body.contains("slow")).then(|| ("204 No Content", String::new()))).await;
    let rest = "max_concurrency = 1\ntimeout = \"2s\"\nbreak_after = 1000\ncache = \"60s\"\nnegative_cache = \"60s\"\n";
    let gateway = gateway(&broker, &service, rest).await;
    let mut slow = Client::tcp(gateway.address()).await;
    slow.write(&connect("slow")).await;
    eventually("a request", || (service.asked().len() == 1).then_some(())).await;
    // The first is to make the request for all of them.
    let mut same = Vec::new();
    for _ in 0..3 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("same")).await;
        same.push(client);
    }
    drop(same.remove(0));
    assert!(gateway.lines(1).await[0].ends_with(" client_left"));
    assert_eq!(slow.try_read(4).await.unwrap(), LATER);
    for _ in &same {
        let mut connection = broker.accept().await;
        connection.expect(&connect("same")).await;
        connection.write(&connack(4)).await;
    }
    for client in &mut same {
        client.expect(&connack(4)).await;
    }
    assert_eq!(service.asked().len(), 2);
}
