//! Authentication: passwords that mosquitto has hashed, tokens that PyJWT signs and verifies, and an HTTP service in Python.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use portcullis_testkit::Pki;

use crate::processes::{
    Gateway, Launch, Mosquitto, Process, command, eventually, finish, free_port, installed, upstream, wait_for_port,
};

/// A `mosquitto_pub` over TLS without a certificate.
fn publish(gateway: &Gateway, client_id: &str, user: &str, password: &str) -> bool {
    let mut command = gateway.client("mosquitto_pub", client_id);
    command.args(["--cafile".as_ref(), gateway.pki.root().as_os_str()]);
    finish(command.args(["-u", user, "-P", password, "-q", "1", "-t", "test/1", "-m", "hello"])).status.success()
}

fn launch(pki: &Arc<Pki>, broker: u16, authenticate: &str, rest: &str) -> Launch {
    Launch::new(Arc::clone(pki), &format!("{rest}{}", upstream(broker)))
        .listener(&format!("authenticate = {authenticate}\n"))
        .tls_table(&pki.listener_tls_without_ca())
}

#[test]
fn a_password_file_of_mosquitto_and_of_our_own() {
    let (broker, pki, dir) = (Mosquitto::start(), Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let file = dir.path().join("users");
    fs::write(&file, "").unwrap();
    let made = finish(command("mosquitto_passwd").arg("-b").arg(&file).args(["alice", "wonderland"]));
    assert!(made.status.success(), "{made:?}");
    let passwd = |user: &str, password: &str| {
        let script = format!(
            "printf '%s\\n' '{password}' | {} passwd {} {user}",
            env!("CARGO_BIN_EXE_portcullis"),
            file.display()
        );
        let output = finish(Command::new("sh").args(["-c", &script]));
        assert!(output.status.success(), "{output:?}");
    };
    passwd("bob", "builder");
    let rest = format!("[[authenticator]]\nname = \"users\"\nkind = \"password_file\"\nfile = {file:?}\n");
    let gateway = launch(&pki, broker.port, "[\"users\"]", &rest).start();
    assert!(publish(&gateway, "a", "alice", "wonderland"));
    assert!(publish(&gateway, "b", "bob", "builder"));
    gateway.lines(2);
    for (n, (user, password, reason)) in [
        ("alice", "builder", "bad_credentials"),
        ("bob", "Builder", "bad_credentials"),
        ("carol", "x", "unknown_client"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(!publish(&gateway, "c", user, password), "{user} {password}");
        assert_eq!(gateway.reason(n + 3), reason);
    }
    // A user added while the gateway runs.
    passwd("carol", "x");
    eventually("the file to be read", || gateway.own_log().contains("password file loaded").then_some(()));
    assert!(publish(&gateway, "c", "carol", "x"));
    // mosquitto reads the hashes that we wrote, if it was built with Argon2, and we have kept the ones that it wrote.
    assert!(fs::read_to_string(&file).unwrap().starts_with("alice:$7$"));
    assert!(!gateway.own_log().contains("wonderland"));
}

/// Runs a Python program with PyJWT.
fn python(script: &str, arguments: &[&str]) -> String {
    let output = finish(Command::new(installed("venv/bin/python")).args(["-c", script]).args(arguments));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const MAKE_ISSUER: &str = r"
import json, sys, jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, ed25519
folder = sys.argv[1]
keys = {'ES256': ec.generate_private_key(ec.SECP256R1()), 'ES384': ec.generate_private_key(ec.SECP384R1()),
        'RS256': rsa.generate_private_key(65537, 2048), 'PS256': rsa.generate_private_key(65537, 2048),
        'EdDSA': ed25519.Ed25519PrivateKey.generate()}
public = []
for name, key in keys.items():
    with open(f'{folder}/{name}.pem', 'wb') as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption()))
    jwk = json.loads(jwt.get_algorithm_by_name(name).to_jwk(key.public_key()))
    jwk.pop('key_ops', None)
    public.append(jwk | {'kid': name, 'use': 'sig'})
with open(f'{folder}/jwks.json', 'w') as file:
    json.dump({'keys': public}, file)
";

const SIGN: &str = r"
import sys, time, jwt
folder, name, subject, seconds = sys.argv[1:5]
claims = {'iss': 'https://issuer.example.com', 'aud': ['mqtt', 'http'], 'sub': subject, 'exp': int(time.time()) + int(seconds)}
print(jwt.encode(claims, open(f'{folder}/{name}.pem').read(), algorithm=name, headers={'kid': name}))
";

#[test]
fn tokens_that_pyjwt_signs_in_each_algorithm() {
    let (broker, pki, dir) = (Mosquitto::start(), Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let folder = dir.path().to_str().unwrap();
    python(MAKE_ISSUER, &[folder]);
    let rest = format!(
        "[listener.admit]\nrequire = ['mqtt.client_id == jwt.sub']\n[[authenticator]]\nname = \"tokens\"\nkind = \"jwt\"\n\
         jwks = \"{folder}/jwks.json\"\nissuer = \"https://issuer.example.com\"\naudience = \"mqtt\"\n"
    );
    let gateway = launch(&pki, broker.port, "[\"tokens\"]", &rest).start();
    for algorithm in ["ES256", "ES384", "RS256", "PS256", "EdDSA"] {
        let token = python(SIGN, &[folder, algorithm, "thing001", "60"]);
        assert!(publish(&gateway, "thing001", "u", &token), "{algorithm}: {:?}", gateway.lines(1).last());
        assert!(!publish(&gateway, "thing002", "u", &token), "{algorithm}: another's token");
    }
    let expired = python(SIGN, &[folder, "ES256", "thing001", "-5"]);
    assert!(!publish(&gateway, "thing001", "u", &expired));
    gateway.wait_for_reason("token_expired");
    assert!(!gateway.own_log().contains("eyJ"), "no token is logged");
}

const VERIFY: &str = r"
import sys, jwt
url, token = sys.argv[1:3]
key = jwt.PyJWKClient(url).get_signing_key_from_jwt(token)
claims = jwt.decode(token, key.key, algorithms=['ES256'], audience='brokers', issuer='https://gateway.example.com')
print(claims['sub'], claims['exp'] - claims['iat'])
";

/// A broker that admits only clients whose token PyJWT verifies with the keys that the gateway publishes.
const BROKER: &str = r"
import socket, struct, sys, threading, jwt
port, url = int(sys.argv[1]), sys.argv[2]
keys = jwt.PyJWKClient(url)
def exactly(connection, count):
    data = b''
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part: raise EOFError
        data += part
    return data
def serve(connection):
    exactly(connection, 1)
    length, shift = 0, 0
    while True:
        byte = exactly(connection, 1)[0]
        length, shift = length | (byte & 127) << shift, shift + 7
        if not byte & 128: break
    body = exactly(connection, length)
    flags, at, fields = body[7], 10, []
    while at < len(body):
        size = struct.unpack('>H', body[at:at + 2])[0]
        fields.append(body[at + 2:at + 2 + size]); at += 2 + size
    try:
        token = fields[-1].decode() if flags & 0x40 else ''
        claims = jwt.decode(token, keys.get_signing_key_from_jwt(token).key, algorithms=['ES256'], audience='brokers',
                            issuer='https://gateway.example.com')
        code = 0 if claims['sub'] == fields[0].decode() else 5
    except Exception as error:
        code = 5
    connection.sendall(bytes([0x20, 2, 0, code]))
    if code == 0:
        connection.recv(4096)
    connection.close()
listener = socket.create_server(('127.0.0.1', port))
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
";

#[test]
fn a_broker_that_verifies_the_gateways_token_refuses_who_goes_around_it() {
    let (pki, dir) = (Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let key = dir.path().join("identity.key");
    let made = finish(
        command("openssl")
            .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
            .arg(&key),
    );
    assert!(made.status.success(), "{made:?}");
    let broker = free_port();
    let rest = format!(
        "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n[listener.connect]\n\
         username = 'cert.subject.cn'\n\
         password = {{ claims = {{ sub = 'cert.subject.cn' }}, audience = \"brokers\", lifetime = \"1m\" }}\n\
         [identity]\nprivate_key = {key:?}\nissuer = \"https://gateway.example.com\"\n{}",
        upstream(broker)
    );
    let gateway = Launch::new(Arc::clone(&pki), &rest).start();
    let url = format!("http://{}/.well-known/jwks.json", gateway.admin);
    let process =
        Command::new(installed("venv/bin/python")).args(["-c", BROKER, &broker.to_string(), &url]).spawn().unwrap();
    let _process = Process(process);
    wait_for_port(broker);
    let through = finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "a", "-m", "b"]));
    assert!(through.status.success(), "{through:?}");
    let mut around = command("mosquitto_pub");
    around.args(["-h", "127.0.0.1", "-p", &broker.to_string(), "-i", "thing001", "-t", "a", "-m", "b"]);
    assert!(!finish(&mut around).status.success(), "without a token");
    let forged = python(
        "import jwt, time\nprint(jwt.encode({'sub': 'thing001', 'aud': 'brokers', 'iss': 'https://gateway.example.com', \
         'exp': int(time.time()) + 60}, 'x' * 32, algorithm='HS256', headers={'kid': 'x'}))",
        &[],
    );
    assert!(!finish(around.args(["-u", "u", "-P", &forged])).status.success(), "with a self-made token");
    // A listener of the test receives what the broker would receive.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let seen = Launch::new(pki, &rest.replace(&broker.to_string(), &listener.local_addr().unwrap().port().to_string()))
        .start();
    let mut client = seen.mosquitto("mosquitto_pub", "thing001", "thing001");
    let mut client = client.args(["-t", "a", "-m", "b"]).spawn().unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 4096];
    let len = std::io::Read::read(&mut socket, &mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
    let token = &text[text.find("eyJ").unwrap()..];
    let url = format!("http://{}/jwks.json", seen.admin);
    assert_eq!(python(VERIFY, &[&url, token]), "thing001 60");
    let _ = client.kill();
    let _ = client.wait();
}

