"""JSON-RPC 2.0 over a UNIX socket: one request, batch or answer per line.

A client is authorised by the kernel's word for its user (`lvskit.control.listener`), and can
harm no other: lines and answers in flight are bounded, every call lets the others have a turn,
and one that does not take its answers is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from lvskit.control.listener import Listener
from lvskit.errors import LvskitError, RpcError

MOST_BYTES: Final = 16 << 20
"""The longest line that is read."""
MOST_CLIENTS: Final = 512
_BUFFERED: Final = 256 << 10
_STUCK_S: Final = 10.0

# https://www.jsonrpc.org/specification, section 5.1; from -32000 down they are the server's own.
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
COMMAND_FAILED: Final = -32000
NOT_ALLOWED: Final = -32001

_log = logging.getLogger(__name__)
Call = Callable[[str, object], Any]


class RpcServer:
    """Answers the clients of one listening socket.

    Args:
        call: carries out a method with its parameters, as `Control.call` does.
        listener: the socket, which stays its owner's to close.
        most_bytes: the longest line that is read.
        stuck_s: how long a client may take nothing of its answer before it is cut off.
    """

    def __init__(
        self,
        call: Call,
        listener: Listener,
        *,
        most_bytes: int = MOST_BYTES,
        stuck_s: float = _STUCK_S,
    ) -> None:
        self._call = call
        self._listener = listener
        self._most_bytes = most_bytes
        self._stuck_s = stuck_s
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer; those who have connected already are first."""
        # The server closes the socket that it is given; the listener's own goes on living, so
        # that the path stays taken until the owner lets go of it.
        sock = self._listener.socket.dup()
        options: dict[str, Any] = {"limit": self._most_bytes}
        if sys.version_info >= (3, 13):
            options["cleanup_socket"] = False  # it would remove the file, which is not its own
        self._server = await asyncio.start_unix_server(self._client, sock=sock, **options)

    async def close(self) -> None:
        """Cut off every client and answer no more."""
        if self._server is not None:
            self._server.close()
        clients = dict(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        for writer in clients.values():
            writer.transport.abort()
        await asyncio.sleep(0)  # for the transports to close their sockets

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        try:
            await self._talk(reader, writer)
        except (ConnectionError, TimeoutError) as err:
            _log.debug("a client of the control socket is cut off: %r", err)
            writer.transport.abort()
        finally:
            del self._clients[task]
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        refusal = self._listener.refusal(peer)
        code = "denied"
        if refusal is None and len(self._clients) > MOST_CLIENTS:
            refusal, code = f"more than {MOST_CLIENTS} clients at a time", "busy"
        if refusal is not None:
            writer.write(_failure(None, NOT_ALLOWED, refusal, code) + b"\n")
            return
        writer.transport.set_write_buffer_limits(high=_BUFFERED)
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                text = f"a line of more than {self._most_bytes} bytes"
                writer.write(_failure(None, INVALID_REQUEST, text, "request") + b"\n")
                return
            if not line:
                return
            for piece in answers(self._call, line):
                writer.write(piece)
                await self._taken(writer)

    async def _taken(self, writer: asyncio.StreamWriter) -> None:
        """Wait until most of what was written has been taken; `TimeoutError` where nothing is."""
        await asyncio.sleep(0)  # the others' turn, also where there is nothing to wait for
        transport = writer.transport
        while True:
            before = transport.get_write_buffer_size()
            try:
                return await asyncio.wait_for(writer.drain(), self._stuck_s)
            except TimeoutError:
                if transport.get_write_buffer_size() >= before:
                    raise


def answers(call: Call, line: bytes) -> Iterator[bytes]:
    r"""Yield the answer to `line` in pieces, one after each call; some may be empty.

    >>> list(answers(lambda method, params: params, b'{"jsonrpc":"2.0","method":"x","id":1}'))
    [b'{"jsonrpc":"2.0","result":null,"id":1}\n']
    >>> list(answers(lambda method, params: params, b'{"jsonrpc":"2.0","method":"note"}'))
    [b'']
    """
    try:
        request = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        yield _failure(None, PARSE_ERROR, f"this is no JSON: {err}", "parse") + b"\n"
        return
    if not isinstance(request, list) or not request:
        answer = _answer(call, request)
        yield answer + b"\n" if answer else b""
        return
    before = b"["
    for each in request:
        answer = _answer(call, each)
        if answer:
            yield before + answer
            before = b","
        else:
            yield b""
    if before == b",":  # a batch of notifications has no answer at all
        yield b"]\n"


def _answer(call: Call, request: object) -> bytes:
    """Return the answer to one request; nothing to a notification."""
    fault = _fault(request)
    number = request.get("id") if isinstance(request, dict) else None
    if isinstance(number, bool) or not isinstance(number, str | int | float):
        number = None
    if fault or not isinstance(request, dict):
        return _failure(number, INVALID_REQUEST, fault or "", "request")
    try:
        result = call(request["method"], request.get("params"))
        answer = msgspec.json.encode({"jsonrpc": "2.0", "result": result, "id": number})
    except LvskitError as err:
        answer = _failure(number, _number(err), str(err), err.code, _facts(err))
    except Exception:  # a fault of the program must reach the log, and not end the daemon
        _log.exception("method %r failed", request["method"])
        text = "internal error; the daemon's log has more"
        answer = _failure(number, INTERNAL_ERROR, text, "internal")
    return answer if "id" in request else b""


def _fault(request: object) -> str | None:
    """Return what is wrong with the form of a request, or None."""
    if not isinstance(request, dict):
        return "a request is an object" + (", a batch has at least one" if request == [] else "")
    number = request.get("id")
    if request.get("jsonrpc") != "2.0":
        return 'member jsonrpc must be "2.0"'
    if not isinstance(request.get("method"), str):
        return "member method must be a string"
    if not isinstance(request.get("params"), dict | list | None):
        return "member params must be an object"
    if isinstance(number, bool) or not isinstance(number, str | int | float | None):
        return "member id must be a string, a number or null"
    return None


def _number(err: LvskitError) -> int:
    if isinstance(err, RpcError) and err.code == "method":
        return METHOD_NOT_FOUND
    return INVALID_PARAMS if isinstance(err.__cause__, msgspec.ValidationError) else COMMAND_FAILED


def _facts(err: LvskitError) -> dict[str, str | int]:
    """Return the plain attributes of an error: what programs want to know of it."""
    return {name: fact for name, fact in vars(err).items() if isinstance(fact, str | int)}


def _failure(
    number: object, error: int, message: str, code: str, facts: dict[str, str | int] | None = None
) -> bytes:
    data = {"code": code, **(facts or {})}
    failure = {"code": error, "message": message, "data": data}
    return msgspec.json.encode({"jsonrpc": "2.0", "error": failure, "id": number})
