"""The state file: whatever is in it, the daemon starts, and forgets in time what it was told."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile

import msgspec
from fuzzkit.source import Bytes, Source
from fuzzkit.world import PLUGINS, VIP, route

from lvskit import Director, PluginError, ServerSettings, ServiceKey, ServiceSettings
from lvskit.control.state import Header, StateFile
from lvskit.testing import packets
from lvskit.types import SCTP, TCP, UDP

_CLIENT, _SERVER = packets.address("10.0.0.1"), packets.address("198.51.100.1")
_SIZE = 8
_NOW = 1000.0
_LONG = 2.0**33
_HOME = tempfile.mkdtemp(prefix="lvskit-fuzz-")
atexit.register(shutil.rmtree, _HOME)
_PATH = os.path.join(_HOME, "state")
_HEADER = msgspec.msgpack.encode(Header(monotonic=0.0, wall=2.0**40, boot=""))
_NUMBERS = (0, 1, 2, 3, -1, 11, 255, 2**31, 2**70, -(2**40))
_SECONDS = (1.5, 0.0, -1.0, 1e300, 2.0**32, float("nan"), float("inf"), 100.0)
_KEYS = (
    packets.flow("10.0.0.1", 1024, VIP[4], 80).key,
    packets.flow("10.0.0.2", 0, VIP[4], 80).key,
    bytes(36), bytes(12), b"", bytes(11), bytes(1000),
)  # fmt: skip


def check(data: bytes) -> None:
    content = _records(Bytes(data[1:])) if data[:1] == b"\1" else data[1:]
    with open(_PATH, "wb") as file:
        file.write(content)
    director = _director()
    StateFile(_PATH).load(director, _NOW)
    assert len(director.table) <= _SIZE
    for entry in director.connections(_NOW):
        assert entry.state_name
        assert entry.flow.key == entry.key
    director.receive(packets.tcp(_CLIENT, 1024, VIP[4], 80, "A"), _NOW)
    director.receive(packets.tcp(_CLIENT, 1025, VIP[4], 80, "S"), _NOW)
    director.next_tick = director.defence.due = 4 * _LONG  # nothing on a grid of seconds
    director.expire(_NOW + _LONG)
    director.expire(_NOW + 2 * _LONG)
    assert len(director.table) == 0
    for service in director.services:
        for server in service.servers:
            assert (server.activeconns, server.inactconns, server.persistconns) == (0, 0, 0)


def _director() -> Director:
    def report(error: PluginError) -> None:
        raise AssertionError(str(error)) from error

    director = Director(PLUGINS, route, size=_SIZE, now=_NOW, report=report)
    for key, seconds in (
        (ServiceKey.of(TCP, VIP[4], 80), 300),
        (ServiceKey.of(UDP, VIP[4], 80), 0),
    ):
        director.add_service(key, ServiceSettings(scheduler="rr", persistence_s=seconds))
        director.add_server(key, _SERVER, None, ServerSettings(upper=3))
    return director


def _records(source: Source) -> bytes:
    """Choose a file of the right form, whose records may be anything."""
    frames = [_HEADER]
    while source.more() and len(frames) < 4:
        frames.append(
            msgspec.msgpack.encode(
                {
                    "servers": [_server(source) for _ in range(source.number(0, 2))],
                    "templates": [
                        (*_entry(source), source.pick(_SECONDS), _bit(source), _bit(source))
                        for _ in range(source.number(0, 2))
                    ],
                    "connections": [
                        (
                            *_entry(source),
                            source.pick(_NUMBERS[:5]),
                            source.pick(_NUMBERS[:8]),
                            _bit(source),
                            source.pick(_NUMBERS[:7]),
                        )
                        for _ in range(source.number(0, 3))
                    ],
                }
            )
        )
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in [*frames, b""])


def _server(source: Source) -> tuple[object, ...]:
    protocol, port = source.pick(((TCP, 80), (UDP, 80), (SCTP, 80), (99, 80), (TCP, 81)))
    service = (protocol, VIP[4], port, 0, 4)
    return service, source.pick((_SERVER, _CLIENT, b"")), 80, source.pick((3, 0)), _bit(source)


def _entry(source: Source) -> tuple[object, ...]:
    """Choose what connections and templates have in common."""
    return (
        source.pick((0, 0, 1, 2, -1, 5)),
        source.pick((TCP, UDP, SCTP, 0, 99)),
        source.pick(_KEYS),
        source.pick((80, 0, 65535, 65536, -1)),
        source.pick(_SECONDS),
    )


def _bit(source: Source) -> bool:
    return bool(source.number(0, 1))
