"""Connects with aioquic, publishes to itself with QoS 1, prints what came back, or why the connection was closed."""

import asyncio
import os
import struct
import sys

from aioquic.asyncio import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

port, client_id, ca, *identity = sys.argv[1:]
hold = os.environ.get("HOLD")


class Protocol(QuicConnectionProtocol):
    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            print("closed", hex(event.error_code), event.reason_phrase, flush=True)
        super().quic_event_received(event)


def field(text):
    return struct.pack("!H", len(text)) + text.encode()


def packet(first, body):
    assert len(body) < 128
    return bytes([first, len(body)]) + body


async def main():
    configuration = QuicConfiguration(alpn_protocols=["mqtt"], is_client=True, server_name="localhost")
    configuration.load_verify_locations(ca)
    if identity:
        configuration.load_cert_chain(*identity)
    async with connect("127.0.0.1", int(port), configuration=configuration, create_protocol=Protocol) as client:
        reader, writer = await client.create_stream()
        hello = packet(0x10, field("MQTT") + bytes([4, 2, 0, 60]) + field(client_id))
        # Cut over packets of QUIC.
        writer.write(hello[:5])
        await asyncio.sleep(0.05)
        writer.write(hello[5:])
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        print("connected", flush=True)
        # Until the test lets it go on.
        while hold and not os.path.exists(hold):
            await asyncio.sleep(0.02)
        writer.write(packet(0x82, b"\x00\x01" + field("test/1") + b"\x01"))
        assert await reader.readexactly(5) == b"\x90\x03\x00\x01\x01"
        writer.write(packet(0x32, field("test/1") + b"\x00\x02hello"))
        expected = {packet(0x40, b"\x00\x02"), packet(0x32, field("test/1") + b"\x00\x01hello")}
        received = b""
        while len(received) < sum(map(len, expected)):
            received += await reader.read(64)
        assert all(one in received for one in expected), received
        writer.write(packet(0x40, b"\x00\x01"))
        print("received hello", flush=True)
        writer.write(b"\xe0\x00")
        writer.write_eof()
        await asyncio.sleep(0.1)


async def bounded():
    try:
        await asyncio.wait_for(main(), 10)
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        print("refused", type(error).__name__, flush=True)


asyncio.run(bounded())
