"""A director that dies and comes back behind the program, against one that lives: all is equal.

No network: see `xdp_fast`.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.adoption import Adopted, Adoption
from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.engine import OBJECT
from lvskit_datapath_xdp.ids import Ids
from lvskit_datapath_xdp.loader import BpfObject, Map, MapFlags, MapSpec, MapType, RingBuffer
from lvskit_datapath_xdp.names import Name, Names, Noted
from lvskit_datapath_xdp.neighbours import Hop
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots4, Slots6
from lvskit_datapath_xdp.templates import Templates, specification
from lvskit_datapath_xdp.timing import SeenWheel
from xdp_fast import (
    ACK,
    FIN,
    MACS,
    STEPS,
    SYN,
    Fast,
    Frames,
    Step,
    director,
    packet,
    servers_of,
    state,
    told,
)

from lvskit import TCP, UDP, ServerSettings, ServiceKey, ServiceSettings
from lvskit.control.datapaths import Brain

NAMES = MapSpec("names", MapType.ARRAY, 4, layout.NAME.size, 4096, MapFlags.MMAPABLE)


class Mortal(Fast):
    """The program, and a director behind it that may die."""

    def __init__(self, now: float, scheduler: str = "wlc") -> None:
        super().__init__(scheduler, now)
        self.scheduler = scheduler
        self.names = Names(Map.create(NAMES))
        self.templates = Map.create(specification(64))
        self.servers._names = self.names
        self.servers.count()

    def die(self) -> Adopted:
        """Forget all that is not in the kernel, and begin again with that."""
        engine, maps, self.now = self.engine, self.engine.maps, time.monotonic()
        self.director = director(self.scheduler, self.now)
        self.director.wheel = SeenWheel(self.now, self.kept_until)
        slots = {4: Slots4(maps["connections4"], engine), 6: Slots6(maps["connections6"], engine)}
        services, hops = Services(maps["services"], lambda address: True), {}
        self.slots, self.services = slots[4], services
        hop = Hop(engine.ifindex, MACS)
        self.servers = Servers(
            maps["servers"], maps["server_counters"], lambda address: hop, lambda ifindex: True,
            self.names,
        )  # fmt: skip
        self.rings = Rings(maps["rings"], services, self.servers, self.director.table)
        clock = engine.clock(time.monotonic)
        self.bridge = Bridge(
            self.director, lambda: self.now, clock, RingBuffer(maps["misses"]), slots,
            services, self.servers, self.rings, self.send,
        )  # fmt: skip
        self.frames = self.bridge._frames[engine.ifindex] = Frames()
        templates = Templates(self.templates, self.director.table)
        adoption = Adoption(
            self.director, slots, self.servers, services, self.names, templates, hops
        )
        brain = Brain(lambda: self.now)
        brain.director = self.director
        with brain.restoring() as restorer:
            done = adoption.run(restorer, clock, self.now)
        services.update(self.director.services)
        self.servers.update(servers_of(self.director), [])
        self.bridge.watch()
        self.bridge.catch_up()
        self.rings.adopt()
        self.update()
        assert all(found == hop for found in hops.values())
        return done

    def sound(self) -> None:
        """Check that slots, table and counts are of one mind."""
        slots, now = self.bridge._slots[4], []
        for number, (_, port, service, server, moved_to, *_) in slots.contents():
            if service:
                owner = slots.owners[number]
                now.append(owner)
                assert owner.key[8:10] == port
                assert self.servers.by_number[server] is owner.server
                assert moved_to == owner.state
        assert set(now) == set(slots.known()) == set(self.director.table)
        for server in servers_of(self.director):
            own = [each for each in self.director.table if each.server is server]
            active = sum(each.active for each in own)
            assert (server.activeconns, server.inactconns) == (active, len(own) - active)


DEATHS = st.sets(st.integers(0, 60), max_size=3)


@pytest.mark.usefixtures("bpf")
@pytest.mark.parametrize("scheduler", ["wlc", "sh"])
@given(steps=STEPS, deaths=DEATHS)
@settings(max_examples=30, deadline=None)
def test_a_death_between_packets_changes_nothing(
    scheduler: str, steps: list[Step], deaths: set[int]
) -> None:
    now = time.monotonic()
    alone, mortal = director(scheduler, now), Mortal(now, scheduler)
    try:
        for number, step in enumerate(steps):
            if number in deaths:
                before = sorted(map(repr, state(mortal.director)))
                mortal.die()
                assert sorted(map(repr, state(mortal.director))) == before
            now = time.monotonic()
            expected = told(alone.receive(packet(step), now))
            assert mortal.take(packet(step), now) == expected
            mortal.servers.count()
            assert sorted(map(repr, state(mortal.director))) == sorted(map(repr, state(alone)))
        mortal.sound()
    finally:
        mortal.close()


@pytest.mark.usefixtures("bpf")
@pytest.mark.parametrize("scheduler", ["wlc", "rr"])
@given(steps=STEPS, meanwhile=STEPS, half=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_came_meanwhile_is_caught_up_with(
    scheduler: str, steps: list[Step], meanwhile: list[Step], half: bool
) -> None:
    mortal = Mortal(time.monotonic(), scheduler)
    try:
        for step in steps:
            mortal.take(packet(step), time.monotonic())
        for step in meanwhile:
            mortal.program.test_run(bytes(12) + b"\x08\x00" + packet(step))
        if half:  # it died when it had handled what is in the ring, and not yet said so
            mortal.bridge._handle(mortal.bridge._ring.offsets())
        mortal.die()
        mortal.sound()
        assert not mortal.bridge.read()
        mortal.frames.sent.clear()
        mortal.portable.clear()
        for step in steps:
            mortal.take(packet(step), time.monotonic())
        mortal.sound()
    finally:
        mortal.close()


@pytest.mark.usefixtures("bpf")
def test_states_that_were_passed_through_are_not_taken_again() -> None:
    mortal = Mortal(time.monotonic())
    try:
        mortal.take(packet(Step(1, SYN)), time.monotonic())
        for flags in (ACK, FIN | ACK):
            mortal.program.test_run(bytes(12) + b"\x08\x00" + packet(Step(1, flags)))
        assert mortal.die() == Adopted(1, 0)
        (connection,) = mortal.director.table
        assert connection.state_name == "FIN_WAIT"
    finally:
        mortal.close()


@pytest.mark.usefixtures("bpf")
def test_a_packet_that_waited_long_is_not_sent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mortal = Mortal(time.monotonic())
    try:
        mortal.program.test_run(bytes(12) + b"\x08\x00" + packet(Step(1, SYN)))
        monkeypatch.setattr("lvskit_datapath_xdp.bridge._LATE_S", -1)
        mortal.die()
        assert mortal.bridge.losses()["late"] == 1
        assert not mortal.frames.sent
        assert not len(mortal.director.table)
        assert mortal.take(packet(Step(1, SYN)), time.monotonic())  # it is sent again
        assert len(mortal.director.table) == 1
    finally:
        mortal.close()


@pytest.mark.usefixtures("bpf")
def test_a_full_table_sheds_half_open_connections_and_their_slots() -> None:
    mortal = Mortal(time.monotonic())
    try:
        for client in range(20):
            mortal.take(packet(Step(client, SYN)), time.monotonic())
            mortal.take(packet(Step(client, ACK)), time.monotonic())
        for client in range(20, 120):  # there is room for 64
            assert isinstance(mortal.take(packet(Step(client, SYN)), time.monotonic()), bytes)
        assert mortal.director.table.shed == 56
        mortal.sound()
        mortal.die()
        mortal.sound()
        states = [each.state_name for each in mortal.director.table]
        assert sorted(states) == ["ESTABLISHED"] * 20 + ["SYN_RECV"] * 44
        # Those that are half open are shed in the former order, as far as the clock tells it.
        mortal.take(packet(Step(120, SYN)), time.monotonic())
        assert mortal.director.table.shed == 1
        mortal.sound()
    finally:
        mortal.close()


# --- what is written down ---


def test_the_version_changes_with_what_is_pinned() -> None:
    """Where this fails, raise `layout.VERSION`, then write the new digest here."""
    header = OBJECT.with_name("layout.h").read_text()
    code = "\n".join(line.strip() for line in header.splitlines() if not line.startswith(" *"))
    notes = [each.format for each in (layout.NAME, layout.TEMPLATE_KEY, layout.TEMPLATE)]
    source = BpfObject.read(OBJECT)
    shapes = [(s.name, s.type, s.key_size, s.value_size, s.flags) for s in source.maps.values()]
    hashes = layout.hash4(1, 2, 3), layout.hash6(1, 2, 3, 4, 5)
    facts = repr((code, notes, sorted(shapes), source.rodata.places, hashes))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    assert (layout.VERSION, digest) == (5, "08360f98fb7e1d30")


@pytest.mark.usefixtures("bpf")
def test_what_is_written_of_a_server_is_read_again() -> None:
    made = director("wlc", 0.0)
    names = Names(Map.create(NAMES))
    servers = servers_of(made)
    for number, server in enumerate(servers, 1):
        server.counters.conns, server.counters.inpkts = number, 10 * number
        names.write(number, server, 1000, 0)  # of the program's, 1000 were another server's
    names.clear(2)
    found = dict(names)
    assert found.keys() == set(range(1, len(servers) + 1)) - {2}
    for number, noted in found.items():
        counts = (number, 10 * number - 1000 + 2**64, 0, 0, 0)
        assert noted == Noted(Name.of(servers[number - 1]), 0, False, counts)
    names.close()


def persistent(size: int) -> Any:
    """Return a director with a persistent service, with connections of as many clients."""
    made = director("wlc", 0.0)
    made.clear(0.0)
    made.table.size = 4 * size
    key = ServiceKey.of(TCP, bytes([192, 0, 2, 1]), 80)
    made.add_service(key, ServiceSettings(scheduler="wlc", persistence_s=100))
    made.add_server(key, bytes([10, 0, 0, 11]), None, ServerSettings())
    return made


@pytest.mark.usefixtures("bpf")
def test_templates_are_written_renewed_and_forgotten() -> None:
    made, map_ = persistent(16), Map.create(specification(4))
    templates = Templates(map_, made.table)
    templates.watch(made.services)
    templates.watch(made.services)  # hears of them once all the same
    made.receive(packet(Step(1, SYN)), 1.0)
    assert not list(map_.items())
    templates.flush()
    (template,) = made.table.templates[TCP].values()
    ((_, value),) = map_.items()
    assert layout.TEMPLATE.unpack(value)[-2:] == (101.0, 100.0)
    made.receive(packet(Step(1, ACK)), 2.0)
    made.receive(packet(Step(2, SYN)), 30.0)
    templates.flush()
    ((_, value),) = map_.items()
    fields = layout.TEMPLATE.unpack(value)
    assert fields[-2:] == (130.0, 100.0)
    assert fields[6] == layout.TemplateFlag.ASSURED
    templates.ended(template)
    assert not list(map_.items())


@pytest.mark.usefixtures("bpf")
def test_templates_make_room_by_forgetting_what_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    made, map_ = persistent(16), Map.create(specification(2))
    templates = Templates(map_, made.table)
    templates.watch(made.services)

    def client(number: int) -> None:
        segment = bytearray(packet(Step(1, SYN)))
        segment[15] = number
        made.receive(bytes(segment), 1.0)
        templates.flush()

    client(1)
    client(2)
    made._drop_template(next(iter(made.table.templates[TCP].values())))
    client(3)
    assert len(list(map_.items())) == 2
    assert not caplog.records
    client(4)
    client(5)
    assert len(list(map_.items())) == 2
    assert len(caplog.records) == 1
    assert "templates of persistence would not survive a crash" in caplog.text


# --- ids of services ---


def key(number: int) -> ServiceKey:
    return ServiceKey.of(UDP, bytes([10, 0, 0, 1]), number)


@given(
    st.lists(
        st.tuples(st.sets(st.integers(1, 12), max_size=8), st.sets(st.integers(1, 6))), max_size=12
    )
)
def test_an_id_is_not_given_away_while_slots_have_it(
    rounds: list[tuple[set[int], set[int]]],
) -> None:
    in_slots: set[int] = set()
    ids = Ids(7, lambda: in_slots)
    holder: dict[int, ServiceKey] = {}
    for services, chosen in rounds:
        present = {key(number) for number in services}
        given = {each: ids.give(each, present) for each in sorted(present)}
        numbers = [number for number in given.values() if number is not None]
        assert len(set(numbers)) == len(numbers)
        assert all(0 < number < 7 for number in numbers)
        for each, number in given.items():
            if number is None:  # all are taken: by services that are there, or by slots
                assert set(numbers) | in_slots == set(range(1, 7))
            elif holder.get(number) != each:
                assert number not in in_slots
                holder[number] = each
        # Connections begin, of services that there are, and end.
        in_slots &= chosen
        in_slots |= chosen & set(numbers)


def test_an_id_from_before_is_kept() -> None:
    ids = Ids(10, set)
    assert ids.take(key(1), 5)
    assert not ids.take(key(1), 6)
    assert ids.give(key(1), [key(1)]) == 5
    assert ids.give(key(2), [key(1), key(2)]) == 7


@pytest.mark.usefixtures("bpf")
def test_slots_tell_whose_they_are() -> None:
    mortal = Mortal(time.monotonic())
    try:
        assert mortal.bridge._slots[4].services() - {0} == set()
        mortal.take(packet(Step(1, SYN)), time.monotonic())
        mortal.take(packet(Step(1, None)), time.monotonic())
        assert mortal.bridge._slots[4].services() - {0} == {1, 2}
        assert mortal.bridge._slots[6].services() == {0}
    finally:
        mortal.close()
