"""Applications on real servers, with settings that make faults pass quickly."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eventdriven_sync import Settings
from eventdriven_sync.devserver import DevServers
from tests.apps.site import Site

QUICK = {
    "ack_wait": 2.0,
    "lease": 2.0,
    "reconcile_after": 1.0,
    "reconcile_every": 0.3,
    "poll_every": 0.05,
}


@pytest.fixture
def site(servers: DevServers, mongo_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """An application of this test on the servers that the tests share."""
    settings = Settings(nats=servers.nats_url, mongo=mongo_url, namespace=namespace, **QUICK)
    site = Site(tmp_path, settings)
    yield site
    site.close()


@pytest.fixture
def own_site(own_servers: DevServers, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """An application on servers of its own (``own_servers``), for the test to stop and wipe."""
    settings = Settings(
        nats=own_servers.nats_url, mongo=own_servers.mongo_url("app"), namespace=namespace, **QUICK
    )
    site = Site(tmp_path, settings)
    yield site
    site.close()
