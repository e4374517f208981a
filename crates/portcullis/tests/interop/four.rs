//! The four core guarantees of the product, with a real broker and real clients.

use crate::processes::{Gateway, Mosquitto, command, finish};

#[test]
fn the_right_identity_is_served_the_wrong_one_and_none_are_refused_and_the_broker_sees_the_dn() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let before = broker.log();
    let known = before.matches("New connection from 127.0.0.1").count();

    // Without a certificate: rejected by TLS.
    let none = finish(
        command("mosquitto_pub")
            .args(["-h", "localhost", "-p", &gateway.address.port().to_string(), "-i", "thing001"])
            .args(["--cafile".as_ref(), gateway.pki.root().as_os_str()])
            .args(["-t", "test/1", "-m", "hello"]),
    );
    assert!(!none.status.success());
    assert!(gateway.lines(1)[0].ends_with(" TLS 500 0 0 - - no_certificate"), "{:?}", gateway.lines(1));

    // With the certificate of thing001 and another client ID: rejected by CONNACK.
    let wrong =
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "BADTHING").args(["-t", "test/1", "-m", "hello"]));
    assert!(!wrong.status.success());
    let output = String::from_utf8_lossy(&wrong.stderr).to_lowercase();
    assert!(output.contains("not authorised"), "{output}");
    let line = &gateway.lines(2)[1];
    assert!(line.contains(" TLS 403 ") && line.ends_with(" 4 - BADTHING identity_mismatch"), "{line}");

    // The broker received no connection for either.
    assert_eq!(broker.log(), before, "the broker received no connection");

    // With its own client ID: admitted, and the broker receives the certificate's subject as the user name.
    let right =
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "test/1", "-m", "hello"]));
    assert!(right.status.success(), "{right:?}");
    let line = &gateway.lines(3)[2];
    assert!(line.contains(" TLS 200 ") && line.ends_with(&format!(" 127.0.0.1:{} thing001 ok", broker.port)), "{line}");
    assert_eq!(broker.log().matches("New connection from 127.0.0.1").count(), known + 1, "{}", broker.log());
    let dn = r"u'CN=thing001,O=M\C3\B6bel & S\C3\B6hne\, Inc.'";
    assert!(broker.log().contains(dn), "{dn} in:\n{}", broker.log());
}
