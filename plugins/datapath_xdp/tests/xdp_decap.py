"""Real servers whose tunnels end in an XDP program, on the network of `xdp_network`."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from xdp_network import _BIN, VIP, VIP6, Host, Network

BPFFS = "/sys/fs/bpf"


class Mounts:
    """A mount namespace with a BPF file system of its own, which goes with it."""

    def __init__(self) -> None:
        holder = subprocess.Popen(["unshare", "-m", "sleep", "60"])
        own = os.stat("/proc/self/ns/mnt").st_ino
        while os.stat(f"/proc/{holder.pid}/ns/mnt").st_ino == own:
            time.sleep(0.005)
        self._handle = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY)
        holder.kill()
        holder.wait()
        self.entering = f"nsenter --mount=/proc/{os.getpid()}/fd/{self._handle}"
        self.run(f"mount -t bpf bpf {BPFFS}")

    def run(self, command: str) -> str:
        """Run a command there; return what it says."""
        done = subprocess.run(
            [*self.entering.split(), "sh", "-ec", command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    def pins(self) -> list[str]:
        """Return what is pinned."""
        found = self.run(f"find {BPFFS} -mindepth 2 -type f").split()
        return sorted(str(Path(path).relative_to(BPFFS)) for path in found)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)


class DecapNetwork(Network):
    """The same network; its real servers take the tunnel off by the program.

    Args:
        place: for files.
        options: more words for `lvskit realserver up`.
    """

    def __init__(self, place: Path, *options: str) -> None:
        self.mounts = Mounts()
        self.options = " ".join(["--via", "xdp", *options])
        super().__init__(place)

    def _serve(self, host: Host) -> None:
        self.realserver(host, f"up {self.options} --vip {VIP} --vip {VIP6}")
        self._answer(host)

    def _realserver(self, host: Host) -> str:
        runtime = f"LVSKIT_RUNTIME_DIR={self.place / host.name}"
        return f"{runtime} {self.mounts.entering} {_BIN}/lvskit realserver"

    def realserver(self, host: Host, words: str, *, refused: bool = False) -> str:
        """Run `lvskit realserver` on a host; return what it says."""
        command = f"{self._realserver(host)} {words} 2>&1"
        return host.run(f"! {command}" if refused else command)

    def close(self) -> None:
        super().close()
        self.mounts.close()
