"""Makes `director_model`, the slow model beside these tests, importable; and a few real objects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lvskit import TCP, ServerSettings, ServiceKey, Verdict
from lvskit.core.service import RealServer, VirtualService
from lvskit.types import DELIVER

sys.path.append(str(Path(__file__).parent))


def _transmit(connection: object, packet: bytes) -> Verdict:
    return DELIVER


@pytest.fixture
def service() -> VirtualService:
    """A virtual service without servers, for tests of values that need no director."""
    return VirtualService(ServiceKey.of(TCP, bytes([192, 168, 1, 176]), 80))


@pytest.fixture
def server(service: VirtualService) -> RealServer:
    """A real server, in `service`."""
    made = RealServer(service, bytes([192, 168, 1, 11]), 80)
    made.apply(ServerSettings())
    made.transmit = _transmit
    service.attach(made)
    return made
