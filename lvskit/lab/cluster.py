"""The lab: an LVS-TUN cluster on one machine, started and ended by one call each."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from lvskit.errors import ConfigError, DatapathError
from lvskit.hostsetup.process import Process
from lvskit.hostsetup.state import runtime_directory
from lvskit.lab import namespaces
from lvskit.lab.director import LabDatapath, answers, director_command
from lvskit.lab.state import MARK, LabState, end_abandoned
from lvskit.lab.topology import HOSTS

_PROGRAM: Final = [sys.executable, "-P", "-S", namespaces.__file__]
_HELP: Final = (
    "run it as root, or let users make namespaces: sysctl -w user.max_user_namespaces=10000, and"
    " where there are such settings kernel.unprivileged_userns_clone=1 and"
    " kernel.apparmor_restrict_unprivileged_userns=0"
)
_DIRECTOR_PATIENCE_S: Final = 10.0


def _mode() -> tuple[Literal["root", "user"] | None, str]:
    """Return how a lab can be made here, or None and why not."""
    reasons = []
    modes: tuple[Literal["root", "user"], ...] = ("root", "user")
    for mode in modes:
        tried = subprocess.run(
            [*_PROGRAM, "--probe", mode], capture_output=True, text=True, check=False
        )
        reason = tried.stdout.strip() if tried.returncode == 0 else tried.stderr.strip()
        if not reason:
            return mode, ""
        reasons.append(reason)
    return None, f"no lab here: {'; as an ordinary user: '.join(reasons)}; {_HELP}"


def possible() -> str | None:
    """Return None if this user can have a lab on this machine, else the reason why not."""
    mode, reason = _mode()
    return None if mode else reason


class Lab:
    """A lab that runs. A context manager that ends it.

    Attributes:
        name: several labs may run at once, under different names.
        directory: its files: the state, the director's socket, logs.
    """

    def __init__(self, name: str, directory: Path, state: LabState) -> None:
        self.name = name
        self.directory = directory
        self._state = state

    # --- start and end ---

    @classmethod
    def up(
        cls,
        name: str = "lab",
        *,
        vips: bool = True,
        realservers: bool = True,
        servers: bool = True,
        start_director: bool = True,
        owned: bool = False,
        datapath: LabDatapath = "live",
        tell: Callable[[str], None] = lambda _: None,
    ) -> Lab:
        """Start a lab; what a crashed one of the same name left is removed first.

        Args:
            name: letters, digits and hyphens.
            vips: give the director its VIPs.
            realservers: set the real servers up (`lvskit realserver up`).
            servers: start the small servers on the real servers and on the director.
            start_director: start the director's daemon, and wait until it answers.
            owned: it ends with this process; if that cannot end it, the next `up` does.
            datapath: of the director; with `xdp`, which root alone can have, the real servers take
                packets out of the tunnel by XDP too.
            tell: called with a line for each thing done.

        Raises:
            ConfigError: the name is not allowed, or a lab of that name runs.
            DatapathError: no lab is possible here, or a part of it did not start; nothing is left.
        """
        directory = _directory(name)
        _refuse_inside()
        for abandoned in end_abandoned(directory.parent):
            shutil.rmtree(abandoned)
        old = LabState.load(directory / "state.json")
        if old is not None and old.running:
            raise ConfigError(
                f"the lab {name!r} is up already; `lvskit lab down` ends it, or give another a name"
            )
        mode, reason = _mode()
        if mode is None:
            raise DatapathError(reason)
        if datapath == "xdp" and mode != "root":
            raise DatapathError("no BPF works in a user namespace: run it as root for xdp")
        if old is not None:
            old.end()
            shutil.rmtree(directory)
            tell(f"removed what was left of a lab {name!r} that had crashed")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = Process.of(os.getpid()) if owned else None
        mark = secrets.token_hex(16)
        lab = cls(name, directory, LabState(mark=mark, mode=mode, owner=owner, datapath=datapath))
        try:
            lab._hold(vips=vips, realservers=realservers)
            tell(f"made the hosts {', '.join(lab.hosts)}")
            if servers:
                lab._start_servers()
                tell("started servers on the ports 22, 23, 80 and 53/udp of the real servers")
            if start_director:
                lab._start_director()
                tell("started the director")
        except BaseException:
            # A Ctrl-C too: nothing may stay behind.
            lab.down()
            raise
        return lab

    @classmethod
    def find(cls, name: str = "lab") -> Lab | None:
        """Return the lab of this name, if it runs."""
        directory = _directory(name)
        state = LabState.load(directory / "state.json")
        return cls(name, directory, state) if state is not None and state.running else None

    @classmethod
    def clear(cls, name: str = "lab") -> bool:
        """Remove a lab, whether it runs or has crashed; False if there is nothing of it."""
        directory = _directory(name)
        _refuse_inside()
        state = LabState.load(directory / "state.json")
        if state is None:
            return False
        cls(name, directory, state).down()
        return True

    def down(self) -> None:
        """End all processes of the lab; its namespaces and files go too."""
        self._state.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    # --- use ---

    @property
    def hosts(self) -> list[str]:
        """The names of the hosts that commands can run on."""
        return [host.name for host in HOSTS]

    @property
    def daemons(self) -> dict[str, bool]:
        """What was started with the lab, and whether it still runs."""
        return {name: process.running for name, process in self._state.daemons.items()}

    @property
    def mode(self) -> Literal["root", "user"]:
        """Whether the namespaces are root's, or within an ordinary user's own."""
        return self._state.mode

    @property
    def socket(self) -> Path:
        """The director's control socket."""
        return self.directory / "lvskit.sock"

    def argv(self, host: str, command: Sequence[str], *options: str) -> list[str]:
        """Return the command line that runs `command` on a host; use it with `environment`.

        Raises:
            ConfigError: there is no such host.
        """
        process = self._state.hosts.get(host)
        if process is None:
            raise ConfigError(f"no host {host!r} in the lab; there are: {', '.join(self.hosts)}")
        paths = [f"/proc/{process.pid}/ns/{kind}" for kind in namespaces.KINDS]
        if self._state.mode == "root":
            paths[0] = "-"
        if self._state.datapath != "xdp":
            paths[-1] = "-"
        return [*_PROGRAM, *paths, *options, "--", *command]

    def environment(self, host: str) -> dict[str, str]:
        """Return the environment of commands on a host."""
        added = {MARK: self._state.mark, "LVSKIT_RUNTIME_DIR": str(self.directory)}
        if host == "director":
            added["LVSKIT_SOCKET"] = str(self.socket)
        # `lvsadm` and `lvskit` are found even where the virtual environment is not activated.
        path = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
        return {**os.environ, **added, "PATH": os.pathsep.join(path)}

    def exec(
        self,
        host: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command on a host and wait for it; further arguments as of `subprocess.run`."""
        environment = {**self.environment(host), **(env or {})}
        return subprocess.run(self.argv(host, command), check=check, env=environment, **options)

    def spawn(
        self,
        host: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command on a host; further arguments as of `subprocess.Popen`.

        Its process number is the command's own. It is ended with the lab at the latest.
        """
        environment = {**self.environment(host), **(env or {})}
        return subprocess.Popen(self.argv(host, command), env=environment, **options)

    # --- parts ---

    def _save(self) -> None:
        self._state.save(self.directory / "state.json")

    def _hold(self, *, vips: bool, realservers: bool) -> None:
        command = [sys.executable, "-m", "lvskit.lab.holder"]
        command += ["--user"] if self._state.mode == "user" else []
        command += [] if vips else ["--no-vips"]
        command += [] if realservers else ["--no-realservers"]
        command += ["--xdp"] if self._state.datapath == "xdp" else []
        self._save()
        log = self.directory / "holder.log"
        with open(log, "ab") as errors:
            starter = subprocess.Popen(
                command,
                env=self.environment("segment"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        with starter:
            assert starter.stdout is not None
            number = starter.stdout.readline()
            if number:
                self._state.holder = Process.of(int(number))
                self._save()
            answer = json.loads(starter.stdout.readline() or "{}")
        if "hosts" not in answer:
            raise DatapathError(f"cannot make the lab: {answer.get('error') or _tail(log)}")
        self._state.hosts = {name: Process.of(pid) for name, pid in answer["hosts"].items()}
        self._save()

    def _start_servers(self) -> None:
        serving = [host.name for host in HOSTS if host.serves or host.holds_vip]
        command = [sys.executable, "-m", "lvskit.lab.servers"]
        starting = {}
        for name in serving:
            with open(self._log(name), "ab") as log:
                starting[name] = self.spawn(
                    name, [*command, name], stdout=subprocess.PIPE, stderr=log
                )
        problems = []
        for name, process in starting.items():
            output, _ = process.communicate()
            if process.returncode:
                problems.append(f"{name}: {_tail(self._log(name))}")
            else:
                self._state.daemons[f"servers of {name}"] = Process.of(int(output))
        self._save()
        if problems:
            raise DatapathError(f"cannot start the servers: {'; '.join(problems)}")

    def _log(self, host: str) -> Path:
        return self.directory / f"servers-{host}.log"

    def _start_director(self) -> None:
        log = self.directory / "director.log"
        director = director_command(self.socket, self._state.datapath)
        command = self.argv("director", director, "--log", str(log))
        started = subprocess.run(
            command,
            env=self.environment("director"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        daemon = Process.of(int(started.stdout))
        self._state.daemons["director"] = daemon
        self._save()
        deadline = time.monotonic() + _DIRECTOR_PATIENCE_S
        while not answers(self.socket):
            if not daemon.running or time.monotonic() > deadline:
                state = "does not answer" if daemon.running else "ended at once"
                raise DatapathError(f"the director {state}; its last words:\n{_tail(log)}")
            time.sleep(0.05)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip() if log.exists() else ""


def _directory(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}", name):
        raise ConfigError(
            f"lab name {name!r} is not allowed: letters, digits and hyphens, 32 at most"
        )
    return runtime_directory() / f"lab-{name}"


def _refuse_inside() -> None:
    if MARK in os.environ:
        raise ConfigError("this is a host of a lab: leave it first (`exit`)")
