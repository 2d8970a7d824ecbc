"""Finding, loading and refusing plugins: with distributions that pip really installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint, version

import pytest

import lvskit
from lvskit.cli import plugins as command
from lvskit.plugins import Plugins, Source

BUNDLED = {
    "dh", "fo", "lblc", "lblcr", "lc", "mh", "nq", "ovf", "rr", "sed", "sh", "wlc", "wrr",
}  # fmt: skip
FORWARDERS = {"droute", "local", "masq", "tunnel"}
HERE = version("lvskit")

LOAD = """
import json, sys, lvskit
try:
    plugins = lvskit.load_plugins(strict="strict" in sys.argv)
except lvskit.PluginError as err:
    print(json.dumps({"error": str(err), "plugin": err.plugin, "code": err.code}))
else:
    print(json.dumps({
        "schedulers": sorted(plugins.schedulers),
        "forwarders": sorted(plugins.forwarders),
        "datapaths": sorted(plugins.datapaths),
        "hooks": {str(source): hooks for source, hooks in plugins.hooks.items()},
        "failures": [
            [f.source.entry_point, f.source.distribution, f.source.version, str(f.error),
             f.error.plugin] for f in plugins.failures
        ],
    }))
"""

CHOOSE = """
import json, sys, lvskit
plugins = lvskit.load_plugins()
director = lvskit.Director(plugins, lambda address: None)
key = lvskit.ServiceKey.of(lvskit.TCP, bytes([10, 0, 0, 1]), 80)
try:
    director.add_service(key, lvskit.ServiceSettings(**json.loads(sys.argv[1])))
except lvskit.LvskitError as err:
    attributes = {name: getattr(err, name, None) for name in ("code", "kind", "name")}
    print(json.dumps({"error": str(err), **attributes, "services": len(director.services)}))
else:
    print(json.dumps({"services": len(director.services)}))
