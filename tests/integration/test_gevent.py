"""Publishing from greenlets: one that waits for a server holds up no other."""

import subprocess
import sys

from eventdriven_sync.devserver import DevServers
from tests.apps import orders
from tests.apps.site import ROOT, Site, conserved
from tests.polling import eventually

# Of tests.apps.greenlets, which patches whoever imports it.
GREENLETS, EACH = 20, 10


def test_greenlets_publish_and_go_on_while_one_waits_for_a_frozen_server(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build)
    own_site.worker(bus)
    publisher = subprocess.Popen(
        [sys.executable, "-m", "tests.apps.greenlets", str(own_site.witness.path)],
        cwd=ROOT,
        env=own_site.environ(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: own_site.witness.notes("ready"), timeout=30)
        own_servers.mongo.pause()
        own_site.witness.note("frozen")
        [waited] = eventually(lambda: own_site.witness.notes("waited"), timeout=30)
        own_servers.mongo.resume()
        own_site.witness.note("resumed")
        _, said = publisher.communicate(timeout=60)
    finally:
        own_servers.mongo.resume()
        publisher.kill()
    assert publisher.returncode == 0, said
    assert waited["error"] in ("StoreUnavailable", "PublishOutcomeUnknown")
    assert waited["ticks"] > 50, "the other greenlets had their turns meanwhile"
    assert own_site.witness.notes("done", flushed=True, error=""), said
    numbers = range(GREENLETS * EACH)
    assert own_site.witness.counts("published") == dict.fromkeys(numbers, 1)
    conserved(bus, timeout=60)
    assert set(own_site.witness.counts("end")) == {-1, *numbers}
