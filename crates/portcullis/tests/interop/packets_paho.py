"""Checks with Paho that every kind of MQTT flow passes.

    packets_paho.py HOST PORT

Needs a broker that allows everything, or a gateway in front of one that does. Prints one line a check, "ok NAME" or
"FAIL NAME: why". Exits with 0 if all passed, otherwise with 1.
"""

import itertools
import os
import queue
import secrets
import socket
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

VERSIONS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}
# When the script stops waiting, so that its report comes in time.
END = time.monotonic() + 18


def expect(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, expected {wanted!r:.200}")


def properties(packet_type, values):
    result = Properties(packet_type)
    for name, value in values.items():
        setattr(result, name, value)
    return result if values else None


class Client:
    """A connected client. What it receives waits in queues."""

    address = None  # Of the gateway, or of the broker.

    def __init__(self, version, identifier=None, kept=False, will=None, will_properties=None):
        self.version = version
        self.messages, self.answers = queue.Queue(), queue.Queue()
        identifier = identifier or f"paho-{secrets.token_hex(6)}"
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            identifier,
            transport=os.environ.get("TRANSPORT", "tcp"),
            clean_session=None if version == "5" else not kept,
            protocol=VERSIONS[version],
            reconnect_on_failure=False,
        )
        self.paho.ws_set_options(path="/mqtt")
        if will:
            self.paho.will_set(*will, properties=properties(PacketTypes.WILLMESSAGE, will_properties or {}))
        self.paho.on_message = lambda client, userdata, message: self.messages.put(message)
        self.paho.on_connect = lambda client, userdata, flags, reason, _: self.answers.put((flags, reason))
        self.paho.on_subscribe = lambda client, userdata, packet, reasons, _: self.answers.put(reasons)
        self.paho.on_publish = lambda client, userdata, packet, reason, _: self.answers.put(reason)
        if version == "5":
            expiry = properties(PacketTypes.CONNECT, {"SessionExpiryInterval": 300 if kept else 0})
            self.paho.connect(*self.address, clean_start=not kept, properties=expiry)
        else:
            self.paho.connect(*self.address)
        self.paho.loop_start()
        flags, reason = self.next(self.answers, "CONNACK")
        self.session_present, self.reason = flags.session_present, reason.value

    def __enter__(self):
        expect(self.reason, 0)
        return self

    def __exit__(self, *_):
        self.paho.disconnect()
        self.paho.loop_stop()

    def vanish(self):
        """Closes the connection without DISCONNECT."""
        connection = self.paho.socket()
        # Over WebSocket, what is below.
        getattr(connection, "_socket", connection).shutdown(socket.SHUT_RDWR)
        self.paho.loop_stop()

    def next(self, events, what):
        """Takes the first of the events. Waits for 5 seconds, or less when the time of the script is nearly over."""
        try:
            return events.get(timeout=max(0.01, min(5, END - time.monotonic())))
        except queue.Empty:
            raise AssertionError(f"no {what} in time") from None

    def subscribe(self, *filters, **values):
        """Subscribes to pairs of a filter and a QoS. Returns the reason codes."""
        options = [(each, mqtt.SubscribeOptions(qos) if self.version == "5" else qos) for each, qos in filters]
        self.paho.subscribe(options, properties=properties(PacketTypes.SUBSCRIBE, values))
        return [reason.value for reason in self.next(self.answers, "SUBACK")]

    def publish(self, topic, payload, qos, retain=False, **values):
        """Publishes a message. Returns the reason code that acknowledges it."""
        self.paho.publish(topic, payload, qos, retain, properties(PacketTypes.PUBLISH, values))
        return self.next(self.answers, "acknowledgement").value

    def publish_all(self, topic, payloads, qos):
        """Publishes messages without waiting for one before the next."""
        for payload in payloads:
            self.paho.publish(topic, payload, qos)
        for _ in payloads:
            self.next(self.answers, "acknowledgement")

    def receives(self, topic, payload, qos, retain=False):
        message = self.next(self.messages, f"message on {topic}")
        expect((message.topic, message.qos, message.retain), (topic, qos, retain))
        expect(message.payload, payload)
        return message


def round_trips(topic, version, qos):
    payloads = [secrets.token_bytes(length) for length in range(30)]
    with Client(version) as subscriber, Client(version) as publisher:
        expect(subscriber.subscribe((f"{topic}/+", qos)), [qos])
        publisher.publish_all(f"{topic}/a", payloads, qos)
        for payload in payloads:
            subscriber.receives(f"{topic}/a", payload, qos)


def lengths(topic, version):
    """Passes the borders of the packet's length field, whatever topic and properties add to the payload."""
    payloads = [secrets.token_bytes(n) for n in (0, 1, *range(80, 130), *range(16_335, 16_386), 300_000)]
    with Client(version) as client:
        client.subscribe((topic, 0))
        client.publish_all(topic, payloads, 0)
        for payload in payloads:
            client.receives(topic, payload, 0)


