"""`DirectorServer` inside a program of one's own, and datapaths of plugins under it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lvskit import DatapathSpec, Director, PluginError, Route, ServiceKey, load_plugins
from lvskit.config.model import Config, DirectorConfig
from lvskit.control.client import connect
from lvskit.control.daemon import DirectorServer
from lvskit.control.datapaths import Brain, MemoryDatapath, MemoryOptions
from lvskit.errors import ConfigError, DatapathError, UnknownPlugin
from lvskit.plugins import Plugins, Provided, Source

MEMORY = {"director": {"datapath": "memory", "socket": ""}}
SERVICE = {"tcp": "192.168.1.176:23"}


def test_without_a_socket() -> None:
    async def run() -> None:
        async with DirectorServer(MEMORY) as server:
            assert server.socket is None
            server.control.call("add_service", {"service": SERVICE})
            assert len(server.director.services) == 1
        await server.close()  # a second time does nothing

    asyncio.run(run())


def test_with_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> None:
        own = DirectorConfig(datapath="memory", socket=path)
        async with DirectorServer(Config(director=own)) as server:
            assert server.socket == path

            def ask() -> Any:
                with connect(path, 20) as client:
                    return client.call("plugins")

            assert await asyncio.wait_for(asyncio.to_thread(ask), 30)
        assert not os.path.exists(path)

    asyncio.run(run())


def test_the_default_socket_and_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lvskit.control.daemon import _state_path

    monkeypatch.setenv("LVSKIT_SOCKET", str(tmp_path / "here.sock"))
    server = DirectorServer()
    assert server.socket == str(tmp_path / "here.sock")
    assert _state_path(DirectorConfig(), server.socket) == str(tmp_path / "here.state")
    assert _state_path(DirectorConfig(), None) is None
    assert _state_path(DirectorConfig(datapath="memory"), "/s.sock") is None
    assert _state_path(DirectorConfig(datapath="memory", state="/x"), None) == "/x"
    assert _state_path(DirectorConfig(state=""), "/s.sock") is None


def test_serve_starts_and_ends_by_itself() -> None:
    async def run() -> None:
        server = DirectorServer(MEMORY)
        serving = asyncio.create_task(server.serve())
        while not hasattr(server, "control"):
            await asyncio.sleep(0.01)
        server.stop()
        await asyncio.wait_for(serving, 10)

    asyncio.run(run())


def test_a_configuration_of_the_wrong_form() -> None:
    with pytest.raises(ConfigError, match=r"\$\.director\.size"):
        DirectorServer({"director": {"size": "large"}})


def test_reload() -> None:
    async def run() -> None:
        configs = iter([Config(), Config(service=[{"tcp": 1}])])  # type: ignore[list-item]
        given = {**MEMORY, "service": [SERVICE]}
        async with DirectorServer(given, load=lambda: next(configs)) as server:
            assert server.reload() == ["removed TCP 192.168.1.176:23"]
            with pytest.raises(ConfigError):
                server.reload()
        async with DirectorServer(MEMORY) as server:
            with pytest.raises(ConfigError, match="no configuration file"):
                server.reload()

    asyncio.run(run())


def test_a_reload_that_cannot_be_is_taken_back() -> None:
    web = {"tcp": "192.168.1.176:80", "server": [{"address": "192.168.1.181"}]}
    wrong = {**SERVICE, "scheduler": "nonesuch"}
    given = {**MEMORY, "service": [SERVICE, web]}
    config = DirectorServer({"service": [{**web, "persistent": 9}, wrong]}).config

    async def run() -> None:
        async with DirectorServer(given, load=lambda: config) as server:
            before = server.control.call("status")
            with pytest.raises(UnknownPlugin):
                server.reload()
            after = server.control.call("status")
            assert sorted(map(str, after["services"])) == sorted(map(str, before["services"]))

    asyncio.run(run())


def test_systemd_hears_of_the_daemon_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        async def run(notify: bool) -> None:
            async with DirectorServer(MEMORY, notify=notify):
                pass

        asyncio.run(run(False))
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
        asyncio.run(run(True))
        assert manager.recv(1000).startswith(b"READY=1\n")
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_configuration_that_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> None:
        own = {"datapath": "memory", "socket": path}
        bad = {"director": own, "service": [{**SERVICE, "scheduler": "nonesuch"}]}
        with pytest.raises(UnknownPlugin):
            await DirectorServer(bad).start()
        assert os.listdir(tmp_path) == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


# --- datapaths of plugins ---


@dataclass(frozen=True)
class Options:
    fail: str = ""


class Recorder:
    """A datapath that writes down what is asked of it."""

    def __init__(self, brain: Brain, options: Options) -> None:
        self.brain = brain
        self.fail = options.fail
        self.calls: list[str] = []
        made.append(self)

    def routes(self, address: bytes) -> Route | None:
        return Route(bytes([192, 168, 1, 175]), 1500)

    def attach(self, director: Director) -> None:
        assert director is self.brain.director
        self.calls.append("attach")

    def services_changed(self, keys: Sequence[ServiceKey]) -> None:
        self.calls.append(f"services {len(keys)}")

    def open(self) -> None:
        self.calls.append("open")
        if self.fail == "open":
            raise DatapathError("nothing here to carry packets with")

    async def run(self) -> None:
        self.calls.append("run")
        if self.fail == "run":
            raise DatapathError("the kernel took it away")
        if self.fail == "bug":
            raise ZeroDivisionError
        if self.fail != "end":
            try:
                await asyncio.Event().wait()
            finally:
                self.calls.append("cancelled")
                if self.fail == "cleanup":
                    raise DatapathError("cannot undo it")

    def close(self) -> None:
        self.calls.append("close")


class Bare:
    """A datapath with what it must have, and no more."""

    def __init__(self, brain: Brain, options: None) -> None:
        self.brain = brain

    def routes(self, address: bytes) -> Route | None:
        return None

    async def run(self) -> None:
        assert self.brain.director.receive(b"", self.brain.clock())
        await asyncio.Event().wait()


made: list[Recorder] = []


def installed() -> Plugins:
    plugins = load_plugins()
    source = Source("x", "lvskit-datapath-x", "1.0")
    for name, factory, options in (("recorder", Recorder, Options), ("bare", Bare, None)):
        spec = DatapathSpec(name=name, summary="for tests", factory=factory, options=options)
        plugins.datapaths[name] = Provided(spec, source)
    return plugins


def recorded(fail: str = "") -> DirectorServer:
    made.clear()
    own = {"datapath": "recorder", "datapath_options": {"fail": fail}, "socket": ""}
    return DirectorServer({"director": own, "service": [SERVICE]}, plugins=installed())


def test_the_life_of_a_datapath() -> None:
    async def run() -> None:
        async with recorded() as server:
            await asyncio.sleep(0)
            server.control.call("clear")

    asyncio.run(run())
    assert made[0].calls == [
        "attach",
        "services 1",
        "open",
        "run",
        "services 0",
        "cancelled",
        "close",
    ]


def test_a_datapath_may_have_no_more_than_it_must() -> None:
    async def run() -> None:
        own = {"datapath": "bare", "socket": ""}
        async with DirectorServer({"director": own, "service": [SERVICE]}, plugins=installed()):
            await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_datapath_that_cannot_open() -> None:
    with pytest.raises(DatapathError, match="nothing here"):
        asyncio.run(recorded("open").start())
    assert made[0].calls == ["attach", "services 1", "open", "close"]


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("run", "the kernel took it away"),
        ("bug", r"datapath recorder ended: ZeroDivisionError\(\)"),
        ("end", "datapath recorder ended"),
    ],
)
def test_a_datapath_that_fails_ends_the_daemon(fail: str, said: str) -> None:
    async def run() -> None:
        await asyncio.wait_for(recorded(fail).serve(), 10)

    with pytest.raises(DatapathError, match=said):
        asyncio.run(run())
    assert made[0].calls[-1] == "close"


def test_a_datapath_that_fails_while_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with recorded("cleanup"):
            await asyncio.sleep(0)

    asyncio.run(run())
    assert "datapath recorder: cannot undo it" in caplog.text
    assert made[0].calls[-1] == "close"


def test_unknown_names_and_options() -> None:
    own = {"datapath": "x", "socket": ""}
    with pytest.raises(
        UnknownPlugin, match=r"installed: live, memory, bare \(lvskit-datapath-x 1\.0\)"
    ):
        asyncio.run(DirectorServer({"director": own}, plugins=installed()).start())
    own = {"datapath": "recorder", "datapath_options": {"x": 1}, "socket": ""}
    with pytest.raises(ConfigError, match="unknown option 'x'; options of recorder: fail"):
        asyncio.run(DirectorServer({"director": own}, plugins=installed()).start())


def test_routes_of_the_memory_datapath() -> None:
    datapath = MemoryDatapath(MemoryOptions(addresses=["10.0.0.1"], mtu=1400))
    here, other = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    assert datapath.routes(other) == Route(here, 1400)
    assert datapath.routes(here) == Route(here, 1400, local=True)
    assert datapath.routes(bytes([127, 0, 0, 1])) == Route(bytes([127, 0, 0, 1]), 1400, local=True)
    assert datapath.routes(bytes(16)) is None
    with pytest.raises(ValueError, match="mtu 0"):
        MemoryOptions(mtu=0)
    with pytest.raises(ValueError, match="nowhere"):
        MemoryOptions(addresses=["nowhere"])


def test_a_plugins_faults_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    server = DirectorServer(MEMORY)
    times = iter((100.0, 100.5, 101.5, 101.5))
    server._clock = lambda: next(times)
    for _ in range(3):
        server._report(PluginError("it broke", plugin="x"))
    server._report(PluginError("another", plugin="y"))
    assert [r.getMessage() for r in caplog.records] == [
        "plugin fault: it broke",
        "plugin fault: it broke",
        "plugin fault: another",
    ]


def test_timers_run() -> None:
    async def run() -> None:
        async with DirectorServer({**MEMORY, "service": [SERVICE]}) as server:
            key = ServiceKey.of(6, bytes([192, 168, 1, 176]), 23)
            params = {"service": SERVICE, "server": {"address": "192.168.1.181"}}
            server.control.call("add_server", params)
            server.director.tune({"timeout_synrecv": 1})
            head = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 168, 1, 176])
            segment = bytes([4, 0, 0, 23, *bytes(8), 0x50, 2, 4, 0, 0, 0, 0, 0])
            server.director.receive(head + segment, server._clock())
            (real,) = server.director.services.get(key).servers
            assert real.activeconns == 1
            async with asyncio.timeout(10):
                while real.activeconns:
                    await asyncio.sleep(0.05)

    asyncio.run(run())


def test_sockets_are_closed_when_the_start_fails(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        own = {"datapath": "memory", "socket": str(path)}
        with pytest.raises(ConfigError, match="another daemon answers"):
            asyncio.run(DirectorServer({"director": own}).start())
    assert path.exists()
