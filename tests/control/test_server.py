"""JSON-RPC 2.0 as its specification has it, and clients that mean no good or no haste."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.listener import Listener
from lvskit.control.server import RpcServer, answers
from lvskit.errors import PluginError, RpcError, ServiceNotFound, UnknownPlugin


class Unprintable:
    pass


def call(method: str, params: Any) -> Any:
    if method == "subtract":
        return params["minuend"] - params["subtrahend"]
    if method == "echo":
        return params
    if method == "lost":
        raise ServiceNotFound("no virtual service TCP 10.0.0.1:80")
    if method == "unknown_plugin":
        raise UnknownPlugin("unknown scheduler 'x'", kind="scheduler", name="x")
    if method == "plugin":
        raise PluginError("it broke", plugin="lvskit-sched-x")
    if method == "fault":
        raise ZeroDivisionError
    if method == "unprintable":
        return Unprintable()
    if method == "large":
        return "x" * params["size"]
    raise RpcError(f"unknown method {method!r}", "method")


def answer(text: str | bytes) -> Any:
    raw = b"".join(answers(call, text.encode() if isinstance(text, str) else text))
    if not raw:
        return None
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    return json.loads(raw)


def ok(result: Any, number: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": result, "id": number}


def failed(reply: Any) -> tuple[Any, int, str]:
    assert reply["jsonrpc"] == "2.0"
    return reply["id"], reply["error"]["code"], reply["error"]["data"]["code"]


SUBTRACT = '{"jsonrpc":"2.0","method":"subtract","params":{"minuend":42,"subtrahend":23},"id":%s}'


@pytest.mark.parametrize("number", ["1", '"text"', "null", "1.5", "123456789012345678901234567890"])
def test_a_call_and_its_id(number: str) -> None:
    assert answer(SUBTRACT % number) == ok(19, json.loads(number))


def test_no_params_are_none() -> None:
    assert answer('{"jsonrpc":"2.0","method":"echo","id":1}') == ok(None, 1)
    assert answer('{"jsonrpc":"2.0","method":"echo","params":null,"id":1}') == ok(None, 1)


@pytest.mark.parametrize("method", ["echo", "lost", "fault", "nonesuch"])
def test_a_notification_is_never_answered(method: str) -> None:
    assert answer(f'{{"jsonrpc":"2.0","method":"{method}"}}') is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{",
        b"nonsense",
        b'{"jsonrpc": "2.0", "method"',
        b"\xff",
        b'"\\ud800"',
        b"NaN",
        b"1e999",
        b"{} {}",
        b"\0",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(13),
)
def test_no_json(line: bytes) -> None:
    assert failed(answer(line)) == (None, -32700, "parse")


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ('{"jsonrpc":"2.0","method":1,"id":7}', 7),
        ('{"jsonrpc":"2.0","id":7}', 7),
        ('{"jsonrpc":"1.0","method":"echo","id":7}', 7),
        ('{"method":"echo","id":7}', 7),
        ('{"jsonrpc":"2.0","method":"echo","params":"bar","id":7}', 7),
        ('{"jsonrpc":"2.0","method":"echo","params":0,"id":7}', 7),
        ('{"jsonrpc":"2.0","method":"echo","id":true}', None),
        ('{"jsonrpc":"2.0","method":"echo","id":[1]}', None),
        ("1", None),
        ('"text"', None),
        ("null", None),
        ("[]", None),
    ],
)
def test_no_request(request_: str, number: object) -> None:
    assert failed(answer(request_)) == (number, -32600, "request")


def test_errors_keep_their_kind() -> None:
    def one(method: str) -> Any:
        return answer(f'{{"jsonrpc":"2.0","method":"{method}","id":1}}')

    assert failed(one("nonesuch")) == (1, -32601, "method")
    assert failed(one("lost")) == (1, -32000, "service_not_found")
    assert one("lost")["error"]["message"] == "no virtual service TCP 10.0.0.1:80"
    known = {"code": "unknown_plugin", "kind": "scheduler", "name": "x"}
    assert one("unknown_plugin")["error"]["data"] == known
    assert one("plugin")["error"]["data"] == {"code": "plugin", "plugin": "lvskit-sched-x"}


@pytest.mark.parametrize("method", ["fault", "unprintable"])
def test_a_fault_of_the_program_is_logged(method: str, caplog: pytest.LogCaptureFixture) -> None:
    reply = answer(f'{{"jsonrpc":"2.0","method":"{method}","id":1}}')
    assert failed(reply) == (1, -32603, "internal")
    assert f"method '{method}' failed" in caplog.text


def test_a_batch() -> None:
    requests = [
        SUBTRACT % 1,
        '{"jsonrpc":"2.0","method":"echo","params":[1]}',
        "1",
        '{"jsonrpc":"2.0","method":"nonesuch","id":5}',
        SUBTRACT % 2,
    ]
    reply = answer("[" + ",".join(requests) + "]")
    assert reply[0] == ok(19, 1)
    assert failed(reply[1]) == (None, -32600, "request")
    assert failed(reply[2]) == (5, -32601, "method")
    assert reply[3] == ok(19, 2)
    assert len(reply) == 4


def test_a_batch_of_notifications_has_no_answer() -> None:
    assert answer('[{"jsonrpc":"2.0","method":"echo"},{"jsonrpc":"2.0","method":"lost"}]') is None


# --- over a socket ---


def served(tmp_path: Path, scenario: Callable[[str], Awaitable[None]], **options: Any) -> None:
    """Run `scenario` with the path of a server's socket."""

    async def everything() -> None:
        listener = Listener(str(tmp_path / "s"))
        server = RpcServer(call, listener, **options)
        await server.start()
        try:
            await asyncio.wait_for(scenario(listener.path), 30)
        finally:
            await server.close()
            listener.close()

    asyncio.run(everything())


