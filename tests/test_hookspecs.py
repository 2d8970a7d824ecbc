"""Every hook: documented with its arguments, with an example that runs, and really called."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from pathlib import Path

import pytest

import lvskit
from lvskit import hookspecs
from lvskit.plugins import Plugins, Source

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "hooks.md").read_text()
HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("lvskit_") and inspect.isfunction(function)
}
VIP, CLIENT, HERE = bytes([10, 0, 0, 1]), bytes([10, 9, 9, 9]), bytes([10, 0, 0, 254])
KEY = lvskit.ServiceKey.of(lvskit.TCP, VIP, 80)
SYN, ACK, FIN = 0x02, 0x10, 0x11


def section(hook: str) -> str:
    """Return what the page says of `hook`."""
    return re.split(r"^##+ ", PAGE.split(f"### `{hook}(", 1)[1], flags=re.MULTILINE)[0]


def plugin_of(code: str) -> types.ModuleType:
    """Return the plugin that `code` is the module of."""
    module = types.ModuleType("example")
    exec(code, module.__dict__)
    return module


def director_with(*modules: object) -> lvskit.Director:
    """Return a director with these plugins and the bundled ones."""
    plugins = lvskit.load_plugins(strict=True)
    for number, module in enumerate(modules):
        plugins.add(module, Source(f"example{number}", "examples", "1"))
    return lvskit.Director(plugins, lambda address: lvskit.Route(HERE, 1500))


def segment(flags: int, cport: int = 1024) -> bytes:
    """Return a client's TCP segment to the service."""
    ports = cport.to_bytes(2, "big") + KEY.port.to_bytes(2, "big")
    tcp = ports + bytes(8) + bytes([0x50, flags]) + bytes(6)
    head = bytes([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, lvskit.TCP, 0, 0]) + CLIENT + VIP
    return head + tcp


def test_the_page_lists_every_hook_with_its_arguments() -> None:
    told = dict(re.findall(r"^### `(\w+)\((.*?)\)`$", PAGE, flags=re.MULTILINE))
    real = {name: ", ".join(inspect.signature(f).parameters) for name, f in HOOKS.items()}
    assert told == real


@pytest.mark.parametrize("hook", HOOKS)
def test_signatures_are_typed_and_without_defaults(hook) -> None:
    signature = inspect.signature(HOOKS[hook])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.default is inspect.Parameter.empty
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("hook", HOOKS)
def test_docstrings_have_an_example_and_a_version(hook) -> None:
    text = inspect.getdoc(HOOKS[hook])
    assert ".. versionadded::" in text
    example = text.split("Example::\n", 1)[1].split(".. versionadded::")[0]
    names = dict.fromkeys(("First", "Tunnel", "Mine"), lvskit.SchedulerBase)
    module = types.ModuleType("example")
    module.__dict__.update(lvskit=lvskit, **names)
    exec(textwrap.dedent(example), module.__dict__)
    plugins = Plugins()
    plugins.add(module, Source("example", "examples", "1"))
    assert plugins.hooks == {Source("example", "examples", "1"): [hook]}


@pytest.mark.parametrize("hook", HOOKS)
def test_the_pages_example_is_a_plugin(hook) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", section(hook), flags=re.DOTALL)
    plugins = Plugins()
    plugins.add(plugin_of(code), Source("example", "examples", "1"))
    assert [hook] in plugins.hooks.values()


# --- each is called ---


def example(hook: str) -> types.ModuleType:
    """Return the page's example for `hook`, loaded."""
    (code,) = re.findall(r"```python\n(.*?)```", section(hook), flags=re.DOTALL)
    return plugin_of(code)


def test_register_schedulers_is_called() -> None:
    director = director_with(example("lvskit_register_schedulers"))
    director.add_service(KEY, lvskit.ServiceSettings(scheduler="first"))
    for last in (1, 2):
        settings = lvskit.ServerSettings(weight=last - 1)
        director.add_server(KEY, bytes([10, 0, 1, last]), 80, settings)
    verdict = director.receive(segment(SYN), 0.0)
    assert verdict.packet[16:20] == bytes([10, 0, 1, 2])


def test_register_forwarders_is_called() -> None:
    director = director_with(example("lvskit_register_forwarders"))
    director.add_service(KEY, lvskit.ServiceSettings())
    director.add_server(KEY, HERE, 80, lvskit.ServerSettings(method="blackhole"))
    verdict = director.receive(segment(SYN), 0.0)
    assert verdict == lvskit.Drop(lvskit.Reason.SERVER_UNREACHABLE)


