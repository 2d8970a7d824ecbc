"""Every parser, fed by hypothesis: any bytes, and what is right but for a few places."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import msgspec
import pytest
from fuzzkit import traffic
from fuzzkit.source import Drawn
from fuzzkit.world import VIP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import endpoints, host_state, ipvsadm_lines, packet, rpc, toml_file

from lvskit.config import toml
from lvskit.config.ipvsadm_lines import to_lines
from lvskit.testing.strategies import configs
from lvskit.types import SCTP, TCP, UDP

TARGETS = sorted(path.stem for path in (Path(__file__).parent / "targets").glob("*.py"))
CLUTTER = st.binary(max_size=6) | st.sampled_from(
    [b"\0", b"\xff", b"\xed\xa0\x80", b"[" * 5000, b"9" * 5000, b"-", b" ", b"\n", b'"', b"1e999"]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw `whole` with up to three places replaced, left out or put in."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(whole)))
        end = min(len(whole), start + draw(st.integers(0, 8)))
        whole = whole[:start] + draw(CLUTTER) + whole[end:]
    return whole


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    importlib.import_module(f"targets.{name}").check(data)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), configs())
def test_a_configuration_that_is_almost_right(data: st.DataObject, config: object) -> None:
    toml_file.check(data.draw(damaged(toml.dumps(config).encode())))
    lines = "\n".join(to_lines(config)).encode()
    ipvsadm_lines.check(data.draw(damaged(lines)))


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), configs())
def test_a_request_that_is_almost_right(data: st.DataObject, config: object) -> None:
    params = {"config": msgspec.to_builtins(config)}
    request = {"jsonrpc": "2.0", "method": "apply", "params": params, "id": 1}
    rpc.check(data.draw(damaged(json.dumps(request).encode())))


@given(st.data())
def test_a_packet_that_is_almost_right(data: st.DataObject) -> None:
    source = Drawn(data, steps=1)
    version = source.pick((4, 6))
    protocol = source.pick((TCP, UDP, SCTP))
    ends = traffic.Ends(protocol, traffic.CLIENTS[version][0], 1024, VIP[version], 80)
    for sent in traffic.sends(source, ends, 1):
        packet.check(sent.packet)


@pytest.mark.parametrize(
    "text",
    [b"9" * 5000, b"192.0.2.1:" + b"9" * 5000, b"a=" + b"[" * 100_000, b"a=" + b"9" * 5000],
    ids=["number", "port", "deep", "long"],
)
def test_endless_values_are_refused(text: bytes) -> None:
    endpoints.check(text)
    ipvsadm_lines.check(b"-A -t 192.0.2.1:80 -p " + text)
    ipvsadm_lines.check(b"-A -t 192.0.2.1:80 --option " + text)
    ipvsadm_lines.check(b"-a -f 1 -r 192.0.2.1 -w " + text)


def test_endless_nesting_is_refused() -> None:
    host_state.check(b'{"x":' + b"[" * 100_000)
    rpc.check(b'{"jsonrpc":"2.0","method":"status","id":1,"params":' + b"[" * 100_000)
    toml_file.check(b"x = " + b"[" * 100_000)
    toml_file.check(b"[director]\ndatapath_options = { x = " + b"[" * 500 + b"]" * 500 + b" }\n")
    toml_file.check(b"[director]\nsize = " + b"9" * 5000)
