"""The distribution registers its schedulers under ipvsadm's names."""

from __future__ import annotations

import lvskit_sched_rr

from lvskit import load_plugins


def test_records() -> None:
    specs = {spec.name: spec for spec in lvskit_sched_rr.lvskit_register_schedulers()}
    assert sorted(specs) == ["rr", "wrr"]
    assert [specs[name].traits.weighted for name in ("rr", "wrr")] == [False, True]
    assert all(spec.summary and spec.options is None for spec in specs.values())
    installed = load_plugins()
    for name, spec in specs.items():
        assert installed.scheduler(name).factory is spec.factory
