"""The screen of `lvskit top`, driven by keys, on a real daemon with traffic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from lvskit.cli.top.screen import Listing, Top
from lvskit.control.daemon import DirectorServer
from lvskit.testing.packets import udp

VIP = "192.168.1.176"
DNS = {
    "udp": f"{VIP}:53",
    "scheduler": "rr",
    "server": [
        {"address": "192.168.1.181"},
        {"address": "192.168.1.182"},
        {"address": "192.168.1.183", "weight": 0},
    ],
}
WEB = {"tcp": f"{VIP}:80", "server": [{"address": "192.168.1.191"}]}
INTERVAL_S = 0.1


class Stage:
    """A daemon, and the screen that watches it."""

    def __init__(self, server: DirectorServer, pilot: Pilot[None]) -> None:
        self.server = server
        self.pilot = pilot
        self.app = pilot.app
        self._client = 1024

    def lines(self) -> list[str]:
        """What the screen shows, without what is blank at the ends."""
        width, height = self.app.size
        found = self.app.screen._compositor.render_strips()
        assert (len(found), width) == (height, self.app.size.width)
        return [strip.text.rstrip() for strip in found]

    def text(self) -> str:
        return "\n".join(self.lines())

    def row(self, name: str) -> list[str]:
        """The words of the line that begins with `name`."""
        return next(line for line in self.lines() if line.strip().startswith(name)).split()

    def order(self) -> list[str]:
        """The names of services and servers from top to bottom."""
        words = [line.split() for line in self.lines() if "192.168.1." in line]
        return [row[1] if row[0] in ("tcp", "udp") else row[0] for row in words]

    def send(self, count: int) -> None:
        for _ in range(count):
            self._client += 1
            packet = udp("10.0.0.1", self._client, VIP, 53)
            self.server.director.receive(packet, time.monotonic())

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.text()
            await self.pilot.pause(0.02)


@asynccontextmanager
async def stage(socket: Path, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Stage]:
    async with DirectorServer(configuration(socket)) as server:
        async with Top(INTERVAL_S).run_test(size=size) as pilot:
            here = Stage(server, pilot)
            await here.until(lambda: "192.168.1.191" in here.text() and "Quit" in here.lines()[-1])
            yield here
        # A reading that is on its way still has its answer.
        await asyncio.get_running_loop().shutdown_default_executor()


def configuration(socket: Path) -> dict[str, Any]:
    director = {"datapath": "memory", "socket": str(socket), "size": 1000}
    return {"director": director, "service": [DNS, WEB]}


@pytest.fixture
def on_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    """Plays a scene on a stage of its own."""
    monkeypatch.setenv("LVSKIT_SOCKET", str(tmp_path / "s"))

    def play(scene: Callable[[Stage], Awaitable[None]], **more: Any) -> None:
        async def all_of_it() -> None:
            async with stage(tmp_path / "s", **more) as here:
                await scene(here)

        asyncio.run(all_of_it())

    return play


def test_what_passes_is_shown(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        here.send(40)
        await here.until(lambda: here.row("udp")[2:6] == ["rr", "2", "0", "40"])
        assert here.row("192.168.1.181:53")[1:4] == ["1", "0", "20"]
        assert here.row("192.168.1.183:53")[:5] == ["192.168.1.183:53", "quiesced", "0", "0", "0"]
        assert here.row("tcp")[2:] == ["wlc", "1", *"0000000"]
        assert " 4%  40 of 1,000 entries, 0 half-open" in here.text()
        await here.until(lambda: here.send(5) or here.row("udp")[6] != "0")
        keys = " ".join(here.lines()[-1].split())
        assert keys == "< > Sort r Reverse / Filter p Pause + - Interval q Quit"

    on_stage(scene)


def test_keys_sort(on_stage: Callable[..., None]) -> None:
    by_name = [
        f"{VIP}:80", "192.168.1.191:80",
        f"{VIP}:53", "192.168.1.181:53", "192.168.1.182:53", "192.168.1.183:53",
    ]  # fmt: skip
    by_weight = [*by_name[2:], *by_name[:2]]

    async def scene(here: Stage) -> None:
        assert here.order() == by_name
        await here.pilot.press("greater_than_sign")
        assert here.order() == by_weight
        assert "▾Weight" in here.text()
        await here.pilot.press("r")
        assert here.order() == [*by_name[:2], f"{VIP}:53", *by_name[:2:-1]]
        await here.pilot.press("less_than_sign")
        assert here.order() == by_name
        await here.pilot.press("less_than_sign")
        assert "▾OutBPS" in here.text()

    on_stage(scene)


def test_a_filter_is_typed(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        await here.pilot.press("slash", *"181")
        assert here.order() == [f"{VIP}:53", "192.168.1.181:53"]
        assert "only “181” (Esc: all)" in here.text()
        await here.pilot.press("enter")
        assert not here.app.query_one("#filter", Input).display
        assert here.order() == [f"{VIP}:53", "192.168.1.181:53"]
        await here.pilot.press("slash", *"q/-<")  # letters, while it is open
        assert "nothing like that" in here.text()
        assert here.app.query_one("#filter", Input).value == "q/-<"
        await here.pilot.press("escape")
        assert len(here.order()) == 6
        assert here.app.focused is here.app.query_one(Listing)

    on_stage(scene)


def test_pause_holds_the_picture(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        await here.pilot.press("p")
        assert "PAUSED" in here.text()
        before = here.text()
        here.send(10)
        await here.pilot.pause(4 * INTERVAL_S)
        assert here.text() == before
        await here.pilot.press("p")
        await here.until(lambda: here.row("udp")[5] == "10")

    on_stage(scene)


def test_the_interval_is_changed(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        app = here.app
        assert isinstance(app, Top)
        await here.pilot.press("minus")
        assert app.interval_s == 0.1
        for wanted in (0.2, 0.5, 1, 2, 5, 10, 30, 60, 60):
            await here.pilot.press("plus")
            assert app.interval_s == wanted
        assert "every 60 s" in here.text()
        here.send(10)
        await here.pilot.press("minus")  # the minute is not waited for
        await here.until(lambda: here.row("udp")[5] == "10")
        app.interval_s = 3.0
        await here.pilot.press("minus")
        assert app.interval_s == 2

    on_stage(scene)


def test_more_than_fits_scrolls_under_its_titles(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        await here.until(lambda: "192.168.1.183" not in here.text())
        await here.pilot.press("end")
        await here.until(lambda: "192.168.1.183" in here.text())
        assert "Service, server" in here.text()
        assert "192.168.1.191" not in here.text()
        await here.pilot.resize_terminal(120, 24)
        await here.until(lambda: "InPPS, the last" in here.text())
        assert len(here.order()) == 6

    on_stage(scene, size=(80, 12))


def test_services_come_and_go(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        here.server.control.call("clear")
        await here.until(lambda: "no virtual services" in here.text())
        here.server.control.call("add_service", {"service": {"fwmark": 7}})
        await here.until(lambda: "fwmark 7 wlc" in here.text())

    on_stage(scene)


def test_a_daemon_that_has_gone_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVSKIT_SOCKET", str(tmp_path / "s"))

    async def scene() -> None:
        after = DirectorServer(configuration(tmp_path / "s"))
        async with stage(tmp_path / "s") as here:
            here.send(10)
            app = here.app
            assert isinstance(app, Top)
            app.interval_s = 60
            await here.pilot.press("minus")
            await here.until(lambda: here.row("udp")[5] == "10")
            await here.pilot.pause(1)  # the next reading is half a minute away
            await here.server.close()
            await here.pilot.press("minus")
            await here.until(lambda: "no daemon at" in here.text())
            assert here.row("udp")[5] == "10"
            app.interval_s = 0.2
            await after.start()
            await here.pilot.press("minus")
            await here.until(lambda: here.row("udp")[5] == "0")
            assert "no daemon at" not in here.text()
        await after.close()

    asyncio.run(scene())


def test_q_quits(on_stage: Callable[..., None]) -> None:
    async def scene(here: Stage) -> None:
        await here.pilot.press("q")
        assert here.app._exit

    on_stage(scene)
