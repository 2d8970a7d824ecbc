"""A hook without `@lvskit.hookimpl`: pluggy alone would never mention it."""

import lvskit


def lvskit_register_schedulers():
    return [lvskit.SchedulerSpec(name="ghost", factory=lvskit.SchedulerBase, summary="unseen")]
