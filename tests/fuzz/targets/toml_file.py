"""A configuration file: refused with a reason, or read, and written again without loss."""

from __future__ import annotations

from fuzzkit.world import PLUGINS

from lvskit import ConfigError
from lvskit.config import toml


def check(data: bytes) -> None:
    try:
        config = toml.loads(data, plugins=PLUGINS)
    except ConfigError:
        return
    written = toml.dumps(config)
    assert toml.dumps(toml.loads(written, plugins=PLUGINS)) == written