async def ask(path: str, *lines: bytes) -> list[Any]:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 26)
    writer.write(b"".join(lines))
    writer.write_eof()
    replies = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return [json.loads(reply) for reply in replies]


ECHO = b'{"jsonrpc":"2.0","method":"echo","id":1}'


def test_lines_are_answered_in_order_and_the_last_needs_no_end(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        first, second = (SUBTRACT % 1).encode() + b"\n", (SUBTRACT % 2).encode()
        assert await ask(path, first, second) == [ok(19, 1), ok(19, 2)]

    served(tmp_path, scenario)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        (reply,) = await ask(path, b'"' + b"x" * 5000)
        assert failed(reply) == (None, -32600, "request")
        assert reply["error"]["message"] == "a line of more than 1000 bytes"
        assert await ask(path, ECHO) == [ok(None, 1)]

    served(tmp_path, scenario, most_bytes=1000)


def test_one_that_takes_no_answer_is_cut_off(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.setblocking(False)
            await loop.sock_connect(stuck, path)
            large = b'{"jsonrpc":"2.0","method":"large","params":{"size":5000000},"id":1}\n'
            await loop.sock_sendall(stuck, large * 100)
            assert await ask(path, ECHO) == [ok(None, 1)]
            await asyncio.sleep(0.6)
            taken = 0
            while chunk := await loop.sock_recv(stuck, 1 << 20):
                taken += len(chunk)
            assert taken < 5_000_000
            assert await ask(path, ECHO) == [ok(None, 1)]

    served(tmp_path, scenario, stuck_s=0.2)


def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 16)
        writer.write(b'{"jsonrpc":"2.0","method":"large","params":{"size":3000000},"id":1}\n')
        taken = b""
        while not taken.endswith(b"\n"):
            await asyncio.sleep(0.02)
            taken += await reader.read(1 << 17)
        assert len(json.loads(taken)["result"]) == 3_000_000
        writer.close()
        await writer.wait_closed()

    served(tmp_path, scenario, stuck_s=0.2)


def test_a_vanished_client_harms_nobody(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(b'{"jsonrpc":"2.0","method":"large","params":{"size":3000000},"id":1}\n')
            await writer.drain()
            writer.transport.abort()
        assert await ask(path, ECHO) == [ok(None, 1)]

    served(tmp_path, scenario)


def test_a_flood_of_one_leaves_others_their_turn(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"[" + b",".join([ECHO[:-8] + b"}"] * 100_000) + b"]\n" + b"\n" * 1000)
        await writer.drain()
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await ask(path, ECHO) == [ok(None, 1)]
        assert loop.time() - before < 2
        writer.transport.abort()
        del reader

    served(tmp_path, scenario)


def test_too_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvskit.control.server.MOST_CLIENTS", 2)

    async def scenario(path: str) -> None:
        first = [await asyncio.open_unix_connection(path) for _ in range(2)]
        await asyncio.sleep(0.05)
        (reply,) = await ask(path)
        assert reply["error"]["data"]["code"] == "busy"
        for _, writer in first:
            writer.close()
            await writer.wait_closed()
        assert await ask(path, ECHO) == [ok(None, 1)]

    served(tmp_path, scenario)


def test_close_cuts_off_clients(tmp_path: Path) -> None:
    async def everything() -> None:
        listener = Listener(str(tmp_path / "s"))
        server = RpcServer(call, listener)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(listener.path)
        writer.write(ECHO + b"\n")
        assert json.loads(await asyncio.wait_for(reader.readline(), 10)) == ok(None, 1)
        await server.close()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await writer.wait_closed()
        assert Path(listener.path).exists()  # taken until its owner lets go
        listener.close()
        assert not Path(listener.path).exists()

    asyncio.run(everything())
