"""Implements a hook that lvskit does not have, besides one that it has."""

import lvskit


@lvskit.hookimpl
def lvskit_register_forwarders():
    return [lvskit.ForwarderSpec(name="beam", factory=print, summary="beam it up")]


@lvskit.hookimpl
def lvskit_register_shedulers():
    return []
