"""Page views, which the broker alone accepts, and a group that counts them and publishes what it counted."""

import attrs
from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import EventBus, RetryPolicy, event
from tests.apps.witness import Witness


@event("Page.viewed", key="page", durability="broker")
@attrs.frozen(kw_only=True)
class PageViewed:
    """A view.

    Attributes:
        fails: how often its handler fails before it succeeds.
    """

    number: int
    page: str = "home"
    fails: int = 0


@event("Visit.counted")
@attrs.frozen(kw_only=True)
class VisitCounted:
    number: int


QUICK = RetryPolicy(stop=stop_after_attempt(5), wait=wait_fixed(0.05))


def build(bus: EventBus, witness: Witness) -> None:
    counting = bus.group("Counting")

    @counting.handler(PageViewed, retry=QUICK)
    def count(view: PageViewed) -> None:
        witness.note("start", number=view.number)
        if view.fails and len(witness.notes("start", number=view.number)) <= view.fails:
            raise RuntimeError("not yet")
        counting.publish(VisitCounted(number=view.number))
        witness.note("end", number=view.number)
