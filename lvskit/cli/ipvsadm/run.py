"""Carries out the lines of ipvsadm on a director, and says what ipvsadm would say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

from lvskit.cli.ipvsadm import texts
from lvskit.config.ipvsadm.grammar import parse, try_help
from lvskit.config.ipvsadm.request import Request, Skip, Stop
from lvskit.config.names import Names
from lvskit.errors import LvskitError

FAILED = 255
"""Exit status of what the kernel, or here the director, refuses."""
_UNREACHABLE = frozenset({"rpc", "unreachable"})
_SERVICE_MESSAGES = {
    "service_exists": "Service already exists",
    "service_not_found": "No such service",
    "unknown_plugin": "Scheduler or persistence engine not found",
    "out_of_range": "Numerical result out of range",
}
_SERVER_MESSAGES = {
    "service_not_found": "Service not defined",
    "server_exists": "Destination already exists",
    "server_not_found": "No such destination",
    "out_of_range": "Numerical result out of range",
    "not_unicast": "Invalid operation.  Possibly wrong module version, address not unicast, ...",
}
_KERNEL_ENGINES = frozenset({"sip"})
"""Persistence engines that the kernel has and lvskit has not."""


class Client(Protocol):
    """Whoever carries out the commands of the control socket; see `lvskit.control.api`."""

    def call(self, method: str, params: object = None) -> Any:
        """Carry out `method`; return its result as plain values, or raise `LvskitError`."""


def run(
    argv: Sequence[str],
    *,
    client: Callable[[], Client],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    prog: str = "lvsadm",
    names: Names | None = None,
) -> int:
    """Carry out a command line of ipvsadm; return the exit status.

    Args:
        argv: the words after the program's name; none = list everything.
        client: makes the connection to the director; called when it is first needed.
        stdin: where ``-R`` reads.
        stdout: where output goes.
        stderr: where complaints go.
        prog: the program's name in texts.
        names: finds hosts and ports; by default the system's.
    """
    session = Session(client, stdout, prog, names or Names())
    try:
        return _Lines(session, stdin, stderr).carry_out(list(argv) or ["-L"])
    except Stop as stop:
        stdout.write(stop.out)
        if stop.err:
            stderr.write(f"{stop.err}\n")
        return stop.status


class Session:
    """What the lines of one run share.

    Attributes:
        prog: the program's name in texts.
        names: finds hosts and ports.
    """

    def __init__(
        self, client: Callable[[], Client], stdout: TextIO, prog: str, names: Names
    ) -> None:
        self.prog = prog
        self.names = names
        self._connect = client
        self._client: Client | None = None
        self._stdout = stdout

    def print(self, *lines: str) -> None:
        """Print `lines`."""
        self._stdout.writelines(f"{line}\n" for line in lines)

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Call the director.

        Raises:
            Stop: it cannot be reached.
            LvskitError: it refuses.
        """
        try:
            if self._client is None:
                self._client = self._connect()
            return self._client.call(method, params)
        except LvskitError as err:
            if err.code in _UNREACHABLE:
                raise Stop(2, f"{self.prog}: {err}") from err
            raise

    def refuse(self, request: Request) -> Skip:
        """Return the end of a line that asks for what lvskit has not got."""
        from lvskit.config.ipvsadm_lines import unsupported

        return Skip(f"lvskit: {unsupported(request)}")


