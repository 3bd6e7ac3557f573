"""Which streams and consumers the handlers of a bus need."""

import threading
from typing import Any

from eventdriven_sync import EventBus
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.events import event
from eventdriven_sync.topology import handler_record
from tests.unit.rig import Greeted, Renamed


@event("RigPost.written")
class Written:
    title: str


def handle(event: Any) -> None: ...


def bus() -> EventBus:
    return EventBus(nats="memory://", mongo="memory://", namespace="blog")


def test_a_handler_has_one_consumer_for_each_stream() -> None:
    made = bus()
    made.group("Blog").handler(Renamed, Greeted, Written)(handle)
    specs = made.topology.consumers(made.handlers["Blog.handle"], None)
    assert [(spec.stream.name, spec.name, spec.subjects) for spec in specs] == [
        ("blog_RigUser", "Blog__handle", ("blog.RigUser.greeted", "blog.RigUser.renamed")),
        ("blog_RigPost", "Blog__handle", ("blog.RigPost.written",)),
    ]


def test_events_of_one_first_token_share_a_stream() -> None:
    made = bus()
    stream = made.topology.stream("RigUser.renamed")
    assert made.topology.stream("RigUser.greeted") is stream
    assert stream.subjects == ("blog.RigUser", "blog.RigUser.>")


def test_an_event_listed_twice_is_one_subject() -> None:
    made = bus()
    made.group("Blog").handler(Renamed, Renamed)(handle)
    found = made.handlers["Blog.handle"]
    assert made.topology.consumers(found, None)[0].subjects == ("blog.RigUser.renamed",)
    assert handler_record(found, utcnow()).events == ("RigUser.renamed",)


def test_a_forked_child_does_not_inherit_a_held_lock() -> None:
    made = bus()
    made.topology._lock.acquire()
    made.topology.renew_lock()
    found: list[Any] = []
    reading = threading.Thread(target=lambda: found.append(made.topology.handlers), daemon=True)
    reading.start()
    reading.join(5)
    assert found == [{}]
