"""The public names, pinned: adding one is a decision, removing one breaks plugins."""

from __future__ import annotations

from importlib.metadata import version

import lvskit

PUBLIC = [
    "DELIVER",
    "NOT_OURS",
    "SCTP",
    "TCP",
    "UDP",
    "ConfigError",
    "Connection",
    "ConnectionObserver",
    "Counters",
    "Datapath",
    "DatapathError",
    "DatapathSpec",
    "Decapsulator",
    "DecapsulatorSpec",
    "Defence",
    "Deliver",
    "Director",
    "Drop",
    "Flow",
    "Forwarder",
    "ForwarderSpec",
    "LvskitError",
    "NotOurs",
    "PluginError",
    "RealServer",
    "Reason",
    "Refusal",
    "Reply",
    "Ring",
    "Route",
    "Scheduler",
    "SchedulerBase",
    "SchedulerSpec",
    "ServerSettings",
    "ServiceKey",
    "ServiceSettings",
    "Traits",
    "Transmit",
    "TunnelForwarder",
    "TwoWayForwarder",
    "UnknownPlugin",
    "Verdict",
    "VirtualService",
    "Wheel",
    "__version__",
    "checksum",
    "hookimpl",
    "load_plugins",
    "must_fit",
    "refuse",
]


def test_the_public_names() -> None:
    assert lvskit.__all__ == PUBLIC


def test_every_public_name_is_there_and_documented() -> None:
    for name in PUBLIC:
        value = getattr(lvskit, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name


def test_the_version_is_the_distributions() -> None:
    assert lvskit.__version__ == version("lvskit")