const SERVICE: &str = r"
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        good = asked.get('username') == 'pump' and asked.get('password') == 'secret' and self.headers['X-Key'] == 's3cret'
        answer = {'result': 'allow', 'client_id': 'lyon-' + asked['client_id'], 'attributes': {'site': 'lyon'}} if good \
            else {'result': 'deny'}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

#[test]
fn a_service_in_python_decides() {
    let (broker, pki, port) = (Mosquitto::start(), Arc::new(Pki::new()), free_port());
    let service = Command::new(installed("venv/bin/python")).args(["-c", SERVICE, &port.to_string()]).spawn().unwrap();
    let mut service = Process(service);
    wait_for_port(port);
    let rest = format!(
        "[listener.admit]\nrequire = ['http.site == \"lyon\"']\n[[authenticator]]\nname = \"service\"\nkind = \"http\"\n\
         url = \"http://127.0.0.1:{port}/mqtt\"\nheaders = {{ X-Key = \"${{FILE:key}}\" }}\ncache = \"0s\"\n"
    );
    let gateway = launch(&pki, broker.port, "[\"service\"]", &rest).file("key", "s3cret\n").start();
    assert!(publish(&gateway, "7", "pump", "secret"));
    assert!(broker.log().contains("as lyon-7"), "{}", broker.log());
    assert!(!publish(&gateway, "7", "pump", "wrong"));
    gateway.wait_for_reason("authentication_denied");
    service.0.kill().unwrap();
    service.0.wait().unwrap();
    assert!(!publish(&gateway, "8", "pump", "secret"));
    gateway.wait_for_reason("authentication_unavailable");
    assert!(!gateway.own_log().contains("s3cret") && !gateway.own_log().contains("secret\""), "{}", gateway.own_log());
}

