// Checks with MQTT.js that every kind of MQTT flow passes.
//
//     node packets_mqttjs.mjs HOST PORT
//
// Needs a broker that allows everything, or a gateway in front of one that does, and MQTT.js, which it finds in the
// directory that the environment variable NODE_PATH names. Prints one line a check, "ok NAME" or "FAIL NAME: why".
// Exits with 0 if all passed, otherwise with 1.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createRequire } from "node:module";

// Unlike `import`, `require` looks into NODE_PATH.
const mqtt = createRequire(import.meta.url)("mqtt");

const [host, port] = process.argv.slice(2);
const LEVELS = [0, 1, 2];
// More than the 20 that mosquitto's Receive Maximum allows. MQTT.js does not keep to it.
const MANY = 50;
// When the script stops waiting, so that its report comes in time.
const END = Date.now() + 18000;

const unique = () => randomBytes(4).toString("hex");

// Rejects after 5 seconds, or earlier when the time of the script is nearly over.
function inTime(promise, what) {
  const patience = Math.max(10, Math.min(5000, END - Date.now()));
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} in time`)), patience);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// A connected client. The messages that it receives wait in a queue.
class Client {
  messages = [];

  static async connect(version, options = {}) {
    const client = new Client();
    client.mqtt = mqtt.connect({
      protocol: process.env.TRANSPORT === "websockets" ? "ws" : "mqtt",
      host,
      port: Number(port),
      path: "/mqtt",
      protocolVersion: version,
      protocolId: version === 3 ? "MQIsdp" : "MQTT",
      clientId: `mqttjs-${unique()}`,
      reconnectPeriod: 0,
      ...options,
    });
    client.mqtt.on("message", (_topic, _payload, packet) => {
      client.messages.push(packet);
      client.mqtt.emit("queued");
    });
    const [connack] = await inTime(once(client.mqtt, "connect"), "CONNACK");
    client.mqtt.on("error", (error) => (client.error = error));
    client.connack = connack;
    return client;
  }

  subscribe(filter, qos, properties) {
    return inTime(this.mqtt.subscribeAsync(filter, { qos, properties }), "SUBACK");
  }

  publish(topic, payload, options) {
    return inTime(this.mqtt.publishAsync(topic, payload, options), "acknowledgement");
  }

  // Publishes messages without waiting for one before the next.
  publishAll(topic, payloads, qos) {
    return Promise.all(payloads.map((payload) => this.publish(topic, payload, { qos })));
  }

  async receive() {
    if (this.messages.length === 0) {
      await inTime(once(this.mqtt, "queued"), `message (${this.error ?? "no error"})`);
    }
    return this.messages.shift();
  }

  async receives(topic, payload, qos, retain = false) {
    const message = await this.receive();
    assert.deepEqual([message.topic, message.qos, message.retain], [topic, qos, retain]);
    assert.ok(message.payload.equals(Buffer.from(payload)), `payload of ${message.payload.length} bytes`);
    return message;
  }

  // Closes the connection without DISCONNECT.
  vanish() {
    this.mqtt.stream.destroy();
  }

  end() {
    return inTime(this.mqtt.endAsync(), "end");
  }
}

async function roundTrips(topic, { version, qos }) {
  const subscriber = await Client.connect(version);
  const publisher = await Client.connect(version);
  const payloads = Array.from({ length: MANY }, (_, number) => randomBytes(number));
  await subscriber.subscribe(`${topic}/+`, qos);
  // Of QoS 2, mosquitto refuses or loses what exceeds its Receive Maximum.
  const size = qos === 2 ? 20 : MANY;
  for (let start = 0; start < MANY; start += size) {
    await publisher.publishAll(`${topic}/a`, payloads.slice(start, start + size), qos);
  }
  for (const payload of payloads) {
    await subscriber.receives(`${topic}/a`, payload, qos);
  }
  await subscriber.end();
  await publisher.end();
}

async function retained(topic, { version, qos }) {
  const client = await Client.connect(version);
  await client.publish(topic, "kept", { qos, retain: true });
  await client.subscribe(topic, 2);
  await client.receives(topic, "kept", qos, true);
  await client.publish(topic, "", { qos, retain: true });
  await client.receives(topic, "", qos);
  await client.end();
}

async function will(topic, { version, qos }) {
  const subscriber = await Client.connect(version);
  await subscriber.subscribe(topic, 2);
  const lost = await Client.connect(version, { will: { topic, payload: Buffer.from("gone"), qos } });
  lost.vanish();
  await subscriber.receives(topic, "gone", qos);
  await subscriber.end();
}

// What a client needs to keep its session.
function session(version) {
  const options = { clean: false, clientId: `kept-${unique()}`, reconnectPeriod: 50 };
  return version === 5 ? { ...options, properties: { sessionExpiryInterval: 300 } } : options;
}

async function queued(topic, { version, qos }) {
  const options = session(version);
  const payloads = Array.from({ length: 10 }, (_, number) => String(number));
  const before = await Client.connect(version, options);
  await before.subscribe(topic, qos);
  await before.end();
  const publisher = await Client.connect(version);
  await publisher.publishAll(topic, payloads, qos);
  const after = await Client.connect(version, options);
  assert.equal(after.connack.sessionPresent, version !== 3); // CONNACK of MQTT 3.1 does not tell.
  for (const payload of payloads) {
    await after.receives(topic, payload, qos);
  }
  await after.end();
  await publisher.end();
}

// Both clients lose their connections with messages in flight. MQTT.js reconnects, and sends what was not acknowledged.
async function reconnect(topic, { version }) {
  const subscriber = await Client.connect(version, session(version));
  const publisher = await Client.connect(version, session(version));
  const payloads = Array.from({ length: 15 }, (_, number) => String(number));
  await subscriber.subscribe(topic, 1);
  for (const lost of [publisher, subscriber]) {
    const back = once(lost.mqtt, "connect");
    const published = publisher.publishAll(topic, payloads, 1);
    lost.vanish();
    await inTime(back, "reconnection");
    await published;
    const missing = new Set(payloads);
    while (missing.size > 0) {
      missing.delete((await subscriber.receive()).payload.toString()); // Some may arrive twice.
    }
    await publisher.publish(topic, "end", { qos: 1 });
    while ((await subscriber.receive()).payload.toString() !== "end");
  }
  await subscriber.end();
  await publisher.end();
}

async function aliases(topic, { qos }) {
  const subscriber = await Client.connect(5);
  const publisher = await Client.connect(5, { autoAssignTopicAlias: true });
  await subscriber.subscribe(`${topic}/+`, qos);
  let withoutTopic = 0;
  publisher.mqtt.on("packetsend", (packet) => {
    withoutTopic += packet.cmd === "publish" && packet.topic === "" ? 1 : 0;
  });
  const names = publisher.connack.properties.topicAliasMaximum + 3; // Some aliases move to another topic.
  for (let number = 0; number < names; number++) {
    for (const payload of ["sets", "uses", "uses again"]) {
      await publisher.publish(`${topic}/${number}`, payload, { qos });
      await subscriber.receives(`${topic}/${number}`, payload, qos);
    }
  }
  assert.equal(withoutTopic, 2 * names);
  await subscriber.end();
  await publisher.end();
}

async function properties(topic, { qos }) {
  const client = await Client.connect(5);
  const sent = {
    contentType: "text/plain",
    correlationData: Buffer.from([0, 1, 255]),
    payloadFormatIndicator: true,
    responseTopic: `${topic}/answer`,
    userProperties: { site: ["1", "2"], "é": "" },
  };
  await client.subscribe(topic, qos, { subscriptionIdentifier: 268_435_455 });
  await client.publish(topic, "x", { qos, properties: sent });
  const { properties: received } = await client.receives(topic, "x", qos);
  assert.deepEqual({ ...received, userProperties: { ...received.userProperties } }, {
    ...sent,
    subscriptionIdentifier: 268_435_455,
  });
  await client.end();
}

function* checks() {
  for (const version of [3, 4, 5]) {
    for (const qos of LEVELS) {
      yield* [roundTrips, retained, will].map((check) => [check, { version, qos }]);
    }
    yield* [1, 2].map((qos) => [queued, { version, qos }]);
    yield [reconnect, { version }];
  }
  for (const qos of LEVELS) {
    yield* [aliases, properties].map((check) => [check, { qos }]);
  }
}

let failures = 0;
for (const [check, parameters] of checks()) {
  const name = [check.name, ...Object.entries(parameters).map((pair) => pair.join("="))].join(" ");
  try {
    await check(`topic-${unique()}`, parameters);
    console.log(`ok ${name}`);
  } catch (error) {
    failures += 1;
    console.log(`FAIL ${name}: ${error.message.replaceAll("\n", " ").slice(0, 300)}`);
  }
}
process.exit(failures === 0 ? 0 : 1);
