"""A hook wrapper, which lvskit does not call."""

import lvskit


@lvskit.hookimpl(wrapper=True)
def lvskit_service_added(service):
    return (yield)
