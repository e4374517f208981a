"""Checks with mosquitto_pub, mosquitto_sub and mosquitto_rr that every kind of MQTT flow passes.

    packets_mosquitto.py HOST PORT

Needs a broker that allows everything, or a gateway in front of one that does. Prints one line a check, "ok NAME" or
"FAIL NAME: why". Exits with 0 if all passed, otherwise with 1.
"""

import itertools
import secrets
import subprocess
import sys
import time

VERSIONS = ("mqttv31", "mqttv311", "mqttv5")
ADDRESS = ["-h", sys.argv[1], "-p", sys.argv[2]]
NUMBERS = [str(number) for number in range(20)]
# When the script stops waiting, so that its report comes in time.
END = time.monotonic() + 18


def expect(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, expected {wanted!r:.200}")


def patience():
    """How many seconds a process may take: 5, or less when the time of the script is nearly over."""
    return max(0.01, min(5, END - time.monotonic()))


def finish(process, data=None):
    """Waits until a process exits. Returns its output."""
    try:
        output, _ = process.communicate(data, patience())
    finally:
        process.kill()
    expect((process.returncode, process.args[0], output if process.returncode else ""), (0, process.args[0], ""))
    return output


def start(program, version, *options):
    """Starts a client. All that it prints goes to one pipe."""
    command = [program, *ADDRESS, "-V", version, *map(str, options)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **streams)


def publish(version, topic, qos, *options, data=None):
    finish(start("mosquitto_pub", version, "-t", topic, "-q", qos, *options), data)
