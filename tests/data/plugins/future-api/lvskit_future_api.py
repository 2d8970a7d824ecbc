"""Written for a version of the interfaces that is not this one."""

import lvskit


@lvskit.hookimpl
def lvskit_register_schedulers():
    return [
        lvskit.SchedulerSpec(name="later", factory=lvskit.SchedulerBase, api=99, summary="2099")
    ]
