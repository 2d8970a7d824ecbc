"""Connections on disk: kept over a restart, never believed blindly, never in the way."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lvskit import Route, load_plugins
from lvskit.control.api import Control
from lvskit.control.daemon import DirectorServer
from lvskit.control.datapaths import Brain
from lvskit.control.state import Header, StateFile
from lvskit.core.director import Director

SERVICE = {
    "tcp": "192.168.1.176:23",
    "persistent": 300,
    "server": [{"address": "192.168.1.181"}, {"address": "192.168.1.182"}],
}
HERE = bytes([192, 168, 1, 175])


def director(size: int = 1000) -> Director:
    plugins = load_plugins()
    made = Director(plugins, lambda address: Route(HERE, 1500), size=size, now=time.monotonic())
    Control(made, plugins, time.monotonic).call("apply", {"config": {"service": [SERVICE]}})
    return made


def send(made: Director, client: int, flags: int = 2) -> None:
    head = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, client >> 8, client & 255])
    head += bytes([192, 168, 1, 176])
    segment = struct.pack("!HHIIBBHHH", 1024, 23, 1, 1, 0x50, flags, 1000, 0, 0)
    made.receive(head + segment, time.monotonic())


def flows(made: Director) -> list[tuple[object, str]]:
    entries = made.connections(time.monotonic())
    return [(entry.flow, entry.server.name) for entry in entries]


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    old, new = director(), director()
    for client in range(50):
        send(old, client)
    file.save(old, time.monotonic())
    assert os.listdir(tmp_path) == ["state"]
    assert oct(os.stat(file.path).st_mode & 0o7777) == "0o600"
    assert file.load(new, time.monotonic()) == 100
    assert flows(new) == flows(old)


def test_deadlines_are_the_datapath_s(tmp_path: Path) -> None:
    old, new, now = director(), director(), time.monotonic()
    for client in range(3):
        send(old, client)
    first, second, third = old.table.tcp.values()
    # It knows better when the first ends, brings the second back itself, and knows not the third.
    ends = {first: now + 500, second: None}
    file = StateFile(str(tmp_path / "state"), lambda c: ends.get(c, c.deadline))
    file.save(old, now)
    file.load(new, now)
    assert {c.key for c in new.table.tcp.values()} == {first.key, third.key}
    assert new.table.tcp[first.key].deadline == pytest.approx(now + 500, abs=0.1)
    assert new.table.tcp[third.key].deadline == pytest.approx(third.deadline, abs=0.1)
    assert len(new.table.templates[6]) == 3


def test_connections_of_the_file_hang_on_templates_that_are_there(tmp_path: Path) -> None:
    old, new, now = director(), director(), time.monotonic()
    for client in (1, 2):
        send(old, client)
    file = StateFile(str(tmp_path / "state"))
    file.save(old, now)
    brain = Brain(lambda: now)
    brain.director = new
    (service,) = new.services
    one, other = old.table.templates[6].values()
    with brain.restoring() as restorer:
        for template, same in ((one, True), (other, False)):
            names = [s.name == template.server.name for s in service.servers]
            server = service.servers[names.index(same)]
            restorer.template(server, 6, template.key, 23, now + 77, 300.0, False)
    file.load(new, now)
    kept = list(new.table.templates[6].values())
    assert [(each.deadline, each.children) for each in kept] == [(now + 77, 1), (now + 77, 0)]


def test_no_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(str(tmp_path / "state")).load(director(), time.monotonic()) == 0
    assert not caplog.records


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


HEADER = frame(msgspec.msgpack.encode(Header.now()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0",
        b"\xff\xff\xff\xff" * 10,
        b"junk" * 1000,
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode({"format": "something else"})),
        HEADER,
        HEADER + b"\0\0\0\x05abc",
        HEADER + frame(b"\x93\x01\x02\x03"),
        HEADER + frame(msgspec.msgpack.encode({"connections": [[1, 2]]})),
    ],
    ids=range(11),
)
def test_a_damaged_file_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "state").write_bytes(content)
    assert StateFile(str(tmp_path / "state")).load(director(), time.monotonic()) == 0
    assert "not restored from" in caplog.text


def test_a_truncated_file_gives_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(str(tmp_path / "state"))
    old, new = director(10_000), director(10_000)
    for client in range(1500):
        send(old, client)
    file.save(old, time.monotonic())
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(whole[:-10])
    assert 1500 <= file.load(new, time.monotonic()) < 3000
    assert "the file is damaged" in caplog.text


def test_only_ones_own_file_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(str(tmp_path / "state"))
    old = director()
    send(old, 1)
    file.save(old, time.monotonic())
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert file.load(director(), time.monotonic()) == 0
    assert "no regular file of this user's" in caplog.text
    monkeypatch.undo()
    os.symlink(tmp_path / "state", tmp_path / "link")
    assert StateFile(str(tmp_path / "link")).load(director(), time.monotonic()) == 0
    os.mkfifo(tmp_path / "fifo")
    assert StateFile(str(tmp_path / "fifo")).load(director(), time.monotonic()) == 0


def test_age_by_the_clock_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Header.now()
    same_boot = msgspec.structs.replace(header, monotonic=time.monotonic() - 5, wall=0.0)
    assert 5 <= same_boot.age_s() < 6
    rebooted = msgspec.structs.replace(header, boot="before", wall=time.time() - 50)
    assert 50 <= rebooted.age_s() < 51
    stepped = msgspec.structs.replace(rebooted, wall=time.time() + 1000)
    assert stepped.age_s() == 0
    monkeypatch.setattr("lvskit.control.state._BOOT", Path("/nonexistent"))
    assert 50 <= msgspec.structs.replace(rebooted, boot="").age_s() < 51


def test_it_is_written_only_when_something_passed(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    made = director()

    async def keep() -> int | None:
        await file.keep(made, time.monotonic())
        return os.stat(file.path).st_mtime_ns if os.path.exists(file.path) else None

    first = asyncio.run(keep())
    os.utime(file.path, ns=(0, 0))
    assert first is not None
    assert asyncio.run(keep()) == 0
    send(made, 1)
    assert asyncio.run(keep()) not in (0, None)


def test_an_interrupted_write_leaves_the_file_before(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    made = director(10_000)
    send(made, 1)
    file.save(made, time.monotonic())
    before = (tmp_path / "state").read_bytes()
    for client in range(2000):
        send(made, client)

    async def interrupt() -> None:
        task = asyncio.create_task(file.keep(made, time.monotonic()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupt())
    assert os.listdir(tmp_path) == ["state"]
    assert (tmp_path / "state").read_bytes() == before
    (tmp_path / "state.new").write_text("of a daemon that was killed")
    file.save(made, time.monotonic())
    assert os.listdir(tmp_path) == ["state"]


def config(tmp_path: Path, **own: Any) -> dict[str, Any]:
    own = {"datapath": "memory", "socket": str(tmp_path / "s"), **own}
    return {"director": own, "service": [SERVICE]}


def test_connections_survive_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    given = config(tmp_path, state=str(tmp_path / "state"))

    async def first() -> list[tuple[object, str]]:
        async with DirectorServer(given) as server:
            send(server.director, 1)
            return flows(server.director)

    async def second() -> list[tuple[object, str]]:
        async with DirectorServer(given) as server:
            return flows(server.director)

    before = asyncio.run(first())
    assert len(before) == 2
    assert asyncio.run(second()) == before
    assert "2 connections of the last run go on" in caplog.text


def test_connections_survive_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvskit.control.daemon.STATE_PERIOD_S", 0.05)
    path = tmp_path / "state"

    async def run() -> None:
        async with DirectorServer(config(tmp_path, state=str(path))) as server:
            send(server.director, 1)
            await asyncio.sleep(0.5)
            assert path.exists()
            path.unlink()
            await asyncio.sleep(0.2)
            assert not path.exists()  # nothing has passed
            send(server.director, 1)
            await asyncio.sleep(0.5)
            assert path.exists()

    asyncio.run(run())


def test_a_state_file_that_cannot_be_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lvskit.control.daemon.STATE_PERIOD_S", 0.05)

    async def run() -> None:
        given = config(tmp_path, state=str(tmp_path / "missing" / "state"))
        async with DirectorServer(given) as server:
            await asyncio.sleep(0.2)
            server.control.call("status")

    asyncio.run(run())
    assert caplog.text.count("connections not saved: ") >= 2
