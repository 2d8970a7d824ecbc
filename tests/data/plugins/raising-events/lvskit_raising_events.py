"""Raises in everything that it hears of, which must change nothing."""

import lvskit


@lvskit.hookimpl(tryfirst=True)
def lvskit_service_added(service):
    raise RuntimeError("no service is to my liking")


@lvskit.hookimpl(tryfirst=True)
def lvskit_connection_observer(service):
    raise RuntimeError("not observing")
