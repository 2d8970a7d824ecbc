"""Connections, their keys, and the table: values, without a director."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lvskit import DELIVER, TCP, UDP, Flow, ServiceKey
from lvskit.core.connection import Connection, ConnectionTable, Template, unpack
from lvskit.core.persistence import retire
from lvskit.core.service import RealServer, VirtualService
from lvskit.types import IP

PORTS = st.integers(0, 65535)
ADDRESSES = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)
)
FLOWS = st.builds(
    lambda protocol, ends, cport, vport: Flow(protocol, ends[0], cport, ends[1], vport),
    st.sampled_from([TCP, UDP]), ADDRESSES, PORTS, PORTS,
)  # fmt: skip


@given(FLOWS)
def test_a_key_is_the_packets_own_bytes_and_tells_the_flow(flow: Flow) -> None:
    key = flow.key
    assert len(key) == (12 if len(flow.caddr) == 4 else 36)
    ports = flow.cport.to_bytes(2, "big") + flow.vport.to_bytes(2, "big")
    assert key == flow.caddr + flow.vaddr + ports
    assert unpack(flow.protocol, key) == flow


@given(st.lists(FLOWS, unique_by=lambda flow: (flow.protocol, flow.key), max_size=12))
def test_the_table_finds_each_connection_under_its_key_alone(flows: list[Flow]) -> None:
    table = ConnectionTable(size=100)
    server = RealServer(VirtualService(ServiceKey.of(TCP, bytes([10, 0, 0, 1]), 80)), b"", 80)
    server.transmit = lambda connection, packet: DELIVER
    connections = [Connection(flow.protocol, flow.key, server, 80) for flow in flows]
    for connection in connections:
        table.add(connection)
    assert len(table) == len(connections)
    assert set(table) == set(connections)
    for connection, flow in zip(connections, flows, strict=True):
        assert table.connections[flow.protocol][flow.key] is connection
        assert connection.flow == flow
    for connection in connections:
        table.half_open[connection] = None
        table.remove(connection)
        table.remove(connection)  # said twice, or of one that was never there
        assert connection not in table.half_open
        assert connection.key not in table.connections[connection.protocol]
    assert len(table) == 0


def test_removing_a_connection_leaves_its_successor_alone(server: RealServer) -> None:
    """The ports may have been used again by then."""
    table, key = ConnectionTable(size=10), bytes(12)
    old, new = Connection(TCP, key, server, 80), Connection(TCP, key, server, 80)
    table.add(old)
    table.add(new)
    table.remove(old)
    assert table.tcp == {key: new}


def test_a_new_connection_is_bound_to_its_server(server: RealServer) -> None:
    connection = Connection(TCP, bytes(12), server, 8080)
    assert connection.transmit is server.transmit
    assert (connection.server, connection.dport) == (server, 8080)
    assert not connection.active
    assert not connection.two_way
    assert connection.template is None


def test_templates_count_as_entries_and_retired_ones_are_found_by_nobody(
    server: RealServer,
) -> None:
    table = ConnectionTable(size=10)
    flow = Flow(IP, bytes([10, 0, 0, 0]), 0, bytes([0, 0, 0, 7]), 0)
    one, two = (Template(flow.protocol, flow.key, server, 80) for _ in range(2))
    table.add_template(one)
    retire(table, one)
    table.add_template(two)
    assert len(table) == 2
    assert set(table) == {one, two}
    assert one.flow == flow._replace(vport=65535)
    assert one.dport == 65535
    assert table.templates[IP] == {flow.key: two}
    retire(table, two)  # both have the same name now
    table.remove_template(one)
    assert list(table) == [two]
    table.remove_template(two)
    assert len(table) == 0
    table.add_template(three := Template(flow.protocol, flow.key, server, 80))
    table.remove_template(three)
    assert len(table) == 0
