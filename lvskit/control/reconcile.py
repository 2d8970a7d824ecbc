"""Make a director's services those of a configuration, by the least changes.

Servers and services that stay keep their connections; this is what SIGHUP and ``apply`` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvskit.config.model import Config, Service, parse_endpoint
from lvskit.config.settings import director_values
from lvskit.control import tuning
from lvskit.errors import ConfigError, LvskitError
from lvskit.settings import ServiceKey, endpoint

if TYPE_CHECKING:
    from lvskit.control.api import Control


def reconcile(control: Control, config: Config, now: float) -> list[str]:
    """Apply `config`, whole or not at all; return a line for each change made.

    Raises:
        LvskitError: the first change that cannot be; those before it have been taken back.
    """
    before = control.config()
    try:
        return _change(control, config, now)
    except LvskitError:
        _change(control, before, now)
        raise


def _change(control: Control, config: Config, now: float) -> list[str]:
    director = control.director
    wanted: dict[ServiceKey, Service] = {}
    for service in config.service:
        key = service.key()
        if key in wanted:
            raise ConfigError(f"service {key} is there twice")
        wanted[key] = service
    values = director_values(config, director.defaults)
    tuning.check(control.plugins, values)
    done = tuning.make(director, values)
    for live in director.services:
        if live.key not in wanted:
            director.remove_service(live.key, now)
            done.append(f"removed {live.name}")
    there = {live.key: live for live in director.services}
    for key, service in wanted.items():
        settings = control.settings(service, key)
        if key not in there:
            director.add_service(key, settings)
            done.append(f"added {key}")
        elif settings != there[key].settings:
            director.edit_service(key, settings)
            done.append(f"changed {key}")
        tuning.check(control.plugins, service.settings, key)
        done += tuning.make(director, service.settings, key)
        done += _change_servers(control, key, service, now)
    return done


def _change_servers(control: Control, key: ServiceKey, service: Service, now: float) -> list[str]:
    director = control.director
    live = director.services.get(key)
    left = {(server.address, server.port): server for server in live.servers}
    done = []
    for server in service.server:
        address, port = parse_endpoint(server.address, service.protocol)
        port = director.server_port(live, port, server.method)
        name = f"{endpoint(address, port)} of {key}"
        found = left.pop((address, port), None)
        if found is None:
            director.add_server(key, address, port, server.settings())
            done.append(f"added {name}")
        elif found.settings != server.settings():
            director.edit_server(key, address, port, server.settings())
            done.append(f"changed {name}")
    for gone in left.values():
        director.remove_server(key, gone.address, gone.port, now)
        done.append(f"removed {gone.name} of {live.name}")
    return done
