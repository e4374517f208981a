//! Tokens of clients, signed by issuers, and identity tokens, signed by the gateway.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use portcullis_testkit::{
    Broker, BrokerConnection, Client, Pki, Service, TestGateway, advance, connect, connect_as, eventually, publish,
    subscribe,
};
use serde_json::{Value, json};

const REFUSED: &[u8] = b"\x20\x02\x00\x04";
const ISSUER: &str = "https://issuer.example.com";

/// An issuer's key.
pub(crate) struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    id: &'static str,
}

/// In the format that OpenSSL writes.
fn private_key(algorithm: Algorithm) -> Vec<u8> {
    let options: &[&str] = match algorithm {
        Algorithm::ES256 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        Algorithm::ES384 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        Algorithm::EdDSA => &["ed25519"],
        _ => &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    };
    let mut openssl = std::process::Command::new("openssl");
    let output = openssl.args(["genpkey", "-algorithm"]).args(options).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

impl Issuer {
    pub(crate) fn new(id: &'static str) -> Self {
        Self::with(id, Algorithm::ES256)
    }

    fn with(id: &'static str, algorithm: Algorithm) -> Self {
        let pem = private_key(algorithm);
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
            _ => EncodingKey::from_ec_pem(&pem),
        };
        Self { key: key.unwrap(), algorithm, id }
    }

    fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        jwk
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

pub(crate) fn jwks(issuers: &[&Issuer]) -> String {
    serde_json::to_string(&JwkSet { keys: issuers.iter().map(|issuer| issuer.jwk()).collect() }).unwrap()
}

pub(crate) fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "mqtt", "sub": "thing001", "exp": now() + 600, "site": "lyon", "n": [1, 2.5, null] })
}

pub(crate) fn changed(change: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

pub(crate) async fn gateway(broker: &Broker, keys: &str, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let upstream = broker.upstream();
    TestGateway::start(&format!(
        "{listener}authenticate = [\"tokens\"]\n[listener.admit]\nrequire = ['mqtt.client_id == jwt.sub']\n{upstream}\
         [[authenticator]]\nname = \"tokens\"\nkind = \"jwt\"\nissuer = \"{ISSUER}\"\naudience = \"mqtt\"\n\
         jwks = {keys:?}\n{rest}"
    ))
    .await
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn a_token_is_taken_that_is_good_and_no_other() {
    let (dir, broker, issuer, stranger) =
        (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("k1"), Issuer::new("k1"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&issuer])).unwrap();
    let gateway = gateway(&broker, path.to_str().unwrap(), "").await;
    let token = issuer.sign(&claims());
    let _session = gateway.session(&broker, &connect_as("thing001", "u", token.as_bytes())).await;
    let _late = gateway
        .session(&broker, &connect_as("thing001", "u", issuer.sign(&changed(&json!({ "nbf": now() + 20 }))).as_bytes()))
        .await;

    let (head, rest) = token.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let unsigned = |header: Value| base64(header.to_string()) + "." + body + ".";
    // The public key used as an HMAC secret: anyone who has it could sign.
    let public = serde_json::to_string(&issuer.jwk()).unwrap();
    let hmac = jsonwebtoken::encode(
        &Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::HS256) },
        &claims(),
        &EncodingKey::from_secret(public.as_bytes()),
    );
    let crit = {
        let header =
            Header { kid: Some("k1".to_owned()), crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims(), &issuer.key).unwrap()
    };
    let other_curve = Issuer::with("k1", Algorithm::ES384);
    let wrong = [
        (stranger.sign(&claims()), "token_invalid"),
        (other_curve.sign(&claims()), "token_invalid"),
        (issuer.sign(&changed(&json!({ "exp": now() - 60 }))), "token_expired"),
        (issuer.sign(&changed(&json!({ "exp": now() - 1 }))), "token_expired"),
        (issuer.sign(&changed(&json!({ "exp": null }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "exp": "never" }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "nbf": now() + 300 }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "aud": "http" }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "aud": null }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "iss": null }))), "token_invalid"),
        (issuer.sign(&changed(&json!({ "iss": "https://other.example.com" }))), "unknown_client"),
        (hmac.unwrap(), "token_invalid"),
        (crit, "token_invalid"),
        (unsigned(json!({ "alg": "none", "kid": "k1" })), "unknown_client"),
        (unsigned(json!({ "alg": "ES256", "kid": "k1" })), "token_invalid"),
        (format!("{head}.{body}.{}", base64([0; 64])), "token_invalid"),
        (format!("{head}.{body}.{}", &signature[..signature.len() - 2]), "token_invalid"),
        (
            format!("{head}.{}.{signature}", base64(changed(&json!({ "exp": now() + 9999 })).to_string())),
            "token_invalid",
        ),
        ("secret".to_owned(), "unknown_client"),
        (String::new(), "unknown_client"),
    ];
    for (token, reason) in &wrong {
        let before = gateway_lines(&gateway);
        println!("{reason}: {token}");
        let answer = gateway.refusal(&connect_as("thing001", "u", token.as_bytes())).await;
        assert_eq!(answer, REFUSED);
        let line = gateway.lines(before + 1).await.pop().unwrap();
        assert!(line.ends_with(&format!(" {reason}")), "{token}: {line}");
    }
    // A valid token does not authenticate another client.
    let other = gateway.refusal(&connect_as("thing002", "u", token.as_bytes())).await;
    assert_eq!(other, b"\x20\x02\x00\x05");
    assert!(broker.is_left_alone().await);
}

