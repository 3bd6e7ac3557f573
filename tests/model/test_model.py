"""The same publishers and workers, driven by Hypothesis: it looks for the shortest way to break a law."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.application import EMITS, ENDS, Made
from tests.model.laws import broken_laws
from tests.model.simulator import CALL_FAULTS, Node, Profile, World

MOST_EVENTS = 6
MOST_WORKERS = 3
some = st.integers(0, 20)


class Scripted(World):
    """A world whose calls fail when they are told to: ``armed`` are the faults of the next calls."""

    def __init__(self) -> None:
        self.armed: list[str] = []
        self.next = 1
        super().__init__(0, profile=Profile({}, ()))

    def happens(self, kind: str) -> bool:
        if kind not in self.armed:
            return False
        self.armed.remove(kind)
        return True

    def choose(self, count: int) -> int:
        return self.next % count


class Deliveries(RuleBasedStateMachine):
    """One step is a turn of one task, an arrival of messages, some time, or a fault."""

    @initialize(workers=st.integers(1, 2))
    def begin(self, workers: int) -> None:
        self.world = Scripted()
        self.world.__enter__()
        self.published = 0
        self.publisher: Node | None = None
        for _ in range(workers):
            self.world.start_worker()

    @precondition(lambda self: self.published < MOST_EVENTS)
    @rule(plan=st.sampled_from(sorted(ENDS)), emits=st.sampled_from(EMITS))
    def publish(self, plan: str, emits: str) -> None:
        self.published += 1
        if self.publisher is None:
            self.publisher = self.world.new_node("publisher")
            self.world.publishers.append(self.publisher)
        event = Made(id=f"event-{self.published}", plan=plan, emits=emits)
        self.world.loop.spawn(self.publisher, self.world.publish, self.publisher, event)

    @precondition(lambda self: self.world.loop.ready)
    @rule(which=some, turns=st.integers(1, 12))
    def take_turns(self, which: int, turns: int) -> None:
        self.world.next = which
        for _ in range(turns):
            self.world.loop.step()
            self.world.bury()

    @rule()
    def arrive(self) -> None:
        self.world.pump()

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        """As in good times: whoever is ready has had a turn before time goes on."""
        self.world.loop.rest(self.world.bury)
        self.world.advance(seconds)

    @rule(kind=st.sampled_from(sorted(CALL_FAULTS)), times=st.integers(1, 3))
    def arm(self, kind: str, times: int) -> None:
        """The next calls of this kind fail."""
        self.world.armed += [kind] * times

    @rule(
        kind=st.sampled_from(
            ["disconnect", "outage", "wipe", "forget_acks", "recount", "redeliver", "stall", "retry_dead"]
        )
    )
    def meet(self, kind: str) -> None:
        getattr(self.world, f"do_{kind}")()

    @precondition(lambda self: self.world.workers)
    @rule(kind=st.sampled_from(["kill", "stop"]), which=some)
    def end_a_worker(self, kind: str, which: int) -> None:
        self.world.next = which
        if len(self.world.workers) <= MOST_WORKERS:
            getattr(self.world, f"do_{kind}")()

    @precondition(lambda self: self.publisher)
    @rule()
    def kill_the_publisher(self) -> None:
        assert self.publisher is not None
        self.world.fault("kill_publisher")
        self.world.kill(self.publisher)
        self.publisher = None

    @invariant()
    def nothing_has_been_broken(self) -> None:
        assert self.world.witness.broken == []
        assert self.world.loop.crashed == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            # After a failure the rest would only hide it.
            if not self.world.witness.broken and not self.world.loop.crashed:
                self.world.armed.clear()
                self.world.settle_down()
                assert broken_laws(self.world) == []
        finally:
            self.world.__exit__(None, None, None)


# Without a database of examples: it would be one more directory to keep out of the tree.
FEW = settings(max_examples=60, stateful_step_count=50, deadline=None, database=None)
MANY = settings(FEW, max_examples=1500, stateful_step_count=100, suppress_health_check=[HealthCheck.too_slow])


class TestFew(Deliveries.TestCase):
    settings = FEW


@pytest.mark.faults
@pytest.mark.timeout(900)
class TestMany(Deliveries.TestCase):
    settings = MANY
