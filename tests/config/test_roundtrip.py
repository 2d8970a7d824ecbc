"""A configuration comes back from each of its notations, and from a director, as it was."""

from __future__ import annotations

import msgspec
from hypothesis import given

from lvskit import Director, Route, load_plugins
from lvskit.config import toml
from lvskit.config.check import problems
from lvskit.config.ipvsadm_lines import from_lines, to_lines
from lvskit.config.model import Config
from lvskit.config.settings import in_order
from lvskit.control.api import Control
from lvskit.testing.strategies import configs

PLUGINS = load_plugins(strict=True)
HERE = bytes([192, 168, 1, 175])


def control() -> Control:
    director = Director(PLUGINS, routes=lambda address: Route(HERE, 1500))
    return Control(director, PLUGINS, clock=lambda: 0.0)


@given(configs(with_director=True, with_options=True))
def test_toml(config: Config) -> None:
    assert toml.loads(toml.dumps(config)) == config


@given(configs(with_options=True))
def test_lines(config: Config) -> None:
    assert from_lines(to_lines(config)) == config


@given(configs())
def test_live(config: Config) -> None:
    live = control()
    live.call("apply", {"config": msgspec.to_builtins(config)})
    assert live.config() == config
    assert msgspec.convert(live.call("config"), Config) == config


@given(configs(), configs())
def test_live_replaced(before: Config, after: Config) -> None:
    """What there was before shows in the order of what stays only."""
    live = control()
    live.call("apply", {"config": msgspec.to_builtins(before)})
    live.call("apply", {"config": msgspec.to_builtins(after)})

    def sorted_config(config: Config) -> object:
        services = [
            msgspec.structs.replace(
                service,
                server=sorted(service.server, key=str),
                settings=in_order(service.settings),
            )
            for service in config.service
        ]
        return config.timeouts, config.settings, sorted(map(str, services))

    assert sorted_config(live.config()) == sorted_config(after)


@given(configs())
def test_valid(config: Config) -> None:
    assert problems(config, PLUGINS) == []
