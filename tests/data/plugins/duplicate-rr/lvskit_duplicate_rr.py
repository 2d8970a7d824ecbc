"""A second `rr`, besides lvskit-sched-rr's, and a scheduler that nobody else has."""

import lvskit


@lvskit.hookimpl
def lvskit_register_schedulers():
    return [
        lvskit.SchedulerSpec(name="mine", factory=lvskit.SchedulerBase, summary="unique"),
        lvskit.SchedulerSpec(name="rr", factory=lvskit.SchedulerBase, summary="also round robin"),
    ]