/// An HTTPS service: responds with a JWK set to GET, and with `allow` to POST.
const HTTPS: &str = r"
import http.server, json, ssl, sys
port, chain, key, jwks = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.answer(open(jwks, 'rb').read())
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.answer(json.dumps({'result': 'allow'}).encode())
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
";

#[test]
fn services_and_keys_over_https_are_believed_by_their_authority_only() {
    let (broker, pki, other_pki, port) = (Mosquitto::start(), Arc::new(Pki::new()), Pki::named("Other"), free_port());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    python(MAKE_ISSUER, &[folder]);
    let (chain, key) = (pki.chain("localhost"), pki.key("localhost"));
    let jwks = dir.path().join("jwks.json");
    let service = Command::new(installed("venv/bin/python"))
        .args(["-c", HTTPS, &port.to_string()])
        .args([&chain, &key, &jwks])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _service = Process(service);
    wait_for_port(port);
    let gateway = |ca: &std::path::Path| {
        let rest = format!(
            "[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = \"https://localhost:{port}/\"\nca = {ca:?}\n\
             [[authenticator]]\nname = \"tokens\"\nkind = \"jwt\"\nissuer = \"https://issuer.example.com\"\naudience = \"mqtt\"\n\
             jwks = \"https://localhost:{port}/jwks.json\"\nca = {ca:?}\n"
        );
        launch(&pki, broker.port, "[\"tokens\", \"service\"]", &rest).start()
    };
    let token = python(SIGN, &[folder, "ES256", "thing001", "60"]);
    let trusted = gateway(&pki.root());
    assert!(publish(&trusted, "a", "u", "p"), "by the service");
    assert!(publish(&trusted, "b", "u", &token), "by a token");
    let untrusted = gateway(&other_pki.root());
    assert!(!publish(&untrusted, "a", "u", "p") && !publish(&untrusted, "b", "u", &token));
    for n in 1..=2 {
        assert_eq!(untrusted.reason(n), "authentication_unavailable");
    }
}

#[test]
fn who_guesses_is_banned() {
    let (broker, pki, dir) = (Mosquitto::start(), Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let file = dir.path().join("users");
    fs::write(&file, "").unwrap();
    let made = finish(command("mosquitto_passwd").arg("-b").arg(&file).args(["alice", "wonderland"]));
    assert!(made.status.success(), "{made:?}");
    let rest = format!(
        "[[listener.ban]]\non = [\"failure\"]\ncount = 2\nduration = \"1h\"\n\
         [[authenticator]]\nname = \"users\"\nkind = \"password_file\"\nfile = {file:?}\n"
    );
    let gateway = launch(&pki, broker.port, "[\"users\"]", &rest).start();
    assert!(publish(&gateway, "a", "alice", "wonderland"));
    for _ in 0..3 {
        assert!(!publish(&gateway, "a", "alice", "guess"));
    }
    assert!(!publish(&gateway, "a", "alice", "wonderland"), "right, but banned");
    gateway.wait_for_reason("banned");
    eventually("the ban in the log", || gateway.own_log().contains("client banned").then_some(()));
}