def test_register_datapaths_is_called() -> None:
    module = example("lvskit_register_datapaths")
    plugins = Plugins()
    plugins.add(module, Source("example", "examples", "1"))
    assert plugins.datapath("pigeons").factory is module.Pigeons


def test_register_decapsulators_is_called() -> None:
    module = example("lvskit_register_decapsulators")
    plugins = Plugins()
    plugins.add(module, Source("example", "examples", "1"))
    assert plugins.decapsulator("card").factory is module.Card


def test_the_connection_observer_hears_of_every_connection(capsys) -> None:
    heard = []

    class Watch:
        def opened(self, connection):
            heard.append(("opened", connection.flow.cport, connection.server.name))

        def state_changed(self, connection, old, new):
            heard.append((old, new))

        def closed(self, connection, reason):
            heard.append(("closed", reason))

    class Watcher:
        asked = 0

        @lvskit.hookimpl
        def lvskit_connection_observer(self, service):
            self.asked += 1
            return Watch() if service.port == KEY.port else None

    watcher = Watcher()
    director = director_with(watcher, example("lvskit_connection_observer"))
    director.add_service(KEY, lvskit.ServiceSettings())
    director.add_server(KEY, bytes([10, 0, 1, 1]), 80, lvskit.ServerSettings())
    director.receive(segment(SYN), 0.0)
    director.receive(segment(ACK), 1.0)
    director.receive(segment(FIN), 2.0)
    director.expire(1000.0)
    assert heard == [
        ("opened", 1024, "10.0.1.1:80"),
        ("SYN_RECV", "ESTABLISHED"),
        ("ESTABLISHED", "FIN_WAIT"),
        ("closed", "expired"),
    ]
    assert watcher.asked == 1, "once per service, never per connection"
    assert capsys.readouterr().out == "to 10.0.1.1:80\nexpired\n", "one may lack a method"

    other = lvskit.ServiceKey.of(lvskit.TCP, VIP, 81)
    assert director.add_service(other, lvskit.ServiceSettings()).opened != ()
    assert watcher.asked == 2


NOTIFICATIONS = [name for name in HOOKS if "register" not in name and "observer" not in name]


def test_notifications_are_called_after_each_change(capsys) -> None:
    director = director_with(*map(example, NOTIFICATIONS))
    server = bytes([10, 0, 1, 1])

    def heard() -> list[str]:
        return capsys.readouterr().out.splitlines()

    director.add_service(KEY, lvskit.ServiceSettings())
    assert heard() == ["serving TCP 10.0.0.1:80"]
    director.add_server(KEY, server, 80, lvskit.ServerSettings())
    assert heard() == ["10.0.1.1:80 joins TCP 10.0.0.1:80"]
    director.edit_server(KEY, server, 80, lvskit.ServerSettings(weight=7))
    assert heard() == ["10.0.1.1:80 now has weight 7"]
    director.edit_service(KEY, lvskit.ServiceSettings(scheduler="rr"))
    assert heard() == ["edited TCP 10.0.0.1:80"]
    director.remove_server(KEY, server, 80, 0.0)
    assert heard() == ["10.0.1.1:80 leaves TCP 10.0.0.1:80"]
    director.add_server(KEY, server, 80, lvskit.ServerSettings())
    heard()
    director.remove_service(KEY, 0.0)
    assert heard() == ["10.0.1.1:80 leaves TCP 10.0.0.1:80", "gone TCP 10.0.0.1:80"]


def test_commands_that_fail_notify_nobody(capsys) -> None:
    director = director_with(*map(example, NOTIFICATIONS))
    with pytest.raises(lvskit.UnknownPlugin):
        director.add_service(KEY, lvskit.ServiceSettings(scheduler="wonder"))
    director.add_service(KEY, lvskit.ServiceSettings())
    with pytest.raises(lvskit.ConfigError):
        director.add_server(KEY, bytes(4), 80, lvskit.ServerSettings())
    with pytest.raises(lvskit.ConfigError):
        director.edit_service(KEY, lvskit.ServiceSettings(options={"x": 1}))
    assert capsys.readouterr().out == "serving TCP 10.0.0.1:80\n"
