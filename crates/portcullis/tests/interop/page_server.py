"""Serves a page that connects with MQTT.js, with a token in a cookie. Prints what the page reports.

Arguments: certificate chain, its key, the folder of node modules, the file for the public keys. Prints its port first."""

import http.server
import json
import pathlib
import ssl
import sys
import time
import urllib.parse

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

chain, key_file, modules, jwks = sys.argv[1:]
key = ec.generate_private_key(ec.SECP256R1())
public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "page", "alg": "ES256", "use": "sig"}
pathlib.Path(jwks).write_text(json.dumps({"keys": [public]}))
token = jwt.encode({"sub": "browser7", "exp": int(time.time()) + 600}, key, "ES256", headers={"kid": "page"})

PAGE = """<!doctype html><meta charset="utf-8"><title>MQTT over WebSocket</title>
<style>body { font: 16px sans-serif; margin: 2em } li { margin: .4em 0 }</style>
<h1>MQTT over WebSocket</h1><ul id="log"></ul>
<script src="/mqtt.min.js"></script>
<script>
const report = (text) => {
  document.getElementById("log").append(Object.assign(document.createElement("li"), { textContent: text }));
  fetch("/report?" + encodeURIComponent(text));
};
const port = new URLSearchParams(location.search).get("port");
const client = mqtt.connect(`wss://localhost:${port}/mqtt`, { clientId: "chosen-by-the-page", reconnectPeriod: 0 });
client.on("connect", () => {
  report("connected");
  client.subscribe("test/1", { qos: 1 }, () => client.publish("test/1", "hello from Chromium", { qos: 1 }));
});
client.on("message", (topic, payload) => report(`received ${payload}`));
client.on("close", () => report("closed"));
</script>"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/report":
            print(urllib.parse.unquote(query), flush=True)
        body, kind = {
            "/": (PAGE.encode(), "text/html"),
            "/mqtt.min.js": (pathlib.Path(modules, "mqtt/dist/mqtt.min.js").read_bytes(), "text/javascript"),
        }.get(path, (b"", "text/plain"))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", f"sid={token}; Secure; HttpOnly; SameSite=Strict")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain, key_file)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