fn gateway_lines(gateway: &TestGateway) -> usize {
    let log = gateway.path().with_file_name("access.log");
    fs::read_to_string(log).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn the_claims_of_a_token_give_rights() {
    let (dir, broker, issuer) = (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("k1"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&issuer])).unwrap();
    let policy = "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\neffect = \"deny\"\npublish = [\"secret/#\"]\n\
                  [[topic_policy.rule]]\npublish_from = 'jwt.acl.pub'\nsubscribe_from = 'jwt.acl.sub'\n";
    let gateway = gateway(&broker, path.to_str().unwrap(), policy).await;
    let configuration = fs::read_to_string(gateway.path()).unwrap();
    let with_topics = configuration.replacen("authenticate =", "topics = \"p\"\nauthenticate =", 1);
    fs::write(gateway.path(), with_topics).unwrap();
    gateway.gateway.reload().await.unwrap();
    let message = |topic: &str, id: u16| publish(4, 2, topic, Some(id), b"", b"x");
    for (acl, allowed) in [
        (json!({ "pub": ["site/+/up", "secret/#"], "sub": ["down/#"] }), true),
        (json!({ "pub": ["site/+/up", "not/#/valid"], "sub": ["down/#", 7] }), false),
        (json!({ "pub": "site/+/up", "sub": null }), false),
        (json!({ "pub": ["$share/g/site/+/up", "site/+/up"], "sub": ["$share/g/down/#"] }), false),
        (json!(null), false),
    ] {
        let token = issuer.sign(&changed(&json!({ "acl": acl })));
        let (mut client, mut connection) =
            gateway.session(&broker, &connect_as("thing001", "u", token.as_bytes())).await;
        client.write(&[message("secret/a", 1), message("site/7/up", 2), b"\xc0\x00".to_vec()].concat()).await;
        client.write(&subscribe(4, 3, &[("down/a", 0)])).await;
        if allowed {
            connection.expect(&[message("site/7/up", 2), b"\xc0\x00".to_vec()].concat()).await;
            connection.expect(&subscribe(4, 3, &[("down/a", 0)])).await;
            client.expect(b"\x40\x02\x00\x01").await;
        } else {
            connection.expect(b"\xc0\x00").await;
            client.expect(b"\x40\x02\x00\x01\x40\x02\x00\x02\x90\x03\x00\x03\x80").await;
        }
    }
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let (dir, broker, issuer) = (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("k1"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&issuer])).unwrap();
    let gateway = gateway(&broker, path.to_str().unwrap(), "").await;
    let short = issuer.sign(&changed(&json!({ "exp": now() + 60 })));
    let packet = connect_as("thing001", "u", short.as_bytes());
    let (mut client, mut connection) = gateway.session(&broker, &packet).await;
    advance(Duration::from_secs(50));
    gateway.gateway.run_maintenance().await;
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    advance(Duration::from_secs(10));
    gateway.gateway.run_maintenance().await;
    client.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_token_expired"));
    assert_eq!(gateway.refusal(&packet).await, REFUSED);
    assert!(gateway.lines(2).await[1].ends_with(" token_expired"));
}

