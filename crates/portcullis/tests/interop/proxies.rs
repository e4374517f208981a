//! NGINX and HAProxy, in front of the gateway and behind it: the same subject format, connections passed through, and the
//! PROXY protocol both ways.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use portcullis_testkit::Pki;
use tempfile::TempDir;

use crate::processes::{
    ADMIT, Gateway, Launch, Mosquitto, Process, command, eventually, finish, free_port, upstream, wait_for_port,
};

/// A proxy that listens on one port.
struct Proxy {
    _process: Process,
    dir: TempDir,
    port: u16,
}

impl Proxy {
    /// HAProxy with this frontend, whose `bind` line begins with the address, and this server. Both lines may have options.
    fn haproxy(bind: &str, server: &str) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let configuration = format!(
            "global\n log stdout format raw local0\ndefaults\n mode tcp\n log global\n timeout connect 5s\n\
             timeout client 20s\n timeout server 20s\n\
             frontend f\n bind 127.0.0.1:{port} {bind}\n log-format \"client=%ci listening=%fi\"\n default_backend b\n\
             backend b\n server s {server}\n",
        );
        fs::write(dir.path().join("haproxy.cfg"), configuration).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut haproxy = command("haproxy");
        let haproxy = haproxy.args(["-db", "-f"]).arg(dir.path().join("haproxy.cfg")).stdout(log);
        let process = Process(haproxy.stderr(Stdio::null()).spawn().unwrap());
        wait_for_port(port);
        Self { _process: process, dir, port }
    }

    /// NGINX with this `stream` server, whose `listen` is added.
    fn nginx(server: &str) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let (at, module) = (dir.path().display(), "/usr/lib/nginx/modules/ngx_stream_module.so");
        assert!(Path::new(module).exists(), "install it: apt-get install libnginx-mod-stream");
        let configuration = format!(
            "load_module {module}; pid {at}/pid; error_log {at}/error.log; daemon off; master_process off; user root;\n\
             events {{}}\nstream {{ server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
        );
        fs::write(dir.path().join("nginx.conf"), configuration).unwrap();
        let mut nginx = command("nginx");
        let nginx = nginx.arg("-c").arg(dir.path().join("nginx.conf")).stderr(Stdio::null());
        let process = Process(nginx.spawn().unwrap());
        wait_for_port(port);
        Self { _process: process, dir, port }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// A file with the certificate chain of this name and its key, as HAProxy reads them.
fn bundle(pki: &Pki, dir: &Path, name: &str) -> String {
    let path = dir.join(format!("{name}.pem"));
    fs::write(&path, [fs::read(pki.chain(name)).unwrap(), fs::read(pki.key(name)).unwrap()].concat()).unwrap();
    path.display().to_string()
}

/// The loopback address of the test's clients, which no proxy has.
const CLIENT: &str = "127.0.0.9";

/// Publishes a message through the gateway or what is in front of it.
fn publish(gateway: &Gateway, port: u16, device: &str, client_id: &str) -> bool {
    gateway.pki.device(device);
    let published = finish(
        command("mosquitto_pub")
            .args([
                "-h",
                "localhost",
                "-p",
                &port.to_string(),
                "-A",
                CLIENT,
                "-i",
                client_id,
                "-t",
                "test/1",
                "-m",
                "x",
            ])
            .args(["--cafile".as_ref(), gateway.pki.root().as_os_str()])
            .args(["--cert".as_ref(), gateway.pki.chain(device).as_os_str()])
            .args(["--key".as_ref(), gateway.pki.key(device).as_os_str()]),
    );
    published.status.success()
}

/// Waits for an access line of the client that ends like this.
fn wait_for_line(gateway: &Gateway, end: &str) {
    let is_logged = |line: &String| line.starts_with(CLIENT) && line.ends_with(end);
    eventually(&format!("a line of {CLIENT} with {end:?}"), || gateway.lines(1).iter().any(is_logged).then_some(()));
}

