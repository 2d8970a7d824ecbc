"""Where `up` leaves word for `down`: one small file for each network namespace.

It lies under /run, which does not outlive a reboot, and neither does anything that it tells of.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from lvskit.errors import ConfigError
from lvskit.hostsetup.attached import Attached
from lvskit.hostsetup.changes import Address, Rule, Sysctl
from lvskit.hostsetup.routes import Routes
from lvskit.hostsetup.tunnel import Decapsulator, KernelTunnel

AnyStep = Sysctl | KernelTunnel | Decapsulator | Attached | Routes | Rule | Address
_SO_NETNS_COOKIE: Final = 71  # Linux 5.14


def runtime_directory() -> Path:
    """Return the directory for what lives as long as the machine runs; made if need be.

    /run/lvskit for root, $XDG_RUNTIME_DIR/lvskit for others, a private directory under /tmp
    where there is neither; $LVSKIT_RUNTIME_DIR instead of any of them.

    Raises:
        ConfigError: the directory belongs to somebody else.
    """
    given = os.environ.get("LVSKIT_RUNTIME_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        directory = Path(given)
    elif os.geteuid() == 0 and os.access("/run", os.W_OK):
        directory = Path("/run/lvskit")
    elif session and os.access(session, os.W_OK):
        directory = Path(session, "lvskit")
    else:
        directory = Path(tempfile.gettempdir(), f"lvskit-{os.geteuid()}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Under /tmp anybody may have made it first, with a state file of his own choice in it.
    if directory.stat().st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} belongs to another user; name one of your own in LVSKIT_RUNTIME_DIR"
        )
    return directory


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(content)
    fresh.replace(path)


def _namespace() -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            return str(int.from_bytes(cookie, "little"))
    except OSError:
        # Before Linux 5.14; the number may be given again when the namespace is gone.
        return str(os.stat("/proc/self/ns/net").st_ino)


class State(msgspec.Struct, kw_only=True):
    """What `lvskit realserver up` has done in this network namespace.

    Attributes:
        vips: the VIPs, as text.
        directors: who may send through the tunnel; empty: anybody.
        steps: what was done, in order.
    """

    vips: list[str] = []
    directors: list[str] = []
    steps: list[AnyStep] = []

    @staticmethod
    def path() -> Path:
        """Return the file for the network namespace of this process."""
        return runtime_directory() / f"realserver-{_namespace()}.json"

    @classmethod
    def load(cls, path: Path) -> State:
        """Return what the file says; nothing done, if there is none.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return cls()
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise ConfigError(
                f"{path} is damaged ({err}); remove it, and check by hand what is left: ip addr,"
                " ip rule, sysctl net.ipv4.conf"
            ) from err

    def save(self, path: Path) -> None:
        """Write the file, or remove it if nothing is done any more."""
        if self.steps:
            write_private(path, msgspec.json.encode(self))
        else:
            path.unlink(missing_ok=True)
