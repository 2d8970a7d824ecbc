"""lvskit: a pluggable Linux Virtual Server director in Python."""

from __future__ import annotations

from importlib.metadata import version as _version

from lvskit.checksums import checksum
from lvskit.core.defence import Defence
from lvskit.core.director import Director
from lvskit.core.timers import Wheel
from lvskit.errors import ConfigError, DatapathError, LvskitError, PluginError, UnknownPlugin
from lvskit.hookspecs import hookimpl
from lvskit.interfaces import (
    Connection,
    ConnectionObserver,
    Datapath,
    Decapsulator,
    Forwarder,
    RealServer,
    Ring,
    Scheduler,
    SchedulerBase,
    TunnelForwarder,
    TwoWayForwarder,
    VirtualService,
)
from lvskit.plugins import load_plugins
from lvskit.records import DatapathSpec, DecapsulatorSpec, ForwarderSpec, SchedulerSpec, Traits
from lvskit.refusals import Refusal, refuse
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings
from lvskit.types import (
    DELIVER,
    NOT_OURS,
    SCTP,
    TCP,
    UDP,
    Counters,
    Deliver,
    Drop,
    Flow,
    NotOurs,
    Reason,
    Reply,
    Route,
    Transmit,
    Verdict,
    must_fit,
)

__version__ = _version("lvskit")

__all__ = [
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
