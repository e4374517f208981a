//! A gateway that lacks file descriptors: clients get what the gateway itself does not need, and no broker is blamed.

use std::net::TcpStream;
use std::sync::Arc;

use crate::processes::{ADMIT, Launch, Mosquitto, eventually, finish, subscriber, upstream};

#[test]
fn silent_connections_take_no_descriptors_from_brokers_admin_and_files() {
    let broker = Mosquitto::start();
    let pki: Arc<portcullis_testkit::Pki> = Arc::default();
    let checked = upstream(broker.port).replace("mode = \"off\"", "interval = \"100ms\", fails = 1");
    let tls = pki.listener_tls_with_crl();
    let gateway = Launch::new(Arc::clone(&pki), &format!("{ADMIT}{checked}")).tls_table(&tls).open_files(80).start();
    let warned = || gateway.own_log().contains("the limit of open files allows fewer connections").then_some(());
    eventually("the warning", warned);
    let mut session = subscriber(&gateway, &|| broker.log(), &[], "sub");
    let checks = || broker.log().matches("portcullis-").count();

    let silent: Vec<_> = (0..90).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    gateway.wait_for_reason("too_few_descriptors");
    let (refused, before) = (gateway.lines(60).len(), checks());
    assert!(refused < 90, "some of them are connected");
    // Health checks still connect, and mark no broker as down.
    eventually("further health checks", || (checks() > before + 10).then_some(()));
    assert!(gateway.admin_get("/livez").starts_with("HTTP/1.1 200"));
    assert!(gateway.admin_get("/readyz").starts_with("HTTP/1.1 200"));
    // A CRL is still read, and ends a session.
    pki.revoke("sub");
    gateway.wait_for_reason("certificate_revoked");
    let _ = session.kill();
    session.wait().unwrap();
    drop(silent);
    eventually("a client to be admitted", || {
        let published = finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"]));
        published.status.success().then_some(())
    });
    let log = gateway.own_log();
    assert!(!log.contains("server is down") && !log.contains("cannot connect"), "{log}");
}

#[test]
fn silent_connections_of_one_network_leave_room_for_others() {
    let broker = Mosquitto::start();
    let gateway = Launch::new(Arc::default(), &format!("{ADMIT}{}", upstream(broker.port))).open_files(500).start();
    let silent: Vec<_> = (0..250).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    gateway.wait_for_reason("too_many_pending");
    let rejected = || gateway.own_log().matches("clients are rejected").count();
    eventually("the first is in the gateway's log", || (rejected() > 0).then_some(()));
    let mut client = gateway.mosquitto("mosquitto_pub", "thing001", "thing001");
    let published = finish(client.args(["-A", "127.0.0.2", "-t", "t", "-m", "x"]));
    assert!(published.status.success(), "{published:?}");
    let log = gateway.own_log();
    assert!(rejected() == 1 && log.contains("too_many_pending"), "one line, of however many: {log}");
    drop(silent);
}