def retained(topic, version, qos):
    with Client(version) as publisher, Client(version) as early, Client(version) as late:
        publisher.publish(topic, b"kept", qos, retain=True)
        publisher.publish(f"{topic}/other", b"", 1)  # Its acknowledgement tells that the broker has the first one, too.
        early.subscribe((topic, 2))
        early.receives(topic, b"kept", qos, retain=True)
        publisher.publish(topic, b"", 1, retain=True)
        late.subscribe((topic, 2))
        publisher.publish(topic, b"live", qos)
        late.receives(topic, b"live", qos)


def will(topic, version, qos):
    with Client(version) as subscriber, Client(version, will=(topic, b"gone", qos)) as lost:
        subscriber.subscribe((topic, 2))
        lost.vanish()
        subscriber.receives(topic, b"gone", qos)


def queued(topic, version, qos):
    payloads = [b"%d" % number for number in range(10)]
    with Client(version, topic, kept=True) as subscriber:
        expect(subscriber.session_present, False)
        subscriber.subscribe((topic, qos))
    with Client(version) as publisher:
        publisher.publish_all(topic, payloads, qos)
    with Client(version, topic, kept=True) as subscriber:
        expect(subscriber.session_present, version != "3.1")  # CONNACK of MQTT 3.1 does not tell.
        for payload in payloads:
            subscriber.receives(topic, payload, qos)


def shared(topic, version):
    """Relies on mosquitto, which serves the members of a group in turn."""
    payloads = [b"%d" % number for number in range(10)]
    with Client(version) as one, Client(version) as other, Client(version) as publisher:
        for member in (one, other):
            expect(member.subscribe((f"$share/group/{topic}", 1)), [1])
        publisher.publish_all(topic, payloads, 1)
        received = [member.next(member.messages, "message").payload for member in (one, other) for _ in range(5)]
        expect(sorted(received), payloads)


def aliases(topic, qos):
    with Client("5") as subscriber, Client("5") as publisher:
        subscriber.subscribe((f"{topic}/+", qos))
        # The second round moves each alias to another topic. mosquitto allows ten aliases.
        for round_name, alias in itertools.product(("first", "second"), range(1, 11)):
            for name in (f"{topic}/{round_name}-{alias}", ""):
                publisher.publish(name, b"x", qos, TopicAlias=alias)
                subscriber.receives(f"{topic}/{round_name}-{alias}", b"x", qos)


def subscription_identifiers(topic):
    with Client("5") as client:
        for identifier in (1, 127, 128, 268_435_455):
            client.subscribe((f"{topic}/{identifier}", 1), SubscriptionIdentifier=identifier)
            client.publish(f"{topic}/{identifier}", b"", 1)
            message = client.receives(f"{topic}/{identifier}", b"", 1)
            expect(message.properties.SubscriptionIdentifier, [identifier])


PROPERTIES = {
    "ContentType": "text/plain",
    "CorrelationData": b"\x00\x01\xff",
    "PayloadFormatIndicator": 1,
    "UserProperty": [("site", "1"), ("site", "2"), ("é", ""), ("long", "x" * 3000)],
}


def expect_properties(received, topic):
    expect({name: getattr(received, name, None) for name in PROPERTIES}, PROPERTIES)
    expect(received.ResponseTopic, f"{topic}/answer")


def publish_properties(topic, qos):
    with Client("5") as client:
        client.subscribe((topic, qos))
        client.publish(topic, b"x", qos, ResponseTopic=f"{topic}/answer", **PROPERTIES)
        expect_properties(client.receives(topic, b"x", qos).properties, topic)


def will_properties(topic):
    values = {"ResponseTopic": f"{topic}/answer", "WillDelayInterval": 0, **PROPERTIES}
    with Client("5") as subscriber, Client("5", will=(topic, b"gone", 1), will_properties=values) as lost:
        subscriber.subscribe((topic, 1))
        lost.vanish()
        expect_properties(subscriber.receives(topic, b"gone", 1).properties, topic)


def checks():
    for version in VERSIONS:
        for check, qos in itertools.product((round_trips, retained, will, queued), range(3)):
            if (check, qos) != (queued, 0):  # Nothing is queued at QoS 0.
                yield check, {"version": version, "qos": qos}
        yield lengths, {"version": version}
        yield shared, {"version": version}
    for check, qos in itertools.product((aliases, publish_properties), range(3)):
        yield check, {"qos": qos}
    yield subscription_identifiers, {}
    yield will_properties, {}


def passes(check, parameters):
    """Runs a check with a topic of its own."""
    name = " ".join([check.__name__, *(f"{name}={value}" for name, value in parameters.items())])
    try:
        check(f"topic-{secrets.token_hex(4)}", **parameters)
    except Exception as error:
        print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"ok {name}", flush=True)
    return True


if __name__ == "__main__":
    host, port = sys.argv[1:]
    Client.address = (host, int(port))
    sys.exit(0 if all([passes(*each) for each in checks()]) else 1)
