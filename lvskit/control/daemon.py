"""The daemon: plugins, director, commands, datapath and socket put together on asyncio.

What starts, in this order, ends in the other: the socket is claimed (so that a second daemon
harms nothing), plugins, datapath, director, services, connections of the last run, packets,
commands, and only then the word that all is ready.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final

import msgspec

from lvskit.config.model import Config, DirectorConfig
from lvskit.config.status import DatapathStatus
from lvskit.control import datapaths
from lvskit.control.api import Control
from lvskit.control.listener import Listener
from lvskit.control.paths import default_socket
from lvskit.control.server import RpcServer
from lvskit.control.state import StateFile
from lvskit.control.systemd import Notifier
from lvskit.core.director import Director
from lvskit.errors import ConfigError, DatapathError, LvskitError, PluginError
from lvskit.plugins import Plugins, load_plugins

STATE_PERIOD_S: Final = 10.0
"""How often the connections are written to the state file while packets pass."""
_STATE_SHARE: Final = 20  # and no more than one part in so many of the time
_TICK_S: Final = 1.0
_SOONEST_S: Final = 0.01
_REPORT_S: Final = 1.0
_STATUS_S: Final = 2.0

_log = logging.getLogger(__name__)


class DirectorServer:
    """A whole director inside an asyncio program: what ``lvskit run`` runs.

    Args:
        config: a `Config`, or the same as plain values, as the TOML file has them. An empty
            `socket` means no control socket, and `state` is described with `DirectorConfig`.
        load: returns the configuration anew; `reload` applies it. None = there is nothing to load.
        plugins: what is installed; by default it is looked up.
        notify: tell systemd of every step: for a program that is nothing but this.

    Attributes:
        config: as given, validated.
        director: the sans-IO director, once started.
        control: carries out the commands of the socket, once started.
        capabilities: numbers of those Linux capabilities that the datapath needs from then on;
            None = it does not say.
        socket: path of the control socket; None = none.

    Raises:
        ConfigError: a configuration of the wrong form.

    Example:
        >>> import asyncio
        >>> telnet = {"tcp": "192.168.1.176:23", "server": [{"address": "192.168.1.181"}]}
        >>> async def main():
        ...     config = {"director": {"datapath": "memory", "socket": ""}, "service": [telnet]}
        ...     async with DirectorServer(config) as server:
        ...         status = server.control.call("status")
        ...         print(status["services"][0]["config"])
        >>> asyncio.run(main())
        {'tcp': '192.168.1.176:23'}
    """

    director: Director
    control: Control
    capabilities: frozenset[int] | None

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        *,
        load: Callable[[], Config] | None = None,
        plugins: Plugins | None = None,
        notify: bool = False,
    ) -> None:
        self.config = _config(config)
        own = self.config.director
        self.socket = (default_socket() if own.socket is None else own.socket) or None
        self._load = load
        self._plugins = plugins
        self._clock = time.monotonic
        self._notifier = Notifier(os.environ if notify else {})
        self._state: StateFile | None = None
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._stopping = asyncio.Event()
        self._running: AsyncExitStack | None = None
        self._reported: dict[str, float] = {}

    async def __aenter__(self) -> DirectorServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start everything, and return when commands are answered and packets are carried.

        Raises:
            LvskitError: why it cannot; nothing is left behind.
        """
        async with AsyncExitStack() as stack:
            listener = None
            if self.socket is not None:
                listener = Listener(self.socket, self.config.director.group)
                stack.callback(listener.close)
            body = self._make_director(stack)
            stack.push_async_callback(self._end_tasks)
            body.open()
            self._begin(f"datapath {self.config.director.datapath}", body.run())
            self._begin("timers", self._tick())
            if self._state is not None:
                self._begin("state file", self._keep_state(self._state))
            if listener is not None:
                server = RpcServer(self.control.call, listener)
                await server.start()
                stack.push_async_callback(server.close)
            self._notifier.ready(self._summary())
            stack.callback(self._notifier.stopping)
            _log.info("ready: %s", self._summary())
            self._running = stack.pop_all()

    def _make_director(self, stack: AsyncExitStack) -> datapaths.Body:
        """Make the director with its datapath, and give it its services and connections."""
        own = self.config.director
        if own.size < 1:
            raise ConfigError(f"director.size = {own.size}; allowed: 1 or more")
        plugins = self._plugins or load_plugins()
        brain = datapaths.Brain(self._clock)
        body = datapaths.make(own.datapath, own.datapath_options, plugins, brain)
        stack.callback(body.close)
        director = Director(
            plugins, body.routes, size=own.size, now=self._clock(), report=self._report
        )
        self.director = brain.director = director
        body.attach(director)
        self.capabilities = body.capabilities

        def changed() -> None:
            body.services_changed([service.key for service in director.services])

        def datapath() -> DatapathStatus:
            return DatapathStatus(own.datapath, body.facts(), body.figures())

        self.control = Control(
            director, plugins, self._clock, changed, body.losses, datapath, body.refresh
        )
        self.control.call("apply", {"config": msgspec.to_builtins(self.config)})
        body.adopt()
        self._restore(stack, body)
        return body

    def _restore(self, stack: AsyncExitStack, body: datapaths.Body) -> None:
        path = _state_path(self.config.director, self.socket)
        if path is None:
            return
        self._state = state = StateFile(path, body.deadline)
        kept = state.load(self.director, self._clock())
        if kept:
            _log.info("%d connections of the last run go on", kept)
        stack.callback(self._save_state, state)

    async def serve(self) -> None:
        """Go on until `stop` is called; start first, and close at the end, where nobody has.

        Raises:
            LvskitError: the datapath has failed.
        """
        if self._running is None:
            async with self:
                return await self.serve()
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stopping.is_set():
            return None
        name, task = next((name, task) for task, name in self._tasks.items() if task.done())
        err = task.exception()
        if isinstance(err, LvskitError):
            raise err
        raise DatapathError(f"{name} ended: {err!r}" if err else f"{name} ended") from err

    def stop(self) -> None:
        """Let `serve` return. To be called inside the event loop, from a signal handler too."""
        self._stopping.set()

    async def close(self) -> None:
        """End everything: clients, packets, the state file, the datapath's changes, the socket."""
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    def reload(self) -> list[str]:
        """Apply the configuration anew, by the least changes; return a line for each.

        Raises:
            LvskitError: it is faulty, or cannot be; nothing has changed.
        """
        if self._load is None:
            raise ConfigError("there is no configuration file to read again")
        self._notifier.reloading()
        try:
            config, own = self._load(), self.config.director
            done: list[str] = self.control.call("apply", {"config": msgspec.to_builtins(config)})
        finally:
            self._notifier.ready(self._summary())
        for line in done:
            _log.info("configuration: %s", line)
        if config.director != own:
            _log.warning("what [director] says has changed: it counts from the next start on")
        self.config = msgspec.structs.replace(config, director=own)
        return done

    # --- what goes on meanwhile ---

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[asyncio.create_task(work, name=name)] = name

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, end in zip(self._tasks.values(), ends, strict=True):
            if isinstance(end, Exception):
                _log.error("%s: %s", name, end)
        self._tasks.clear()

    async def _tick(self) -> None:
        """End what is due, and tell systemd that the event loop turns, and how things stand."""
        interval, ping = self._notifier.watchdog_s, self._clock()
        status, said = ping, ""
        while True:
            now = self._clock()
            self.director.expire(now)
            if now >= status:
                status = now + _STATUS_S
                if said != (said := self._summary()):
                    self._notifier.status(said)
            until = now + _TICK_S
            due = self.director.next_timer()
            if due is not None:
                until = min(until, max(due, now + _SOONEST_S))
            if interval is not None:
                if now >= ping:
                    self._notifier.watchdog()
                    ping = now + interval
                until = min(until, ping)
            await asyncio.sleep(until - now)

    async def _keep_state(self, state: StateFile) -> None:
        """Write the connections again and again, so that little is lost in a crash."""
        pause = STATE_PERIOD_S
        while True:
            await asyncio.sleep(pause)
            began = self._clock()
            try:
                await state.keep(self.director, began)
            except OSError as err:
                _log.warning("connections not saved: %s", err)
            pause = max(STATE_PERIOD_S, (self._clock() - began) * _STATE_SHARE)

    def _save_state(self, state: StateFile) -> None:
        try:
            state.save(self.director, self._clock())
        except OSError as err:
            _log.warning("connections not saved: %s", err)

    def _report(self, err: PluginError) -> None:
        """Log a plugin's fault; one that has it with every packet, once a second."""
        now = self._clock()
        if now >= self._reported.get(err.plugin, now):
            self._reported[err.plugin] = now + _REPORT_S
            _log.error("plugin fault: %s", err)

    def _summary(self) -> str:
        services, entries = len(self.director.services), len(self.director.table)
        own = self.config.director
        return f"{services} virtual services, {entries} connections, datapath {own.datapath}"


def _config(given: Config | Mapping[str, Any] | None) -> Config:
    if isinstance(given, Config):
        return given
    try:
        return msgspec.convert(given or {}, Config)
    except msgspec.ValidationError as err:
        raise ConfigError(f"configuration: {err}") from err


def _state_path(own: DirectorConfig, socket: str | None) -> str | None:
    """Return the state file's path: by default beside the socket, and none for `memory`."""
    if own.state is not None:
        return own.state or None
    if own.datapath == "memory" or socket is None:
        return None
    return os.path.splitext(socket)[0] + ".state"
