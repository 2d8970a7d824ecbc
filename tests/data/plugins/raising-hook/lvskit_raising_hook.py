"""Raises when it is asked for its records."""

import lvskit


@lvskit.hookimpl
def lvskit_register_schedulers():
    return [lvskit.SchedulerSpec(name="Not A Name", factory=lvskit.SchedulerBase, summary="no")]
