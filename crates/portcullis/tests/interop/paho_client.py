"""Connects with Paho, publishes to itself with QoS 1, prints what came back, or why it was refused."""

import os
import sys
import threading

import paho.mqtt.client as mqtt

port, client_id, version, ca, certificate, key = sys.argv[1:]
protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
scheme = os.environ.get("TRANSPORT", "mqtts")
transport = "websockets" if scheme.startswith("ws") else "tcp"
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, transport=transport
)
client.ws_set_options(path="/mqtt")
if scheme != "ws":
    client.tls_set(ca, certificate, key)
client.will_set("test/gone", "x", qos=1)
done = threading.Event()


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        print("refused", reason, flush=True)
        done.set()
    else:
        client.subscribe("test/1", qos=1)


def on_subscribe(client, userdata, mid, reasons, properties):
    client.publish("test/1", "hello", qos=1)


def on_message(client, userdata, message):
    print("received", message.payload.decode(), flush=True)
    done.set()


client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect("localhost", int(port))
client.loop_start()
finished = done.wait(10)
client.disconnect()
client.loop_stop()
sys.exit(0 if finished else 1)
