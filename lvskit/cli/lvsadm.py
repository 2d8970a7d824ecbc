"""``lvsadm``: ipvsadm's own command line, spoken to a lvskit director."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from lvskit.cli.ipvsadm.run import Client, run
from lvskit.config.names import Names

__all__ = ["Client", "Names", "main", "run"]


def main() -> int:
    """Run the command line of this process; return the exit status."""

    def connect() -> Client:
        from lvskit.control.client import connect as dial

        return dial()

    called = Path(sys.argv[0]).name
    prog = "lvsadm" if called.endswith(".py") else called
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Rules are bytes to ipvsadm, and only a line feed ends a line.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")
    try:
        status = run(
            sys.argv[1:],
            client=connect,
            stdin=sys.stdin,
            stdout=sys.stdout,
            stderr=sys.stderr,
            prog=prog,
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `lvsadm -L | head`: nobody wants the rest, which is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