#[tokio::test]
async fn a_session_ends_with_the_key_of_its_token_and_with_what_was_asked_of_it() {
    let (dir, broker, one, two) =
        (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("one"), Issuer::new("two"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&one, &two])).unwrap();
    let gateway = gateway(&broker, path.to_str().unwrap(), "").await;
    let (token, other) = (one.sign(&claims()), two.sign(&claims()));
    let (mut leaked, _a) = gateway.session(&broker, &connect_as("thing001", "u", token.as_bytes())).await;
    let (mut good, mut at_broker) = gateway.session(&broker, &connect_as("thing001", "u", other.as_bytes())).await;
    fs::write(&path, jwks(&[&two])).unwrap();
    leaked.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_credential_withdrawn"));
    good.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.split("[access_log]").next().unwrap();
    gateway.write(&text.replace("audience = \"mqtt\"", "audience = \"other\""));
    gateway.gateway.reload().await.unwrap();
    good.read_to_end().await;
}

#[tokio::test]
async fn a_session_ends_with_the_algorithm_of_its_token() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let (dropped, kept) = (Issuer::new("one"), Issuer::with("two", Algorithm::EdDSA));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&dropped, &kept])).unwrap();
    let gateway = gateway(&broker, path.to_str().unwrap(), "algorithms = [\"ES256\", \"EdDSA\"]\n").await;
    let packet = |issuer: &Issuer| connect_as("thing001", "u", issuer.sign(&claims()).as_bytes());
    let (mut ended, _a) = gateway.session(&broker, &packet(&dropped)).await;
    let (mut good, mut at_broker) = gateway.session(&broker, &packet(&kept)).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.split("[access_log]").next().unwrap();
    gateway.write(&text.replace("\"ES256\", ", ""));
    gateway.gateway.reload().await.unwrap();
    ended.read_to_end().await;
    assert_eq!(gateway.refusal(&packet(&dropped)).await, REFUSED);
    good.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_token_may_be_the_user_name() {
    let (dir, broker, issuer) = (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("k1"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, jwks(&[&issuer])).unwrap();
    let gateway = gateway(&broker, path.to_str().unwrap(), "field = \"username\"\n").await;
    let token = issuer.sign(&claims());
    let _session = gateway.session(&broker, &connect_as("thing001", &token, b"")).await;
    assert_eq!(gateway.refusal(&connect_as("thing001", "u", token.as_bytes())).await, REFUSED);
}

#[tokio::test]
async fn keys_are_changed_without_a_gap() {
    let (broker, one, two) = (Broker::start().await, Issuer::new("one"), Issuer::with("two", Algorithm::EdDSA));
    let (first, second) = (jwks(&[&one]), jwks(&[&one, &two]));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let service = Service::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Some(("200 OK", first.clone())),
        1 => Some(("200 OK", second.clone())),
        _ => Some(("500 Internal Server Error", String::new())),
    })
    .await;
    let gateway = gateway(&broker, &service.url("/jwks.json"), "refresh = \"11s\"\n").await;
    let _one = gateway.session(&broker, &connect_as("thing001", "u", one.sign(&claims()).as_bytes())).await;
    // An unknown key triggers a fetch, at most every ten seconds.
    let new = two.sign(&claims());
    assert_eq!(gateway.refusal(&connect_as("thing001", "u", new.as_bytes())).await, REFUSED);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    advance(Duration::from_secs(5));
    assert_eq!(gateway.refusal(&connect_as("thing001", "u", new.as_bytes())).await, REFUSED);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    advance(Duration::from_secs(5));
    let _two = gateway.session(&broker, &connect_as("thing001", "u", new.as_bytes())).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // Known ones go on when the issuer does not answer, over a reload too.
    advance(Duration::from_secs(11));
    eventually("the keys to be asked for again, in vain", || (asked.load(Ordering::SeqCst) > 2).then_some(())).await;
    gateway.gateway.reload().await.unwrap();
    let _one = gateway.session(&broker, &connect_as("thing001", "u", one.sign(&claims()).as_bytes())).await;
}

