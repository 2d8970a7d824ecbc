"""The distribution registers its schedulers under ipvsadm's names, with the kernel's flag bits."""

from __future__ import annotations

import lvskit_sched_hash
import pytest

from lvskit import ConfigError, Director, Route, ServiceKey, ServiceSettings, load_plugins

KEY = ServiceKey.of(6, bytes([192, 168, 1, 176]), 80)


def director() -> Director:
    return Director(load_plugins(), lambda address: Route(bytes([192, 168, 1, 175]), 1500))


def test_records() -> None:
    specs = {spec.name: spec for spec in lvskit_sched_hash.lvskit_register_schedulers()}
    assert {name: spec.flags for name, spec in specs.items()} == {
        "sh": ("fallback", "port"),
        "dh": (),
        "mh": ("fallback", "port"),
    }
    assert specs["sh"].option_names == ("fallback", "port")
    assert specs["dh"].option_names == ()
    assert specs["mh"].option_names == ("fallback", "port", "key", "slots")
    assert all(spec.summary for spec in specs.values())
    assert all(spec.traits.flow_consistent and not spec.traits.total for spec in specs.values())
    assert [name for name, spec in specs.items() if spec.traits.weighted] == ["mh"]
    installed = load_plugins()
    for name, spec in specs.items():
        assert installed.scheduler(name).factory is spec.factory


@pytest.mark.parametrize("name", ["sh", "mh"])
@pytest.mark.parametrize("number", [1, 2])
def test_flag_bits_are_the_kernels(name: str, number: int) -> None:
    settings = ServiceSettings(scheduler=name, flags=frozenset({number}))
    service = director().add_service(KEY, settings)
    options = service.scheduler._options
    assert (options.fallback, options.port) == (number == 1, number == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 4096}, "slots 4096; allowed: 251, "),
        ({"key": "short"}, "key of 5 characters; allowed: 16 or more"),
        ({"seed": 1}, "unknown option 'seed'; options of mh: fallback, port, key, slots"),
    ],
)
def test_options_that_cannot_be_are_errors_of_the_command(
    options: dict[str, object], message: str
) -> None:
    brain = director()
    with pytest.raises(ConfigError) as caught:
        brain.add_service(KEY, ServiceSettings(scheduler="mh", options=options))
    assert str(caught.value).startswith(f"scheduler 'mh' of TCP 192.168.1.176:80: {message}")
    assert len(brain.services) == 0
