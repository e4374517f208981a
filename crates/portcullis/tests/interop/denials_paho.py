"""Checks with Paho what a client sees of a denial, and that nothing denied arrives at the broker.

    denials_paho.py HOST PORT --broker HOST:PORT

Needs a gateway whose listener has the policy below, and the address of the broker behind it, where a witness looks.

    [[topic_policy]]
    name = "some"
    on_deny = "ack"
    [[topic_policy.rule]]
    effect = "deny"
    publish = ["+/denied/#"]
    subscribe = ["+/denied/#"]
    [[topic_policy.rule]]
    publish = ["#"]
    subscribe = ["+/ok/#"]

Prints one line a check, "ok NAME" or "FAIL NAME: why". Exits with 0 if all passed, otherwise with 1.
"""

import argparse
import sys

sys.dont_write_bytecode = True  # The import leaves nothing behind in the source tree.

from packets_paho import VERSIONS, Client, expect, passes  # noqa: E402

NOT_AUTHORIZED = 0x87


class Witness(Client):
    """A client of the broker behind the gateway that sees every message."""

    def __init__(self):
        super().__init__("3.1.1")
        self.subscribe(("#", 0))

    def saw_only(self, topic, names):
        """Compares what arrived below the topic of a check. A mountpoint may stand in front."""
        self.publish(f"{topic}/end", b"", 0)
        seen = []
        while not seen or seen[-1] != "/end":
            _, found, name = self.next(self.messages, "message at the broker").topic.partition(topic)
            if found:
                seen.append(name)
        expect(seen, [*names, "/end"])


def denied_reason(version, qos):
    """What Paho reports: it ignores the reason code of a PUBREC, sends PUBREL, and takes that of PUBCOMP."""
    return NOT_AUTHORIZED if version == "5" and qos == 1 else 0


def denied_publish(topic, version, qos):
    """Between allowed messages, more are denied than may be in flight at once."""
    with Witness() as witness, Client(version) as client:
        client.subscribe((f"{topic}/ok/+", qos))
        for name in ("1", "2", "3"):
            expect(client.publish(f"{topic}/ok/{name}", b"x", qos), 0)
            client.receives(f"{topic}/ok/{name}", b"x", qos)
            for _ in range(25):
                expect(client.publish(f"{topic}/denied/{name}", b"y", qos), denied_reason(version, qos))
        witness.saw_only(topic, ["/ok/1", "/ok/2", "/ok/3"])


def denied_filter(topic, version):
    with Client(version) as client:
        refused = NOT_AUTHORIZED if version == "5" else 0x80
        codes = client.subscribe((f"{topic}/ok/a", 1), (f"{topic}/denied/a", 1), (f"{topic}/ok/b", 2))
        expect(codes, [1, refused, 2])
        for name in ("a", "b"):
            client.publish(f"{topic}/ok/{name}", b"x", 1)
            client.receives(f"{topic}/ok/{name}", b"x", 1)


def denied_alias(topic, qos):
    """An alias that a denied PUBLISH sets is set, leads to a denial, and may be moved to an allowed topic."""
    with Witness() as witness, Client("5") as client:
        client.subscribe((f"{topic}/ok/+", qos))
        for name in (f"{topic}/denied/x", ""):
            expect(client.publish(name, b"x", qos, TopicAlias=1), denied_reason("5", qos))
        for name in (f"{topic}/ok/x", ""):
            expect(client.publish(name, b"y", qos, TopicAlias=1), 0)
            client.receives(f"{topic}/ok/x", b"y", qos)
        witness.saw_only(topic, ["/ok/x", "/ok/x"])


def denied_will(topic, version):
    with Witness() as witness:
        client = Client(version, will=(f"{topic}/denied/x", b"gone", 1))
        expect(client.reason, NOT_AUTHORIZED)  # Paho translates the codes of earlier versions.
        client.paho.loop_stop()
        witness.saw_only(topic, [])


def checks():
    for version in VERSIONS:
        for qos in range(3):
            yield denied_publish, {"version": version, "qos": qos}
        yield denied_filter, {"version": version}
        yield denied_will, {"version": version}
    for qos in range(3):
        yield denied_alias, {"qos": qos}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    arguments = parser.parse_args()
    Client.address = (arguments.host, arguments.port)
    broker_host, broker_port = arguments.broker.rsplit(":", 1)
    Witness.address = (broker_host, int(broker_port))
    sys.exit(0 if all([passes(*each) for each in checks()]) else 1)
