"""A hook with an argument that its specification does not have."""

import lvskit


@lvskit.hookimpl
def lvskit_service_added(servcie):
    pass