class _Lines:
    """Carries out one line, or with ``-R`` many."""

    def __init__(self, session: Session, stdin: TextIO, stderr: TextIO) -> None:
        self._session = session
        self._stdin = stdin
        self._stderr = stderr
        self._restoring = False
        self._commands: dict[str, Callable[[Request], None]] = {
            "add-service": self._add_service,
            "edit-service": self._edit_service,
            "delete-service": lambda r: self._on_service("delete_service", r, r.name_params()),
            "flush": lambda r: session.call("clear"),
            "list": self._list,
            "zero": self._zero,
            "add-server": lambda r: self._on_server("add_server", r),
            "edit-server": lambda r: self._on_server("edit_server", r),
            "delete-server": lambda r: self._on_server("delete_server", r),
            "set": self._set,
            "start-daemon": self._start_daemon,
            "stop-daemon": self._stop_daemon,
            "save": self._save,
            "help": self._help,
            "version": self._version,
        }

    def carry_out(self, words: list[str]) -> int:
        """Carry out one line; return its status."""
        try:
            request = parse(words, self._session.names, self._session.prog)
            if request.command == "restore":
                return self._restore()
            self._commands[request.command](request)
        except (Skip, LvskitError) as err:
            text = f"{err}" if isinstance(err, Skip) else f"{self._session.prog}: {err}"
            self._stderr.write(f"{text}\n")
            return FAILED
        return 0

    def _restore(self) -> int:
        """Carry out the lines of standard input; the status is the last one's."""
        from lvskit.config.ipvsadm_lines import split_line

        if self._restoring:
            raise try_help(self._session.prog)
        self._restoring = True
        status = 0
        for line in self._stdin:
            words = split_line(line, self._session.prog)
            if words:
                status = self.carry_out(words)
        return status

    # --- services and servers ---

    def _add_service(self, request: Request) -> None:
        if request.engine:
            self._check_engine(request, there=True, complaint="Service already exists")
        self._on_service("add_service", request, request.service_params())

    def _edit_service(self, request: Request) -> None:
        if request.engine:
            self._check_engine(request, there=False, complaint="No such service")
        self._on_service("edit_service", request, request.service_params())

    def _check_engine(self, request: Request, *, there: bool, complaint: str) -> None:
        """Refuse a persistence engine, in the kernel's order: service, scheduler, engine."""
        if self._is_there(request) == there:
            raise Skip(complaint)
        plugins = self._session.call("plugins")
        schedulers = {row["name"] for row in plugins if row["kind"] == "scheduler"}
        if request.scheduler in schedulers and request.engine in _KERNEL_ENGINES:
            raise self._session.refuse(request)
        raise Skip(_SERVICE_MESSAGES["unknown_plugin"])

    def _is_there(self, request: Request) -> bool:
        from lvskit.cli.ipvsadm.show import find

        return find(self._session, request) is not None

    def _on_service(self, method: str, request: Request, service: dict[str, Any]) -> None:
        try:
            self._session.call(method, {"service": service})
        except LvskitError as err:
            raise self._failed(err, _SERVICE_MESSAGES) from err

    def _on_server(self, method: str, request: Request) -> None:
        server = request.server_params()
        if method == "delete_server":
            server = {"address": server["address"]}
        try:
            self._session.call(method, {"service": request.name_params(), "server": server})
        except LvskitError as err:
            if err.code == "unknown_plugin":
                raise Skip(f"lvskit: {err}{_hint(request)}") from err
            raise self._failed(err, _SERVER_MESSAGES) from err

    def _failed(self, err: LvskitError, messages: dict[str, str]) -> Skip:
        return Skip(messages.get(err.code) or f"{self._session.prog}: {err}")

    def _start_daemon(self, request: Request) -> None:
        raise self._session.refuse(request)

    def _stop_daemon(self, request: Request) -> None:
        raise Skip("No daemon is running")  # none can have been started

    def _zero(self, request: Request) -> None:
        if "service-address" in request.given:
            self._on_service("zero", request, request.name_params())
        else:
            self._session.call("zero")

    def _set(self, request: Request) -> None:
        if request.changes:
            self._set_settings(request)
            return
        tcp, tcp_fin, udp = request.numbers
        timeouts = {"tcp": tcp, "tcp_fin": tcp_fin, "udp": udp}
        self._session.call("set_timeouts", {"timeouts": timeouts})

    def _set_settings(self, request: Request) -> None:
        params: dict[str, Any] = {"settings": request.changes}
        if "service-address" in request.given:
            params["service"] = request.name_params()
        try:
            self._session.call("set_settings", params)
        except LvskitError as err:
            if err.code == "service_not_found":
                raise Skip(_SERVICE_MESSAGES[err.code]) from err
            raise

    # --- output; what it needs is imported when it is needed, for the sake of the other commands

    def _list(self, request: Request) -> None:
        from lvskit.cli.ipvsadm.show import show

        show(self._session, request)

    def _save(self, request: Request) -> None:
        from lvskit.cli.ipvsadm.show import save

        save(self._session, request)

    def _help(self, request: Request) -> None:
        raise Stop(0, out=texts.usage(self._session.prog))

    def _version(self, request: Request) -> None:
        raise Stop(0, out=texts.version(self._session.prog))


def _hint(request: Request) -> str:
    """Return what helps whoever relied on the default method."""
    if "forwarding-method" in request.given:
        return ""
    return "; without -g, -i or -m the method is -g (gatewaying): give -i for the tunnel"
