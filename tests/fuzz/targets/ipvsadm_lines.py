"""Lines of ipvsadm, as a configuration and as commands: refused with a reason, or done."""

from __future__ import annotations

import io

from fuzzkit.world import PLUGINS, route

from lvskit import ConfigError, Director
from lvskit.cli import lvsadm
from lvskit.config import toml
from lvskit.config.ipvsadm_lines import from_lines, split_line, to_lines
from lvskit.config.names import Names
from lvskit.control.api import Control

NAMES = Names({"192.0.2.14": "rs14.example rs14"})  # nobody is asked
_LISTINGS = (["-L"], ["-S", "-n"], ["-L", "-n", "--stats"], ["-L", "-c"], ["-L", "--thresholds"])


def check(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")  # as standard input does it
    _check_configuration(text.split("\n"))
    _check_commands(text)


def _check_configuration(lines: list[str]) -> None:
    try:
        config = from_lines(lines, NAMES)
    except ConfigError:
        return
    again = to_lines(config)
    assert to_lines(from_lines(again, NAMES)) == again
    try:
        written = toml.dumps(config)
        again = toml.loads(written)
    except ConfigError:  # what only the director knows to be wrong
        return
    assert toml.dumps(again) == written


def _check_commands(text: str) -> None:
    control = Control(Director(PLUGINS, route, now=1000.0), PLUGINS, lambda: 1000.0)
    for argv, stdin in [
        (["-R"], text),
        *((split_line(line)[:64], "") for line in text.split("\n")[:8]),
        *((argv, "") for argv in _LISTINGS),
    ]:
        status = lvsadm.run(
            argv,
            client=lambda: control,
            stdin=io.StringIO(stdin),
            stdout=io.StringIO(),
            stderr=io.StringIO(),
            names=NAMES,
        )
        assert 0 <= status <= 255
