"""What was seen after a step against what a recording expects: the first difference, in words."""

from __future__ import annotations

from lvskit.testing.wire import Tree
from lvskit.testing.world import INERT, World

_TABLE = "IPVS connection entries"


def packet_of(do: Tree) -> bytes:
    """Return the packet that a step sends."""
    if "hex" in do:
        return bytes.fromhex(do["hex"])
    raise ValueError("a packet without bytes")


def compare_output(expect: Tree, seen: Tree, varies: set[str]) -> str:
    """Return how what a command printed differs, or nothing."""
    for field in ("rc", "stdout", "stderr"):
        if field not in expect:
            continue
        want, got = expect[field], seen[field]
        if str(want).startswith(_TABLE) or f"/{field}" in varies:
            # Listed in the order of a hash table with a random seed.
            want, got = sorted(want.splitlines()), sorted(got.splitlines())
        if want != got:
            return f"{field}: expected {want!r}, got {got!r}"
    return ""


def compare_settings(expect: Tree, settings: dict[str, str], do: Tree) -> str:
    """Return how what settings read as differs, or nothing.

    The recorder's word `result` was "ok" for each, whatever the kernel made of the value.
    """
    want = {f"{do.get('dir')}.{name}": value for name, value in expect.get("values", {}).items()}
    if "reads" in expect:
        want = {do["name"]: expect["reads"]}
    for name, value in want.items():
        if name.rpartition(".")[2] not in INERT and settings.get(name) != value:
            return f"{name}: expected {value}, got {settings.get(name)}"
    return ""


def compare_packets(expect: Tree, seen: Tree, do: Tree, varies: set[str]) -> str:
    """Return how the emitted packets differ, or nothing."""
    if "out" not in expect:
        return ""
    if "/out" in varies:
        return ""
    if "chosen" in expect and expect["chosen"] != seen["chosen"]:
        return f"chosen: expected {expect['chosen']}, got {seen['chosen']}"
    want, got = expect["out"], seen["out"]
    if want == "ipip":
        want = [_plain_tunnel(do, expect["chosen"])]
    if len(want) != len(got):
        return f"out: expected {len(want)} packets {want!r}, got {len(got)} {got!r}"
    for index, (one, other) in enumerate(zip(want, got, strict=True)):
        for field, value in one.items():
            if f"/out/{index}/{field}" in varies:
                continue
            left, right = value, other.get(field)
            if field == "packet" and isinstance(left, dict) and isinstance(right, dict):
                loose = [k for k in left if f"/out/{index}/packet/{k}" in varies]
                right = {**right, **{k: left[k] for k in loose}}
            if left != right:
                return f"out[{index}].{field}: expected {left!r}, got {right!r}"
    return ""


def _plain_tunnel(do: Tree, chosen: str) -> Tree:
    """Return what `"out": "ipip"` is short for."""
    sent = packet_of(do)
    outer = {
        "src": "192.168.1.175",
        "dst": chosen,
        "tos": sent[1],
        "ttl": sent[8] - 1,
        "df": bool(sent[6] & 0x40),
        "len": len(sent) + 20,
        "proto": "ipip",
    }
    inner = {"as-sent-but": {"ttl": sent[8] - 1}}
    return {"next_hop": f"x.{chosen.rpartition('.')[2]}", "outer": outer, "inner": inner}


def compare_state(world: World, mode: str, expect: Tree, do: Tree, varies: set[str]) -> str:
    """Return how connections or services differ, or nothing."""
    conns = world.conns()
    difference = ""
    if mode == "full" and "conns" in expect:
        difference = _compare_conns(expect["conns"], conns, varies)
    elif "flow_conns" in expect and do["op"] == "send":
        clients = {entry["client"] for entry in expect["flow_conns"]}
        mine = [entry for entry in conns if entry["client"] in clients]
        difference = _compare_conns(expect["flow_conns"], mine, varies)
    count = expect.get("conn_count", len(conns))
    if count != len(conns) and "/conn_count" not in varies:
        difference = difference or f"conn_count: expected {count}, got {len(conns)}"
    if "services" in expect:
        difference = difference or _compare_services(expect["services"], world.services(), varies)
    return difference


def _compare_conns(want: list[Tree], got: list[Tree], varies: set[str]) -> str:
    if "/conns" in varies:
        return ""
    if [_identity(entry) for entry in want] != [_identity(entry) for entry in got]:
        return f"conns: expected {want!r}, got {got!r}"
    for index, (entry, mine) in enumerate(zip(want, got, strict=True)):
        if entry["expires"] != mine["expires"] and f"/conns/{index}/expires" not in varies:
            seconds = f"expected {entry['expires']}, got {mine['expires']}"
            return f"conns: expires of {_identity(entry)}: {seconds}"
    return ""


def _identity(entry: Tree) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("proto", "client", "virtual", "rs", "state"))


def _compare_services(want: Tree, got: Tree, varies: set[str]) -> str:
    if set(want) != set(got):
        return f"services: expected {sorted(want)}, got {sorted(got)}"
    for name, servers in want.items():
        if list(servers) != list(got[name]):
            return f"servers of {name}: expected {list(servers)}, got {list(got[name])}"
        for server, values in servers.items():
            mine = got[name][server]
            for index, value in enumerate(values):
                path = f"/services/{name}/{server}/{index}"
                if mine[index] != value and path not in varies:
                    return f"{server} of {name}: expected {values}, got {mine}"
    return ""