#[tokio::test]
async fn without_keys_nobody_is_let_in() {
    let broker = Broker::start().await;
    let service = Service::start(|_| Some(("404 Not Found", String::new()))).await;
    let gateway = gateway(&broker, &service.url("/jwks.json"), "").await;
    let token = Issuer::new("k1").sign(&claims());
    let answer = gateway.refusal(&connect_as("thing001", "u", token.as_bytes())).await;
    assert_eq!(answer, b"\x20\x02\x00\x03", "server unavailable: the keys may be back later");
    assert_eq!(gateway.outcome().await, "503 authentication_unavailable");
}

/// The password of an MQTT 3.1.1 CONNECT with client ID, user name and password.
async fn password_of(connection: &mut BrokerConnection) -> String {
    let mut header = connection.read(2).await;
    if header[1] & 0x80 != 0 {
        header.extend(connection.read(1).await);
    }
    let len = usize::from(header[1] & 0x7f) + header.get(2).map_or(0, |byte| usize::from(*byte) << 7);
    let body = connection.read(len).await;
    let mut rest = &body[10..];
    let mut fields = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (field, after) = after.split_at(usize::from(u16::from_be_bytes(*len)));
        fields.push(String::from_utf8(field.to_vec()).unwrap());
        rest = after;
    }
    fields.pop().unwrap()
}

/// A gateway with mutual TLS that sends signed identities to the broker.
async fn signing(pki: &Pki, broker: &Broker, key: &Path) -> TestGateway {
    TestGateway::start(&format!(
        "{}{}[listener.connect]\nusername = 'cert.subject.cn'\n\
         password = {{ claims = {{ sub = 'cert.subject.cn', fp = 'cert.fingerprint.sha256', at = 'now', \
         names = 'cert.san.dns' }}, audience = \"brokers\", lifetime = \"1m\" }}\n\
         {}[identity]\nprivate_key = {key:?}\nissuer = \"https://gateway.example.com\"\n[admin]\nbind = \"127.0.0.1:0\"\n",
        TestGateway::LISTENER,
        pki.listener_tls(),
        broker.upstream()
    ))
    .await
}

async fn published_keys(gateway: &TestGateway) -> JwkSet {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(gateway.gateway.admin_address().unwrap()).await.unwrap();
    socket.write_all(b"GET /jwks.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("application/jwk-set+json"), "{text}");
    let body = text.split("\r\n\r\n").nth(1).unwrap();
    assert!(!body.contains("\"d\""), "no private part: {body}");
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn the_broker_gets_a_token_that_it_can_verify() {
    let (pki, broker, dir) = (Pki::new(), Broker::start().await, tempfile::tempdir().unwrap());
    let key = dir.path().join("identity.key");
    let make = |algorithm| fs::write(&key, private_key(algorithm)).unwrap();
    for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA, Algorithm::RS256] {
        make(algorithm);
        let gateway = signing(&pki, &broker, &key).await;
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&connect("thing001")).await;
        let token = password_of(&mut broker.accept().await).await;
        let header = jsonwebtoken::decode_header(&token).unwrap();
        let keys = published_keys(&gateway).await;
        let jwk = keys.find(header.kid.as_deref().unwrap()).unwrap();
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&["brokers"]);
        validation.set_issuer(&["https://gateway.example.com"]);
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Value>(&token, &DecodingKey::from_jwk(jwk).unwrap(), &validation);
        let claims = claims.unwrap().claims;
        assert_eq!(claims["sub"], "thing001");
        assert_eq!(claims["fp"].as_str().unwrap().len(), 64);
        assert_eq!(claims["names"], json!([]));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
        assert_eq!(claims["jti"].as_str().unwrap().len(), 32);
    }
    // The signing key is rotated while the gateway runs; the next public key is published in advance.
    let next = dir.path().join("next.key");
    fs::write(&next, private_key(Algorithm::EdDSA)).unwrap();
    let gateway = signing(&pki, &broker, &key).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text
        .split("[access_log]")
        .next()
        .unwrap()
        .replace("[identity]", &format!("[identity]\nother_keys = [{next:?}]"));
    gateway.write(&text);
    gateway.gateway.reload().await.unwrap();
    let before = published_keys(&gateway).await;
    assert_eq!(before.keys.len(), 2);
    make(Algorithm::ES256);
    gateway.gateway.run_maintenance().await;
    assert!(published_keys(&gateway).await != before);
}
