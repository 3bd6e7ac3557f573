"""Several publishers and workers on the memory adapters, in virtual time, with faults, all by one seed.

The library runs as it is: real buses and real workers with all their threads, which are tasks of a ``Loop``.
A run ends with the faults: time passes until everything is settled, and then the laws are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from types import TracebackType
from typing import Any

import attrs

from eventdriven_sync.broker import Outgoing
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.bus import EventBus
from eventdriven_sync.config import Settings
from eventdriven_sync.errors import EventDrivenError, PublishOutcomeUnknown, StoreUnavailable
from eventdriven_sync.outcome import FINAL_STATES
from eventdriven_sync.records import delivery_id
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.worker import Worker
from tests.model.application import EMITS, ENDS, HANDLERS, LONG_WORK, Made, stage
from tests.model.servers import FaultyBroker, FaultyStore
from tests.model.virtual import Loop, Process, installed
from tests.model.witness import Fault, Notes, WatchedDeliveries, Witness

SETTINGS = Settings(
    nats="memory://",
    mongo="memory://",
    namespace="sim",
    ack_wait=6.0,
    lease=6.0,
    reconcile_after=1.5,
    reconcile_every=2.0,
    poll_every=1.0,
)
STEPS = 200
WORKERS = 3
PUBLISHERS = 2
EVENTS_EACH = 6
PATIENCE = 300.0

# How often a fault happens: of the first kinds per call of a server, of the others per step.
CALL_FAULTS = {"store": 0.06, "broker": 0.2, "drop": 0.3, "delay": 0.3, "reorder": 0.5, "ack": 0.3}
WORLD_FAULTS = (
    "kill",
    "stop",
    "kill_publisher",
    "outage",
    "disconnect",
    "wipe",
    "forget_acks",
    "redeliver",
    "recount",
    "stall",
    "retry_dead",
)
FAULT_RATE = 0.06
ENABLED = 0.4


@attrs.frozen
class Profile:
    """Which faults a run has. Most runs have a few kinds, so that each is also seen without the others."""

    calls: dict[str, float]
    world: tuple[str, ...]

    @classmethod
    def drawn(cls, random: Random) -> Profile:
        """A profile by chance; one run in ten has no faults at all."""
        share = 0.0 if random.random() < 0.1 else ENABLED
        calls = {kind: rate for kind, rate in CALL_FAULTS.items() if random.random() < share}
        return cls(calls, tuple(kind for kind in WORLD_FAULTS if random.random() < share))


class Node(Process):
    """A process of the application: its bus, and its way to the servers."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.world = world
        self.notes = Notes(self, world.witness)
        self.staged: dict[int, list[tuple[str, str]]] = {}
        self.broker = FaultyBroker(world, self)
        self.bus = EventBus(settings=SETTINGS, broker=self.broker, store=FaultyStore(world, self))  # type: ignore[arg-type]
        for handler in world.handlers.values():
            self.bus.topology.add(handler)
        self.worker: Worker | None = None
        self.stopping = False
        self.gone = False

    def check(self) -> None:
        """Nothing can be told to anybody by a process that was killed."""
        if self.dead:
            self.world.loop.pause()

    def pause(self) -> None:
        """Others take their turns."""
        self.world.loop.pause()

    def draws(self, kind: str) -> bool:
        """Whether this fault happens now."""
        if not self.world.happens(kind):
            return False
        self.world.fault(kind, self if kind == "store" else None)
        return True

    def draws_half(self) -> bool:
        """Whether it is the one or the other."""
        return self.world.choose(2) == 0

    def ask_store(self, call: Callable[[], Any], *, read: bool) -> Any:
        """One call of the store."""
        self.check()
        # Others take their turns while the request is on its way, or while the answer is.
        travels = self.draws_half()
        if travels:
            self.world.loop.pause()
        lost = self.draws("store")
        if lost and (read or self.draws_half()):
            self.world.loop.sleep(1.0)
            raise StoreUnavailable("simulated: timed out, and nothing was done")
        if self.world.store.unavailable:
            self.world.fault("store", self)
            self.world.loop.sleep(1.0)
            raise StoreUnavailable("simulated: the store is away")
        answer = call()
        if lost:
            # What was stored is dispatched late, after the call was repeated.
            self.world.fault("delay")
            self.world.loop.sleep(1.0)
            raise PublishOutcomeUnknown("simulated: timed out, but it was done")
        if not travels:
            self.world.loop.pause()
        return answer

    def commit(self, rows: list[tuple[str, str]]) -> None:
        """A transaction of this process went through, just now."""
        self.world.witness.commit(rows)


