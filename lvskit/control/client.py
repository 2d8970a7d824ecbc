"""The client of the daemon's control socket: synchronous, standard library only.

It imports neither asyncio nor msgspec, so that a command that makes one call is quick.
"""

from __future__ import annotations

import json
import os
import socket
import time
from types import TracebackType
from typing import Any, Final

from lvskit import errors
from lvskit.control.paths import SOCKET_VARIABLE, default_socket
from lvskit.errors import LvskitError, PluginError, RpcError, UnknownPlugin

TIMEOUT_S: Final = 60.0
"""How long the daemon may take for the next piece of an answer."""
_CHUNK: Final = 1 << 18
_KINDS: Final = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, LvskitError)
    and kind not in (RpcError, PluginError, UnknownPlugin)  # those take more than a message
}


def connect(path: str | None = None, timeout_s: float = TIMEOUT_S) -> Client:
    """Return a connection to the daemon at `path`, by default at `default_socket()`.

    Raises:
        RpcError: it cannot be reached; the message says what to do.

    Example:
        >>> with connect() as client:  # doctest: +SKIP
        ...     client.call("add_service", {"service": {"tcp": "192.168.1.176:23"}})
    """
    path = path or default_socket()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:  # as many as it lets wait are waiting already
                if time.monotonic() > deadline:
                    raise TimeoutError("it takes no more connections") from None
                time.sleep(0.01)
            else:
                return Client(sock, path, timeout_s)
    except OSError as err:
        sock.close()
        raise RpcError(_unreachable(path, err), "unreachable") from err


def _unreachable(path: str, err: OSError) -> str:
    if isinstance(err, FileNotFoundError | ConnectionRefusedError):
        return (
            f"no daemon at {path}: start one with `lvskit run`, or name its socket with "
            f"{SOCKET_VARIABLE}"
        )
    if isinstance(err, PermissionError):
        return (
            f"permission denied at {path}: the daemon answers root, its own user and the members "
            "of the group that its configuration names (director.group); you are uid "
            f"{os.geteuid()}"
        )
    return f"no connection to the daemon at {path}: {err.strerror or err}"


class Client:
    """One connection to the daemon; made by `connect`. Not for use by two threads at a time."""

    def __init__(self, sock: socket.socket, path: str, timeout_s: float) -> None:
        self._sock = sock
        self._path = path
        self._timeout_s = timeout_s
        self._number = 0
        self._received = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def call(self, method: str, params: object = None) -> Any:
        """Call `method` of the daemon and return its result.

        Raises:
            LvskitError: the error that the daemon answered, of the class that its code names; of
                `RpcError` where there is no such class, or no answer.
        """
        self._number += 1
        request: dict[str, object] = {"jsonrpc": "2.0", "id": self._number, "method": method}
        if params is not None:
            request["params"] = params
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has closed: what it said before is the reason
        except TimeoutError as err:
            raise self._silent() from err
        while True:
            answer = self._answer()
            if answer.get("id") == self._number or (answer.get("id") is None and "error" in answer):
                break
        if "error" in answer:
            raise _error(answer["error"])
        return answer.get("result")

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RpcError(
                f"what listens at {self._path} is no lvskit daemon: it said {line!r:.80}"
            )
        return answer

    def _line(self) -> bytes:
        received, seen = self._received, 0
        while (end := received.find(b"\n", seen)) < 0:
            seen = len(received)
            try:
                chunk = self._sock.recv(_CHUNK)
            except TimeoutError as err:
                raise self._silent() from err
            except OSError:
                chunk = b""
            if not chunk:
                raise RpcError(
                    f"the daemon at {self._path} closed the connection without an answer",
                    "unreachable",
                )
            received += chunk
        line = bytes(received[:end])
        del received[: end + 1]
        return line

    def _silent(self) -> RpcError:
        text = f"the daemon at {self._path} has not answered for {self._timeout_s:g} s"
        return RpcError(text, "unreachable")


def _error(error: dict[str, Any]) -> LvskitError:
    """Return the exception that a JSON-RPC error object stands for."""
    data = error.get("data")
    facts: dict[str, Any] = data if isinstance(data, dict) else {}
    message, code = str(error.get("message", "")), str(facts.get("code", "rpc"))
    if code == UnknownPlugin.code and {"kind", "name"} <= facts.keys():
        return UnknownPlugin(message, kind=str(facts["kind"]), name=str(facts["name"]))
    if code == PluginError.code and "plugin" in facts:
        return PluginError(message, plugin=str(facts["plugin"]))
    if code in _KINDS:
        return _KINDS[code](message)
    return RpcError(message, code)
