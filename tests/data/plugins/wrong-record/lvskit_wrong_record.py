"""Returns something else than records."""

import lvskit


class First(lvskit.SchedulerBase):
    pass


@lvskit.hookimpl
def lvskit_register_schedulers():
    return [First]
