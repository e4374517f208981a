// Connects with MQTT.js, publishes to itself with QoS 1, prints what came back, or why it was refused.
const fs = require("fs");
const mqtt = require("mqtt");

const [port, clientId, version, ca, cert, key] = process.argv.slice(2);
const protocol = process.env.TRANSPORT ?? "mqtts";
const tls = { ca: fs.readFileSync(ca), cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
const client = mqtt.connect({
  protocol,
  path: "/mqtt",
  host: "localhost",
  port: Number(port),
  clientId,
  protocolVersion: Number(version),
  protocolId: version === "3" ? "MQIsdp" : "MQTT",
  ...(protocol === "ws" ? {} : tls),
  reconnectPeriod: 0,
  connectTimeout: 10000,
  will: { topic: "test/gone", payload: "x", qos: 1 },
});
const end = (code) => client.end(true, () => process.exit(code));
client.on("connect", () => {
  client.subscribe("test/1", { qos: 1 }, () => client.publish("test/1", "hello", { qos: 1 }));
});
client.on("message", (_topic, payload) => {
  console.log("received " + payload);
  end(0);
});
client.on("error", (error) => {
  console.log("refused " + (error.code ?? error.message));
  end(0);
});
setTimeout(() => process.exit(1), 15000).unref();