class World:
    """The servers, the processes and their history. A context manager: the library runs in its time inside.

    Args:
        seed: says everything that happens.
    """

    def __init__(self, seed: int, *, profile: Profile | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.profile = profile or Profile.drawn(self.random)
        self.loop = Loop(self.choose)
        self.witness = Witness()
        self.store = MemoryStore(clock=self.loop.clock)
        self.deliveries = WatchedDeliveries(self.witness, lambda: self.loop.turns)
        self.store._state._tables.deliveries = self.deliveries
        self.broker = MemoryBroker(clock=self.loop.clock, manual=True)
        names = [name for name in HANDLERS if name in ("Blog.keep", "Audit.note") or self.choose(2)]
        self.handlers = {name: HANDLERS[name] for name in names}
        self.workers: list[Node] = []
        self.publishers: list[Node] = []
        self._plans = [plan for plan in ENDS if plan != "poison" or "kill" in self.profile.world]
        self._delayed: list[tuple[float, Outgoing]] = []
        self._away_since: float | None = None
        self._names = 0
        self._stack = ExitStack()

    def __enter__(self) -> World:
        self._stack.enter_context(installed(self.loop))
        stage.world = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [*self.workers, *self.publishers]:
            self.loop.kill(node)
        stage.world = None
        self._stack.close()

    # --- chance ---------------------------------------------------------------------------------------

    def choose(self, count: int) -> int:
        """One of so many."""
        return int(self.random.random() * count)

    def happens(self, kind: str) -> bool:
        """Whether a call meets this fault."""
        rate = self.profile.calls.get(kind)
        return rate is not None and self.random.random() < rate

    def shuffle(self, items: list[Any]) -> None:
        """Bring them into another order."""
        self.random.shuffle(items)

    def fault(self, kind: str, node: Node | None = None) -> None:
        """Note that this was done."""
        self.witness.faults.append(Fault(self.loop.turns, kind, node.name if node else ""))

    # --- processes ------------------------------------------------------------------------------------

    def run(self, steps: int = STEPS) -> None:
        """Publishers and workers begin, so many things happen, and all comes to its end without faults."""
        for _ in range(PUBLISHERS):
            self.start_publisher()
        for _ in range(1 + self.choose(WORKERS)):
            self.start_worker()
        for _ in range(steps):
            self.step()
        self.settle_down()

    def start_publisher(self) -> None:
        """A process that publishes a few events."""
        node = self.new_node("publisher")
        self.publishers.append(node)
        self.loop.spawn(node, self._publish, node)

    def start_worker(self) -> None:
        """A process that runs every handler."""
        node = self.new_node("worker")
        self.workers.append(node)
        self.loop.spawn(node, self._work, node)

    def new_node(self, kind: str) -> Node:
        self._names += 1
        return Node(self, f"{kind}-{self._names}")

    def _work(self, node: Node) -> None:
        try:
            node.worker = Worker(node.bus, threads=2).start()
        except EventDrivenError:
            node.gone = True

    def _stop(self, node: Node, grace: float) -> None:
        assert node.worker is not None
        node.worker.stop(grace=grace)
        node.gone = True

    def _publish(self, node: Node) -> None:
        for number in range(EVENTS_EACH):
            self.loop.sleep(0.5 * self.choose(4))
            plan = self._plans[self.choose(len(self._plans))] if self.choose(2) else "ok"
            event = Made(id=f"{node.name}-{number}", plan=plan, emits=EMITS[self.choose(3)])
            self.publish(node, event)

    def publish(self, node: Node, event: Made) -> None:
        """Publish, and perhaps again while that fails; called by a task of the node."""
        while not self._accepted(node, event) and self.choose(2):
            pass

    def _accepted(self, node: Node, event: Made) -> bool:
        self.witness.refused.discard(event.id)
        try:
            if self.choose(3):
                node.bus.publish(event, event_id=event.id)
            else:
                with node.bus.transaction() as session:
                    node.staged[id(session)].append(("row", event.id))
                    node.bus.publish(event, event_id=event.id)
        except PublishOutcomeUnknown:
            self.witness.unsure.add(event.id)
            return False
        except StoreUnavailable:
            self.witness.refused.add(event.id)
            return False
        self.witness.accepted.append(event.id)
        return True

    def kill(self, node: Node) -> None:
        """End a process at once."""
        self.loop.kill(node)
        for consumption in node.broker.consumptions:
            consumption.cut()
            self.broker._consumptions.remove(consumption.inner)
        (self.workers if node in self.workers else self.publishers).remove(node)

    def die(self, node: Node) -> None:
        """A process kills itself; called by one of its tasks."""
        self.fault("kill", node)
        node.gone = True
        self.loop.park(None, None)

    # --- steps ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens: a fault, a turn of a task, an arrival of messages, or time passes."""
        if self.profile.world and self.random.random() < FAULT_RATE:
            kind = self.profile.world[self.choose(len(self.profile.world))]
            getattr(self, f"do_{kind}")()
        elif not self._anybody():
            self.advance(min(self.loop.to_next_deadline(), 1.0))
        self.bury()

    def _anybody(self) -> bool:
        """A task has a turn, or messages arrive; False if all wait."""
        arrives = self.choose(len(self.loop.ready) + 1) == 0
        return bool(arrives and self.pump()) or self.loop.step()

    def bury(self) -> None:
        """Workers that stopped, or could not start, are processes that ended; others take their place."""
        for node in [node for node in self.workers if node.gone]:
            self.kill(node)
        if not self.workers:
            self.start_worker()

    def pump(self) -> int:
        """Messages arrive; how many."""
        return self.broker.pump()

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.loop.advance(seconds)
        due = [message for at, message in self._delayed if at <= self.loop.now]
        self._delayed = [(at, message) for at, message in self._delayed if at > self.loop.now]
        self.broker.dispatch(due)

    def delay(self, message: Outgoing) -> None:
        """It reaches the broker later."""
        self._delayed.append((self.loop.now + 6.0 * self.random.random(), message))

    # --- faults ---------------------------------------------------------------------------------------

    def do_kill(self) -> None:
        """A worker dies where it stands, and another one is started."""
        if self.workers:
            node = self.workers[self.choose(len(self.workers))]
            self.fault("kill", node)
            self.kill(node)
            self.start_worker()

    def do_stop(self) -> None:
        """A worker is told to stop, with or without time for what runs."""
        node = self.workers[self.choose(len(self.workers))] if self.workers else None
        if node is not None and node.worker is not None and not node.stopping:
            node.stopping = True
            grace = 2 * LONG_WORK * self.choose(2)
            if not grace:
                self.fault("stop", node)
            self.loop.spawn(node, self._stop, node, grace, name="stop")
            self.start_worker()

    def do_kill_publisher(self) -> None:
        """A publisher dies where it stands."""
        if self.publishers:
            self.fault("kill_publisher")
            self.kill(self.publishers[self.choose(len(self.publishers))])

    def do_outage(self) -> None:
        """The store goes away, or comes back."""
        self.fault("outage")
        self.store.unavailable = not self.store.unavailable

    def do_disconnect(self) -> None:
        """The broker goes away, or comes back; what was in hand for too long is delivered again."""
        self.fault("disconnect")
        if self._away_since is None:
            self._away_since = self.loop.now
            self.broker.disconnect()
            return
        away, self._away_since = self.loop.now - self._away_since, None
        self.broker.connect()
        if away > SETTINGS.ack_wait:
            self.do_redeliver()

    def do_wipe(self) -> None:
        """The broker loses its disk."""
        self.fault("wipe")
        self.broker.wipe()

    def do_forget_acks(self) -> None:
        """The broker crashed and lost acknowledgements: they come again as if for the first time."""
        self.fault("forget_acks")
        self.broker.forget_acks()

    def do_redeliver(self) -> None:
        """Signals that keep messages in hand were lost: they come again while somebody works on them."""
        self.fault("redeliver")
        self.broker.redeliver()

    def do_recount(self) -> None:
        """The broker crashed and counts deliveries from 1 again."""
        self.fault("recount")
        self.broker.forget_counts()

    def do_stall(self) -> None:
        """Nobody had a turn for a while: a machine that swapped, a virtual machine that was moved."""
        self.fault("stall")
        self.advance(2.0 + 6.0 * self.random.random())

    def do_retry_dead(self) -> None:
        """A person sends dead letters back."""
        if not self.store.unavailable:
            self.fault("retry_dead")
            self.store.deliveries.retry_dead(DeliveryQuery(), by="ada")

    # --- the end --------------------------------------------------------------------------------------

    def settle_down(self) -> None:
        """No faults any more: go on until all is settled, and long enough for what comes again."""
        self.profile = Profile({}, ())
        self.store.unavailable = False
        self.broker.connect()
        until = self.loop.now + PATIENCE
        while not self.settled() and self.loop.now < until:
            self.rest(1.5)
        self.rest(2.5 * SETTINGS.ack_wait)
        self.rest(1.5)

    def rest(self, seconds: float) -> None:
        """Everybody does what there is to do, then time passes."""
        while self.loop.ready or self.pump():
            self.loop.rest(self.bury)
        self.advance(seconds)

    def settled(self) -> bool:
        """Whether nobody publishes and every accepted event is settled."""
        if any(node.tasks for node in self.publishers):
            return False
        found = (self.deliveries.get(key) for key in self.owed())
        return all(record is not None and record.state in FINAL_STATES for record in found)

    def owed(self) -> dict[str, Any]:
        """Every delivery there must be, with its event's payload: of all that was stored."""
        stored = self.store._state._tables.events.values()
        return {
            delivery_id(handler.name, event.id): event.data
            for event in stored
            for handler in self.handlers.values()
            if handler.event_type(event.name)
        }
