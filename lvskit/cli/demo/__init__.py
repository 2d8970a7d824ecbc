"""`lvskit demo`: a whole LVS-TUN cluster, walked through as the LVS tutorial does it."""

from __future__ import annotations

import argparse
import sys

from lvskit.cli.demo.script import Script
from lvskit.cli.demo.stage import Stage

_EPILOG = """\
With root, or where an ordinary user may make user namespaces, the hosts are network namespaces
and the packets go through the kernel; otherwise everything is simulated in this process, and the
demo says so. Everything that it makes is removed when it ends, also after Ctrl-C.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lvskit demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="build a cluster, walk through the LVS tutorial on it, and show every step",
        description="Build a client, a director and three real servers, and walk through the "
        "LVS tutorial on them: commands, their output, who answered, a packet taken apart.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stage",
        choices=("auto", "lab", "memory"),
        default="auto",
        help="network namespaces (lab), a simulation (memory), or the best there is (default)",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Play the demo; return 0 when every step went as it should."""
    stage = _stage(arguments.stage)
    script = Script(stage, sys.stdout)
    try:
        script.play()
    finally:
        stage.close()
    return 1 if script.failures else 0


def _stage(wanted: str) -> Stage:
    from lvskit.cli.demo.memory import MemoryStage
    from lvskit.cli.demo.namespaces import LabStage
    from lvskit.lab import possible

    reason = possible() if wanted != "memory" else "it was asked for"
    if wanted == "lab" or reason is None:
        return LabStage()
    print(f"No network namespaces here ({reason}): the network is simulated.\n", flush=True)
    return MemoryStage()
