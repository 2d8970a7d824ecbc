"""The setting of the recordings on a datapath with real packets, in simulated time.

The director and its datapath are the real ones, in a network namespace of this thread. Only their
clock is ours: it stands still while packets move, so that no step depends on the machine's speed,
and a scenario of twenty minutes takes as long as its packets do.

The datapath is the live one, or that of a plugin which has an entry point in the group
`lvskit.testing`, of its datapath's name: a `Rehearsal`.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol

from lvskit.control.datapaths import Body, Brain
from lvskit.core.director import Director
from lvskit.interfaces import Datapath
from lvskit.plugins import Plugins
from lvskit.testing.kernel_timers import KernelClock
from lvskit.testing.live_host import INTERFACE, LiveHost, write_setting
from lvskit.testing.wire import Tree, emitted
from lvskit.testing.world import TABLE_SIZE, DirectorWorld, Unsupported

_OWN_SETTINGS = "net.ipv4.vs."
_PATIENCE_S = 3.0
_LARGEST = 65535
_GROUP = "lvskit.testing"


class Rehearsal(Protocol):
    """Returns a datapath that carries packets in simulated time.

    Besides what a datapath of the daemon may have, it may have these methods: `settled()`, called
    whenever all packets have arrived and before the time goes on; and `carried()`, which returns
    how many packets were carried in which way so far, by the way's name.
    """

    def __call__(self, brain: Brain, interface: str) -> Datapath:
        """Return it, for one host with one interface.

        Args:
            brain: its clock is the simulated one.
            interface: where all packets come in and leave.
        """


def _live(brain: Brain, interface: str) -> Datapath:
    return brain.live({})


def rehearsals() -> dict[str, Callable[[], Rehearsal]]:
    """Return what loads the `Rehearsal` of each datapath that there is."""
    found: dict[str, Callable[[], Rehearsal]] = {"live": lambda: _live}
    for entry in entry_points(group=_GROUP):
        found.setdefault(entry.name, entry.load)
    return found


class LiveWorld(DirectorWorld):
    """A director on a datapath with real packets, set up as a scenario's `director` says.

    The thread that makes it is in the director's network namespace until `close`.

    Args:
        scenario: whose setting it is.
        plugins: what is installed.
        clock: let timers run as late as the kernel's; None = exactly on time.
        make: makes the datapath.

    Raises:
        DatapathError: this host lacks what it takes.
    """

    def __init__(
        self,
        scenario: Tree,
        plugins: Plugins,
        clock: KernelClock | None = None,
        make: Rehearsal = _live,
    ) -> None:
        _refuse(scenario)
        self._undo: list[Callable[[], object]] = []
        try:
            self._host = LiveHost(scenario["director"])
            self._undo.append(self._host.close)
            self._loop = _Loop()
            self._undo.append(self._loop.close)
            brain = Brain(self._loop.time)
            datapath: Any = make(brain, INTERFACE)
            body = self._body = Body(datapath)
            self._undo.append(body.close)
            self._settled = getattr(datapath, "settled", lambda: None)
            self._carried: Callable[[], dict[str, int]] = getattr(datapath, "carried", dict)
            director = brain.director = Director(plugins, body.routes, size=TABLE_SIZE)
            body.attach(director)
            body.open()
            super().__init__(
                director, scenario, plugins, self._loop.time,
                changed=self._changed, refresh=body.refresh, clock=clock,
            )  # fmt: skip
            self._task = self._loop.create_task(body.run())
            self._undo.append(self._stop)
            self._settle()
        except BaseException:
            self.close()
            raise

    def _changed(self) -> None:
        self._body.services_changed([service.key for service in self.director.services])

    def set_time(self, now: float) -> None:
        """Let time pass until `now`, seconds since the start."""
        self._loop.now = now
        self._settle()
        self.director.expire(now)

    def setting(self, name: str, value: object) -> None:
        """Change one of the kernel's settings: ip_vs's, or one of the host's."""
        if name.startswith(_OWN_SETTINGS):
            super().setting(name, value)
        else:
            write_setting(name.replace(".", "/"), value)

    def send(self, packet: bytes) -> list[Tree]:
        """Let `packet` arrive; return what the director emits."""
        self._host.send(packet)
        return self.emitted(packet)

    def emitted(self, sent: bytes = b"") -> list[Tree]:
        """Return what was emitted since the last call."""
        found = self._settle()
        return [{**emitted(packet, "", sent), "next_hop": next_hop} for next_hop, packet in found]

    def unpack(self) -> None:
        """Let the director's host unpack IP in IP from now on."""
        device = self._host.tunnel_end()
        arriving = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP)
        self._undo += [arriving.close, lambda: os.close(device)]

        def pass_on() -> None:
            packet = arriving.recv(_LARGEST)
            os.write(device, packet[(packet[0] & 15) * 4 :])

        self._loop.add_reader(arriving, pass_on)

    def _settle(self) -> list[tuple[str, bytes]]:
        """Let everything that is on its way arrive; return what the host has emitted."""
        found: list[tuple[str, bytes]] = []
        while True:
            self._host.arrived()
            worked = self._loop.work()
            if self._task.done():
                self._task.result()  # the datapath's own complaint
            new = self._host.emitted()
            found += new
            if not worked and not new:
                self._settled()
                return found

    def carried(self) -> dict[str, int]:
        """Return packets by the way in which they were carried, where there are several."""
        return self._carried()

    def _stop(self) -> None:
        self._task.cancel()
        self._loop.run_until_complete(asyncio.wait([self._task]))

    def close(self) -> None:
        """End the director, and leave its network namespace, which then goes."""
        while self._undo:
            self._undo.pop()()


class _Selector(selectors.DefaultSelector):
    """Tells whether there was anything to read."""

    found = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout)
        self.found = bool(events)
        return events


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is what it is told.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self) -> None:
        self._watched = _Selector()
        super().__init__(self._watched)
        self.now = 0.0

    def time(self) -> float:
        """Return the time that timers go by."""
        return self.now

    def work(self) -> bool:
        """Do what there is to do now, without waiting; say whether anything was to be read."""
        worked = False
        while True:
            self.call_soon(self.stop)
            self.run_forever()
            if not self._watched.found:
                return worked
            worked = True


def _refuse(scenario: Tree) -> None:
    """Raise `Unsupported` where a scenario needs what only the recorded host has."""
    fragments = False
    for step in scenario["steps"]:
        do = step["do"]
        packet = bytes.fromhex(do.get("hex", ""))
        fragments = fragments or (packet[:1] == b"\x45" and packet[6] & 0x3F | packet[7] > 0)
        if fragments and do.get("seconds", 0.0) > _PATIENCE_S:
            raise Unsupported("the host reassembles in real time, and waits here for longer")
