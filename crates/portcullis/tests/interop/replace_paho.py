"""Subscribes with Paho and a session that lasts, connects again whenever it is disconnected, and prints each message once.
Ends once it has `count` messages."""

import sys
import threading

import paho.mqtt.client as mqtt

port, count, ca, certificate, key = sys.argv[1:]
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2, client_id="sub", protocol=mqtt.MQTTv311, clean_session=False
)
client.tls_set(ca, certificate, key)
client.reconnect_delay_set(1, 1)
seen = set()
done = threading.Event()


def on_connect(client, userdata, flags, reason, properties):
    print("connected", flush=True)
    client.subscribe("replace/#", qos=1)


def on_connect_fail(client, userdata):
    print("refused", flush=True)


def on_message(client, userdata, message):
    seen.add(message.payload)
    if len(seen) == int(count):
        done.set()


client.on_connect, client.on_connect_fail, client.on_message = on_connect, on_connect_fail, on_message
client.connect("localhost", int(port))
client.loop_start()
finished = done.wait(60)
print("all" if finished else f"only {len(seen)}", flush=True)
client.disconnect()
sys.exit(0 if finished else 1)
