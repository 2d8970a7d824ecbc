"""Every error that lvskit raises on purpose; attributes carry the facts for programs.

A packet never raises: "no server available" and "malformed" are verdicts (`lvskit.types.Drop`).
Only faults of programming, configuration and plugins are exceptions.
"""

from __future__ import annotations


class LvskitError(Exception):
    """Base of all errors raised by lvskit; `code` names the kind for programs."""

    code = "error"


class ConfigError(LvskitError):
    """A value that cannot be accepted: what was given, what is allowed, who supplied it."""

    code = "invalid"


class OutOfRange(ConfigError):
    """A number outside its range (the kernel's ERANGE)."""

    code = "out_of_range"


class NotUnicast(ConfigError):
    """A real server's address that is no unicast address (the kernel's EINVAL)."""

    code = "not_unicast"


class ServiceExists(ConfigError):
    """The virtual service is there already (EEXIST)."""

    code = "service_exists"


class ServiceNotFound(ConfigError):
    """No such virtual service (ESRCH)."""

    code = "service_not_found"


class ServerExists(ConfigError):
    """The real server is in the service already (EEXIST)."""

    code = "server_exists"


class ServerNotFound(ConfigError):
    """No such real server in the service (ENOENT)."""

    code = "server_not_found"


class UnknownPlugin(ConfigError):
    """A scheduler, forwarder or datapath name that no installed plugin provides.

    Attributes:
        kind: "scheduler", "forwarder" or "datapath".
        name: the name that was asked for.
    """

    code = "unknown_plugin"

    def __init__(self, message: str, *, kind: str, name: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name


class PluginError(LvskitError):
    """A plugin that cannot be loaded, or that broke its contract while running.

    Attributes:
        plugin: the distribution or the record's name at fault.
    """

    code = "plugin"

    def __init__(self, message: str, *, plugin: str) -> None:
        super().__init__(message)
        self.plugin = plugin


class DatapathError(LvskitError):
    """The datapath cannot be set up here: what is missing, and how to get it."""

    code = "datapath"


class RpcError(LvskitError):
    """The daemon could not be reached, or answered a call with an error.

    Attributes:
        code: the kind of the error that the daemon reported, as in this module.
    """

    def __init__(self, message: str, code: str = "rpc") -> None:
        super().__init__(message)
        self.code = code
