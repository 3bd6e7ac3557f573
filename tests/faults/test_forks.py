"""Forked and spawned publishers: F37. gunicorn's and Celery's are in tests/integration."""

from collections import Counter

import pytest

from tests.apps import orders
from tests.apps.site import Site, conserved
from tests.faults.conftest import RowFactory
from tests.integration.conftest import site  # noqa: F401  the fixture
from tests.integration.test_fork import CHILDREN, fork_and_spawn


@pytest.mark.faults
def test_no_two_processes_share_a_socket_and_no_publish_hangs(site: Site, row: RowFactory) -> None:  # noqa: F811
    bus = site.bus(orders.build)
    site.worker(bus)
    done = fork_and_spawn(site)
    audited = conserved(bus, timeout=60)
    published = list(site.witness.notes("published"))
    owners = Counter(inode for child in CHILDREN for inode in done[child]["own"])
    row("F37", "os.fork before and after use, multiprocessing fork and spawn").keep(
        {
            "events": len(published),
            "lost": len(published) - sum(handler.succeeded for handler in audited.handlers),
            "dup_starts": sum(n - 1 for n in site.witness.counts("start").values()),
        },
        note=f"{len(owners)} sockets of {len(CHILDREN)} children",
        sockets_shared=(sum(count > 1 for count in owners.values()), 0),
        slowest_publish=(max(note["seconds"] for note in published), bus.settings.publish_timeout),
    )
    assert len(published) == audited.handlers[0].succeeded
