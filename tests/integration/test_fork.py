"""Publishing from forked and spawned processes: everybody opens connections of their own."""

import subprocess
import sys
from typing import Any

from tests.apps import orders
from tests.apps.forking import MANY
from tests.apps.site import ROOT, Site, conserved

PUBLISHERS = {
    "forked before first use": 0,
    "parent": 100,
    "forked": 200,
    "forked too": 300,
    "parent after fork": 400,
    "mp fork": 500,
    "mp spawn": 600,
    "parent at the end": 700,
}
CHILDREN = ("forked before first use", "forked", "forked too", "mp fork", "mp spawn")


def test_forked_and_spawned_children_publish_while_the_parent_goes_on(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    done = fork_and_spawn(site)
    numbers = [n for first in PUBLISHERS.values() for n in range(first, first + MANY)]
    audited = conserved(bus, timeout=60)
    assert [h.succeeded for h in audited.handlers] == [len(numbers)]
    assert site.witness.counts("end") == dict.fromkeys(numbers, 1)
    assert all(note["flushed"] for note in done.values()), "NATS has them: no reconciler was needed"


def fork_and_spawn(site: Site) -> dict[str, Any]:
    """Have every publisher publish; by its name, what it noted at its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.apps.forking", str(site.witness.path)],
        cwd=ROOT,
        env=site.environ(),
        timeout=90,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Exception" not in ended.stderr
    numbers = [n for first in PUBLISHERS.values() for n in range(first, first + MANY)]
    assert site.witness.counts("published") == dict.fromkeys(numbers, 1)
    done = {note["who"]: note for note in site.witness.notes("done")}
    assert set(done) == set(PUBLISHERS)
    for child in CHILDREN:
        assert len(done[child]["own"]) >= 2, f"{child} opened sockets for NATS and MongoDB"
    return done


def test_a_forked_child_handles_events_with_a_worker_of_its_own(site: Site) -> None:
    bus = site.bus(orders.build)
    bus.publish(orders.OrderPlaced(number=1))
    process = site.worker_process("prefork", "--threads", 2)
    bus.publish_many([orders.OrderPlaced(number=n) for n in range(2, 30)])
    audited = conserved(bus, timeout=60)
    assert [h.succeeded for h in audited.handlers] == [29]
    assert process.pid not in site.witness.counts("start", by="pid"), "only the child runs handlers"
    assert site.witness.counts("end") == dict.fromkeys(range(1, 30), 1)
