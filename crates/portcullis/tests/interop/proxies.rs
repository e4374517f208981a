//! NGINX and HAProxy: the same subject format, and connections passed through.

use std::fs;
use std::process::Stdio;

use crate::processes::{Gateway, Mosquitto, Process, command, finish, free_port, wait_for_port};

#[test]
fn the_user_name_is_what_nginx_calls_ssl_client_s_dn() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let at = dir.path().display();
    let configuration = format!(
        "pid {at}/pid; error_log {at}/error.log; daemon off; master_process off; user root; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; \
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; \
         ssl_verify_client on; ssl_verify_depth 2; return 200 $ssl_client_s_dn; }} }}\n",
        gateway.pki.chain("localhost").display(),
        gateway.pki.key("localhost").display(),
        gateway.pki.root().display(),
    );
    fs::write(dir.path().join("nginx.conf"), configuration).unwrap();
    let mut nginx = command("nginx");
    let nginx = nginx.arg("-c").arg(dir.path().join("nginx.conf")).stderr(Stdio::null()).spawn().unwrap();
    let _nginx = Process(nginx);
    wait_for_port(port);
    for device in ["thing001", "gerät-東京", "a, b; c=d \"e\" <f>"] {
        gateway.pki.device(device);
        let answer = finish(
            command("curl")
                .args(["-s", &format!("https://localhost:{port}/")])
                .args(["--cacert".as_ref(), gateway.pki.root().as_os_str()])
                .args(["--cert".as_ref(), gateway.pki.chain(device).as_os_str()])
                .args(["--key".as_ref(), gateway.pki.key(device).as_os_str()]),
        );
        let dn = String::from_utf8(answer.stdout).unwrap();
        assert!(dn.starts_with("CN="), "{dn:?}");
        let published = finish(gateway.mosquitto("mosquitto_pub", device, device).args(["-t", "test/1", "-m", "x"]));
        assert!(published.status.success(), "{published:?}");
        assert!(broker.log().contains(&format!("u'{dn}'")), "{dn} in:\n{}", broker.log());
    }
}

#[test]
fn haproxy_in_front_passes_tls_through() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port);
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend b\n\
         backend b\n server s {}\n",
        gateway.address
    );
    fs::write(dir.path().join("haproxy.cfg"), configuration).unwrap();
    let mut haproxy = command("haproxy");
    let haproxy =
        haproxy.args(["-db", "-f"]).arg(dir.path().join("haproxy.cfg")).stderr(Stdio::null()).spawn().unwrap();
    let _haproxy = Process(haproxy);
    wait_for_port(port);
    // The probe above also reached the gateway: a connection without data.
    gateway.address.set_port(port);
    let published =
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "test/1", "-m", "x"]));
    assert!(published.status.success(), "{published:?}");
    let lines = gateway.lines(2);
    assert!(lines.iter().any(|line| line.contains(" TLS 200 ") && line.ends_with(" thing001 ok")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with(" TLS 500 0 0 - - handshake_closed")), "{lines:#?}");
}