"""


@pytest.fixture
def python(installed):
    """Runs a script in an interpreter that has the named distributions installed besides."""

    def run(script, *distributions, arguments=(), **environment):
        paths = os.pathsep.join(str(installed(name)) for name in distributions)
        return subprocess.run(
            [
                sys.executable,
                *(["-m", script] if script == "lvskit" else ["-c", script]),
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def load(python):
    """Loads the plugins, the named distributions' among them, and tells what came of it."""

    def run(*distributions, strict=False, **environment):
        arguments = ["strict"] if strict else []
        done = python(LOAD, *distributions, arguments=arguments, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return run


@pytest.fixture
def choose(python):
    """Adds a service with the settings in an interpreter with the named distributions."""

    def run(*distributions, **settings):
        done = python(CHOOSE, *distributions, arguments=[json.dumps(settings)])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


# --- what loads ---


def test_bundled_plugins_come_by_entry_point() -> None:
    plugins = lvskit.load_plugins(strict=True)
    assert set(plugins.schedulers) == BUNDLED
    assert set(plugins.forwarders) == FORWARDERS
    assert plugins.failures == []
    assert str(plugins.schedulers["wlc"].source) == f"lvskit-sched-wlc {HERE}"


def test_a_strangers_plugin_loads_beside_them(load) -> None:
    found = load("good", strict=True)
    assert found["schedulers"] == sorted(BUNDLED | {"nth"})
    assert found["forwarders"] == sorted({"discard", *FORWARDERS})
    assert "pigeon" in found["datapaths"]
    assert "lvskit_server_changed" in found["hooks"]["lvskit-good 1.0"]
    assert found["stderr"] == ""


# --- what does not, each with its own error ---

RAISING = {
    "duplicate-rr": (
        "scheduler 'rr' is provided by both lvskit-duplicate-rr 2.1 and lvskit-sched-rr "
        f"{HERE}; uninstall one, or disable it with LVSKIT_DISABLE_PLUGINS"
    ),
    "misspelt-hook": "lvskit-misspelt-hook 1.0: unknown hook 'lvskit_register_shedulers'",
    "wrong-argument": "Argument(s) {'servcie'} are declared in the hookimpl but can not be found",
    "unmarked-hook": "implements no hook; was @lvskit.hookimpl forgotten?",
    "wrapper": "lvskit-wrapper 1.0: lvskit_service_added is a wrapper; hooks of lvskit are not",
    "future-api": (
        "lvskit-future-api 7.0: 'later' was written for plugin api 99; this lvskit supports 1"
    ),
    "import-failure": (
        "lvskit-import-failure 0.3: importing 'lvskit_import_failure' failed: "
        """ModuleNotFoundError("No module named 'a_module_that_is_not_installed'")"""
    ),
    "exits": "lvskit-exits 0.1: importing 'lvskit_exits' failed: SystemExit('not today')",
    "wrong-record": (
        "lvskit-wrong-record 1.0: lvskit_register_schedulers returned "
        "<class 'lvskit_wrong_record.First'>; it takes SchedulerSpec records"
    ),
    "raising-hook": (
        "lvskit-raising-hook 1.0: lvskit_register_schedulers raised "
        """ValueError("name 'Not A Name' does not match [a-z][a-z0-9_]*")"""
    ),
}


@pytest.mark.parametrize(("name", "message"), RAISING.items(), ids=RAISING)
def test_a_broken_plugin_is_reported_and_stops_nothing(load, name, message) -> None:
    found = load(name)
    # The later of two distributions, in the order of their names, is the one that is refused.
    refused = "sched-rr" if name == "duplicate-rr" else name
    (failure,) = found["failures"]
    entry_point, distribution, number, error, plugin = failure
    assert message in error
    assert error in found["stderr"]
    assert distribution == plugin == f"lvskit-{refused}"
    assert entry_point == refused.replace("-", "_")
    assert number in error
    others = {"mine", "rr"} | BUNDLED - {"wrr"} if name == "duplicate-rr" else BUNDLED
    assert set(found["schedulers"]) == others, "whole or not at all, and the others unharmed"
    assert found["forwarders"] == sorted(FORWARDERS)
    assert f"lvskit-{refused} {number}" not in found["hooks"]


@pytest.mark.parametrize(("name", "message"), RAISING.items(), ids=RAISING)
def test_strict_loading_raises_the_same_error(load, name, message) -> None:
    found = load("good", name, strict=True)
    assert message in found["error"]
    assert found["plugin"].startswith("lvskit-")
    assert found["code"] == "plugin"


def test_every_broken_plugin_at_once(load) -> None:
    broken = [name for name in RAISING if name != "duplicate-rr"]
    found = load("good", *broken)
    assert [failure[1] for failure in found["failures"]] == sorted(f"lvskit-{n}" for n in broken)
    assert set(found["schedulers"]) == BUNDLED | {"nth"}


def test_one_module_in_two_distributions(load) -> None:
    (failure,) = load("good", "same-module")["failures"]
    assert failure[3] == "lvskit-same-module 1.0: registered already, as lvskit-good:good"


def test_the_broken_ones_are_named_when_a_name_is_missing(choose) -> None:
    found = choose("import-failure", scheduler="wonder")
    assert found["error"].startswith(
        "unknown scheduler 'wonder'; installed: dh (lvskit-sched-hash "
    )
    assert "; failed to load: lvskit-import-failure 0.3: importing" in found["error"]
    assert (found["code"], found["kind"], found["name"]) == (
        "unknown_plugin",
        "scheduler",
        "wonder",
    )
    assert found["services"] == 0


def test_plugins_that_raise_in_their_hooks_change_nothing(python) -> None:
    done = python(CHOOSE, "raising-events", "good", arguments=['{"scheduler": "nth"}'])
    assert json.loads(done.stdout) == {"services": 1}
    assert "plugin lvskit-raising-events:raising_events: lvskit_service_added raised" in done.stderr
    assert "RuntimeError: no service is to my liking" in done.stderr
    assert "lvskit_connection_observer raised" in done.stderr


# --- disabling ---


@pytest.mark.parametrize("name", ["duplicate_rr", "lvskit-duplicate-rr", " duplicate_rr , exits"])
def test_the_environment_disables_by_entry_point_or_distribution(load, name) -> None:
    found = load("duplicate-rr", strict=True, LVSKIT_DISABLE_PLUGINS=name)
    assert set(found["schedulers"]) == BUNDLED


def test_disabling_by_argument_replaces_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("LVSKIT_DISABLE_PLUGINS", "sched_rr")
    assert "rr" not in lvskit.load_plugins().schedulers
    plugins = lvskit.load_plugins(disable=["sched_wlc"])
    assert set(plugins.schedulers) == BUNDLED - {"lc", "nq", "sed", "wlc"}


# --- options ---

BAD_OPTIONS = {
    "an unknown key": (
        {"mth": 1},
        "scheduler 'nth' of TCP 10.0.0.1:80: unknown option 'mth'; options of nth: nth, sticky",
    ),
    "a value of another type": (
        {"nth": "first"},
        "scheduler 'nth' of TCP 10.0.0.1:80: option 'nth': expected int, got str",
    ),
    "a value that the plugin refuses": (
        {"nth": -1},
        "scheduler 'nth' of TCP 10.0.0.1:80: nth -1; allowed: 0 or more",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(choose, options, message) -> None:
    found = choose("good", scheduler="nth", options=options)
    assert found["error"] == message
    assert found["code"] == "invalid"
    assert found["services"] == 0


def test_options_for_a_scheduler_that_takes_none(choose) -> None:
    found = choose(scheduler="rr", options={"fast": True})
    assert found["error"] == (
        "scheduler 'rr' of TCP 10.0.0.1:80: unknown option 'fast'; options of rr: none"
    )


def test_good_options(choose) -> None:
    assert choose("good", scheduler="nth", options={"nth": 3, "sticky": True}) == {"services": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Rr"}, "name 'Rr' does not match"),
        ({"options": 3}, "options of 'x': 3 is no dataclass"),
        ({"flags": ("quick",)}, r"flags of 'x': \('quick',\); allowed: at most 3, out of .*none"),
    ],
)
def test_a_record_checks_itself(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        lvskit.SchedulerSpec(
            **{"name": "x", "summary": "", "factory": lvskit.SchedulerBase, **arguments}
        )


# --- objects in place of distributions ---

SOURCE = Source("mine", "tests", "0")


def plugin_of(**functions):
    """Return a plugin whose hooks are `functions`."""
    module = types.ModuleType("mine")
    for name, function in functions.items():
        setattr(module, name, lvskit.hookimpl(function))
    return module


def test_one_plugin_that_registers_a_name_twice() -> None:
    spec = lvskit.SchedulerSpec(name="x", factory=lvskit.SchedulerBase, summary="x")
    plugins = Plugins()
    with pytest.raises(lvskit.PluginError, match="'x' is provided by both tests 0 and tests 0"):
        plugins.add(plugin_of(lvskit_register_schedulers=lambda: [spec, spec]), SOURCE)
    assert plugins.schedulers == {}


def test_a_refused_plugin_leaves_no_trace() -> None:
    heard = []

    def service_added(service):
        heard.append(service)

    module = plugin_of(
        lvskit_register_schedulers=lambda: [None], lvskit_service_added=service_added
    )
    plugins = Plugins()
    for _ in range(2):
        with pytest.raises(lvskit.PluginError, match="returned None; it takes SchedulerSpec"):
            plugins.add(module, SOURCE)
    plugins.notify("service_added", types.SimpleNamespace(name="x"))
    assert heard == []
    assert plugins.hooks == {}


def test_a_hook_may_have_a_name_of_its_own() -> None:
    spec = lvskit.ForwarderSpec(name="x", factory=lambda server, options: None, summary="x")
    module = types.ModuleType("mine")
    module.mine = lvskit.hookimpl(specname="lvskit_register_forwarders")(lambda: [spec])
    plugins = Plugins()
    plugins.add(module, SOURCE)
    assert plugins.forwarder("x") is spec


def test_unknown_names_without_any_plugin() -> None:
    plugins = Plugins()
    for kind in ("scheduler", "forwarder", "datapath", "decapsulator"):
        with pytest.raises(lvskit.UnknownPlugin) as caught:
            getattr(plugins, kind)("x")
        assert str(caught.value) == f"unknown {kind} 'x'; installed: none"
        assert (caught.value.kind, caught.value.name) == (kind, "x")


def test_an_entry_point_without_a_distribution() -> None:
    point = EntryPoint("loose", "a_module_that_is_not_installed", "lvskit")
    (failure,) = lvskit.load_plugins(entry_points=lambda: [point]).failures
    assert str(failure.error).startswith("unknown distribution ?: importing")


# --- lvskit plugins ---


def test_the_command_lists_what_is_installed(python) -> None:
    done = python("lvskit", "good", arguments=["plugins"])
    assert done.returncode == 0
    lines = [line.split(maxsplit=4) for line in done.stdout.splitlines()]
    assert lines[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "SUMMARY"]
    assert ["scheduler", "nth", "lvskit-good", "1.0", "the nth server"] in lines
    assert ["forwarder", "discard", "lvskit-good", "1.0", "no server at all"] in lines
    assert ["datapath", "pigeon", "lvskit-good", "1.0", "by carrier pigeon"] in lines
    assert ["decapsulator", "straw", "lvskit-good", "1.0", "through a straw"] in lines
    hooks = next(line for line in lines if line[0] == "hooks")
    assert hooks[:4] == ["hooks", "good", "lvskit-good", "1.0"]
    assert hooks[4].startswith("lvskit_connection_observer, lvskit_server_added, ")
    columns = {line.index(" lvskit") for line in done.stdout.splitlines()[1:]}
    assert len(columns) == 1, "aligned"


def test_the_command_tells_what_failed(python) -> None:
    done = python("lvskit", "exits", "import-failure", arguments=["plugins"])
    assert done.returncode == 1
    assert ["scheduler", "rr"] in [line.split()[:2] for line in done.stdout.splitlines()]
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["not loaded", " lvskit-exits 0.1"],
        ["not loaded", " lvskit-import-failure 0.3"],
    ]


def test_the_command_for_programs(python) -> None:
    done = python("lvskit", "exits", arguments=["plugins", "--json"])
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["failures"] == [
        {
            "entry_point": "exits",
            "distribution": "lvskit-exits",
            "version": "0.1",
            "error": RAISING["exits"],
        }
    ]
    assert {
        "kind": "forwarder",
        "name": "tunnel",
        "distribution": "lvskit-fwd-tunnel",
        "version": HERE,
        "summary": lvskit.load_plugins().forwarder("tunnel").summary,
    } in told["plugins"]


def test_the_command_without_any_plugin(monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "load_plugins", Plugins)
    assert command.run(types.SimpleNamespace(json=False)) == 0
    printed = capsys.readouterr()
    assert [line.split()[:3] for line in printed.out.splitlines()[1:]] == [
        ["datapath", "live", "lvskit"],
        ["datapath", "memory", "lvskit"],
    ]
    assert "pip install lvskit-sched-wlc" in printed.err
