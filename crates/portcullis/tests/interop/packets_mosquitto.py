"""Checks with mosquitto_pub, mosquitto_sub and mosquitto_rr that every kind of MQTT flow passes.

    packets_mosquitto.py HOST PORT

Needs a broker that allows everything, or a gateway in front of one that does, and stdbuf of the GNU core utilities.
Prints one line a check, "ok NAME" or "FAIL NAME: why". Exits with 0 if all passed, otherwise with 1.
"""

import itertools
import secrets
import subprocess
import sys
import threading
import time

VERSIONS = ("mqttv31", "mqttv311", "mqttv5")
NUMBERS = [str(number) for number in range(10)]
# When the script stops waiting, so that its report comes in time.
END = time.monotonic() + 18


def expect(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, expected {wanted!r:.200}")


class Process:
    """A client of mosquitto. It is killed when it runs for more than 5 seconds, or past the time of the script."""

    def __init__(self, program, version, *options):
        host, port = sys.argv[1:]
        command = ["stdbuf", "-oL", program, "-h", host, "-p", port, "-V", version, *map(str, options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.guard = threading.Timer(max(0.01, min(5, END - time.monotonic())), self.process.kill)
        self.guard.start()

    def lines(self, data=""):
        """Gives data to the client, waits until it exits, and returns the rest of the lines that it prints."""
        with self.process.stdin as stdin:
            stdin.write(data)
        output = self.process.stdout.read()
        code = self.process.wait()
        self.guard.cancel()
        if code:
            raise AssertionError(f"{self.process.args[2]} exits with {code}: {output[-200:]}")
        return output.splitlines()

    def messages(self):
        """Returns the messages that a subscriber prints from now on."""
        return [line.removeprefix("message ") for line in self.lines() if line.startswith("message ")]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.guard.cancel()


def subscribe(version, topic, qos, count, *options, shown="%t %q %r %p"):
    """Starts a client that exits after `count` messages. It prints each as "TOPIC QOS RETAIN PAYLOAD" by default."""
    filters = ["-t", topic, "-q", qos, "-C", count]
    return Process("mosquitto_sub", version, "-d", "-F", f"message {shown}", *filters, *options)


def subscribed(*arguments, **options):
    """Starts a subscriber, and waits until the broker has subscribed it."""
    subscriber = subscribe(*arguments, **options)
    line = "nothing"
    while "received SUBACK" not in line:
        before, line = line, subscriber.process.stdout.readline()
        if not line:
            raise AssertionError(f"mosquitto_sub ended without a subscription, after: {before}")
    return subscriber


def publish(version, topic, qos, *options, data=""):
    Process("mosquitto_pub", version, "-t", topic, "-q", qos, *options).lines(data)


def round_trips(topic, version, qos):
    subscriber = subscribed(version, f"{topic}/+", qos, len(NUMBERS))
    publish(version, f"{topic}/a", qos, "-l", data="\n".join(NUMBERS))
    expect(subscriber.messages(), [f"{topic}/a {qos} 0 {number}" for number in NUMBERS])


def large(topic, version, qos):
    payload = secrets.token_hex(1_000_000)
    subscriber = subscribed(version, topic, qos, 1)
    publish(version, topic, qos, "-s", data=payload)
    expect(subscriber.messages(), [f"{topic} {qos} 0 {payload}"])


def retained(topic, version, qos):
    publish(version, topic, qos, "-r", "-m", "kept")
    expect(subscribe(version, topic, qos, 1).messages(), [f"{topic} {qos} 1 kept"])
    publish(version, topic, qos, "-r", "-n")
    subscriber = subscribed(version, topic, qos, 1)
    publish(version, topic, qos, "-m", "live")
    expect(subscriber.messages(), [f"{topic} {qos} 0 live"])


def will(topic, version, qos):
    subscriber = subscribed(version, topic, qos, 1)
    options = ["--will-topic", topic, "--will-payload", "gone", "--will-qos", qos]
    subscribed(version, f"{topic}/other", 0, 1, *options).kill()
    expect(subscriber.messages(), [f"{topic} {qos} 0 gone"])


def queued(topic, version, qos):
    session = ["-i", topic, "-c"]
    if version == "mqttv5":
        session += ["-x", "300"]
    Process("mosquitto_sub", version, *session, "-t", topic, "-q", qos, "-E").lines()
    publish(version, topic, qos, "-l", data="\n".join(NUMBERS))
    subscriber = subscribe(version, topic, qos, len(NUMBERS), *session)
    expect(subscriber.messages(), [f"{topic} {qos} 0 {number}" for number in NUMBERS])


def shared(topic, version):
    """Relies on mosquitto, which serves the members of a group in turn."""
    members = [subscribed(version, f"$share/group/{topic}", 1, len(NUMBERS) // 2) for _ in range(2)]
    publish(version, topic, 1, "-l", data="\n".join(NUMBERS))
    received = [message for member in members for message in member.messages()]
    expect(sorted(received), [f"{topic} 1 0 {number}" for number in NUMBERS])


def request_and_response(topic, version):
    """In MQTT 5, the response goes to the topic that the request names. Before, the two sides have agreed on it."""
    request, response = f"{topic}/request", f"{topic}/response"
    server = subscribed(version, request, 1, 1, shown="%R %p" if version == "mqttv5" else f"{response} %p")
    client = Process("mosquitto_rr", version, "-t", request, "-e", response, "-q", 1, "-m", "question")
    received = server.messages()
    expect(received, [f"{response} question"])
    publish(version, received[0].split()[0], 1, "-m", "answer")
    expect(client.lines(), ["answer"])


def alias(topic, qos):
    """After the first message, mosquitto_pub leaves the topic out."""
    subscriber = subscribed("mqttv5", topic, qos, len(NUMBERS))
    publish("mqttv5", topic, qos, "-D", "publish", "topic-alias", 3, "-l", data="\n".join(NUMBERS))
    expect(subscriber.messages(), [f"{topic} {qos} 0 {number}" for number in NUMBERS])


def checks():
    for version in VERSIONS:
        for check, qos in itertools.product((round_trips, large, retained, will, queued), range(3)):
            if (check, qos) != (queued, 0):  # Nothing is queued at QoS 0.
                yield check, {"version": version, "qos": qos}
        yield shared, {"version": version}
        yield request_and_response, {"version": version}
    for qos in range(3):
        yield alias, {"qos": qos}


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
    sys.exit(0 if all([passes(*each) for each in checks()]) else 1)