#[test]
fn balancers_in_front_that_pass_tls_through_send_the_clients_address() {
    let broker = Mosquitto::start();
    let gateway = Launch::new(Arc::default(), &format!("{ADMIT}{}", upstream(broker.port)))
        .listener("proxy_protocol = { from = [\"127.0.0.1\"] }\n")
        .start();
    for proxy in [
        Proxy::haproxy("", &format!("{} send-proxy", gateway.address)),
        Proxy::haproxy("", &format!("{} send-proxy-v2 proxy-v2-options crc32c,unique-id", gateway.address)),
        Proxy::nginx(&format!("proxy_protocol on; proxy_pass {};", gateway.address)),
    ] {
        assert!(publish(&gateway, proxy.port, "thing001", "thing001"));
        wait_for_line(&gateway, " thing001 ok");
        assert!(!publish(&gateway, proxy.port, "thing001", "thing002"), "another device's client ID");
        wait_for_line(&gateway, " thing002 identity_mismatch");
    }
    assert!(!publish(&gateway, gateway.address.port(), "thing001", "thing001"), "without a balancer");
    wait_for_line(&gateway, " proxy_header_untrusted");
}

#[test]
fn haproxy_in_front_that_terminates_tls_says_whose_certificate_it_is() {
    let broker = Mosquitto::start();
    let rest = "[listener.admit]\nrequire = ['mqtt.client_id == proxy.ssl.cn']\n[listener.connect]\nusername = 'proxy.ssl.cn'\n";
    let gateway = Launch::new(Arc::default(), &format!("{rest}{}", upstream(broker.port)))
        .listener("protocol = \"tcp\"\nproxy_protocol = { from = [\"127.0.0.1\"], certificate = true }\n")
        .tls_table("")
        .start();
    let dir = tempfile::tempdir().unwrap();
    let (pki, other) = (&gateway.pki, Pki::named("Other"));
    let server = bundle(pki, dir.path(), "localhost");
    let (ca, unknown) = (pki.root().display().to_string(), other.root().display().to_string());
    let send = format!("{} send-proxy-v2-ssl-cn", gateway.address);
    let required = Proxy::haproxy(&format!("ssl crt {server} ca-file {ca} verify required"), &send);
    assert!(publish(&gateway, required.port, "thing001", "thing001"));
    wait_for_line(&gateway, " thing001 ok");
    assert!(broker.log().contains("u'thing001'"), "{}", broker.log());
    assert!(!publish(&gateway, required.port, "thing001", "thing002"));
    wait_for_line(&gateway, " thing002 identity_mismatch");
    // It passes on names of certificates that it could not verify, too.
    let bind = format!("ssl crt {server} ca-file {unknown} verify optional crt-ignore-err all ca-ignore-err all");
    let lenient = Proxy::haproxy(&bind, &send);
    assert!(!publish(&gateway, lenient.port, "thing003", "thing003"));
    wait_for_line(&gateway, " thing003 expression_failed");
}

#[test]
fn haproxy_between_the_gateway_and_the_broker_sees_the_client() {
    let broker = Mosquitto::start();
    for version in ["v1", "v2", "v2-ssl"] {
        let proxy = Proxy::haproxy("accept-proxy", &format!("127.0.0.1:{}", broker.port));
        let rest = format!("{ADMIT}{}proxy_protocol = \"{version}\"\n", upstream(proxy.port));
        let gateway = Gateway::with(&rest);
        assert!(publish(&gateway, gateway.address.port(), "thing001", "thing001"), "{version}");
        eventually("HAProxy's log line", || proxy.log().contains(&format!("client={CLIENT} ")).then_some(()));
        assert!(proxy.log().contains("listening=127.0.0.1"), "{}", proxy.log());
    }
}

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
    let proxy = Proxy::haproxy("", &gateway.address.to_string());
    // The probe of the port also reached the gateway: a connection without data.
    gateway.address.set_port(proxy.port);
    let published =
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "test/1", "-m", "x"]));
    assert!(published.status.success(), "{published:?}");
    let lines = gateway.lines(2);
    assert!(lines.iter().any(|line| line.contains(" TLS 200 ") && line.ends_with(" thing001 ok")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with(" TLS 500 0 0 - - handshake_closed")), "{lines:#?}");
}
