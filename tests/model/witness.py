"""What really happened, written down by publishers and handlers, and the laws it is held against.

The witness does not believe the library's tables: they are what it checks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync.broker import ConsumerSpec, Incoming
from eventdriven_sync.outcome import MOVES
from eventdriven_sync.records import Delivery, Settlement, delivery_id

if TYPE_CHECKING:
    from tests.model.simulator import Node

# What may make a handler run again although it had returned. A lost acknowledgement, a message that comes
# twice, late or out of order after its outcome was recorded, and whatever befalls a publisher may not.
EXPLAIN = {"kill", "stop", "slow", "stall", "store", "redeliver", "wipe", "delay"}

# What may make the reconciler bring an event: without these the broker delivers every one of them.
LOSE = {"kill", "stop", "stall", "store", "wipe", "delay", "drop", "disconnect", "kill_publisher", "slow"}


@attrs.define(eq=False, kw_only=True)
class Run:
    """One start of a handler for one event.

    Attributes:
        knew: when its process was last told by the store that this should run.
        number: the how many-th start this is.
        raised_before: how many starts of the same raised because the event asked for it.
    """

    handler: str
    event_id: str
    node: str
    began: int
    knew: int
    number: int
    raised_before: int
    how: str = "running"


@attrs.frozen
class Fault:
    """Something that was done to a process, or to everybody (no node)."""

    turn: int
    kind: str
    node: str


class Witness:
    """Lists that publishers and handlers append to.

    Attributes:
        accepted: ids of events whose ``publish`` returned.
        refused: ids of events of which ``publish`` said that nothing was stored.
        unsure: ids of events of which ``publish`` said that it does not know.
        effects: what transactions of handlers wrote, by handler and event.
        rows: what transactions of publishers wrote beside their event.
        children: ids of the events published while handling an event.
        broken: the laws that were seen broken, in words.
        unheard: how often the store was told that a delivery begins, and whoever told it died before it did.
    """

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.refused: set[str] = set()
        self.unsure: set[str] = set()
        self.runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self.effects: Counter[tuple[str, str]] = Counter()
        self.rows: list[str] = []
        self.children: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.faults: list[Fault] = []
        self.broken: list[str] = []
        self.succeeded: dict[str, int] = {}
        self.unheard: Counter[str] = Counter()

    def commit(self, rows: Iterable[tuple[str, str]]) -> None:
        """A transaction went through."""
        for kind, event_id in rows:
            if kind == "row":
                self.rows.append(event_id)
            else:
                self.effects[kind, event_id] += 1
                self.runs[kind, event_id][-1].how = "returned"

    def explained(self, first: Run, second: Run) -> bool:
        """Whether a fault explains the second start.

        One of their processes after the first was admitted, a stop (which lasts), or one of the broker at any
        time before: the message may have been in hand for long.
        """
        return any(
            fault.kind in EXPLAIN
            and fault.turn <= second.began
            and fault.node in ("", first.node, second.node)
            and (not fault.node or fault.kind == "stop" or fault.turn >= first.knew)
            for fault in self.faults
        )


class Notes:
    """What one process tells the witness: its handlers, and what it was told by the store.

    Methods that are named like a call of the store are told its answer at the moment it was given. Each
    message may be acknowledged once for each time the store said that it has the delivery: a result that
    was fenced off permits nothing.
    """

    def __init__(self, node: Node, witness: Witness) -> None:
        self._node = node
        self._witness = witness
        # By delivery: when the store said that it may run, and under which token, once it has one.
        self._knows: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._permits: Counter[str] = Counter()

    @property
    def _turn(self) -> int:
        return self._node.world.loop.turns

    def begin(self, handler: str, event_id: str) -> Run:
        """A handler has been called."""
        key = delivery_id(handler, event_id)
        earlier = self._witness.runs[handler, event_id]
        run = Run(
            handler=handler,
            event_id=event_id,
            node=self._node.name,
            began=self._turn,
            knew=max((turn for turn, _ in self._knows[key]), default=-1),
            number=len(earlier) + 1,
            raised_before=sum(run.how == "raised" for run in earlier),
        )
        self._check_begin(run, key, earlier)
        earlier.append(run)
        return run

    def _check_begin(self, run: Run, key: str, earlier: Sequence[Run]) -> None:
        broken, recorded = self._witness.broken, self._witness.succeeded.get(key)
        if run.knew < 0:
            broken.append(f"{key} runs although the store was not asked, or said that it should not")
        if recorded is not None and run.knew >= recorded:
            broken.append(f"{key} runs on knowledge younger than its recorded success")
        for before in earlier:
            if before.how == "returned" and not self._witness.explained(before, run):
                broken.append(f"{key} runs again without a reason: {before} then {run}")

    def emitted(self, run: Run, child: str) -> None:
        """A handler has published."""
        self._witness.children[run.handler, run.event_id].add(child)

    def acknowledged(self, spec: ConsumerSpec, messages: Sequence[Incoming]) -> None:
        """These are being acknowledged."""
        for message in messages:
            key = f"{spec.name.replace('__', '.')}:{message.headers['Nats-Msg-Id']}"
            if key not in self._node.world.deliveries:
                self._witness.broken.append(f"{key} is acknowledged and not recorded")
            self._permits[key] -= 1
            if self._permits[key] < 0:
                self._witness.broken.append(f"{key} is acknowledged more often than the store permits")

    # --- answers of the store -------------------------------------------------------------------------

    def states(self, answer: Mapping[str, str], delivery_ids: Sequence[str]) -> None:
        self._permits.update(key for key in delivery_ids if key in answer)
        self._know(key for key in delivery_ids if key not in answer)

    def claim_due(self, answer: Sequence[Delivery], *_: Any, token: str, **__: Any) -> None:
        self._know((each.id for each in answer), token)

    def renew(
        self, answer: set[str], delivery_ids: Sequence[str], *, token: str, begun: bool = False, **_: Any
    ) -> None:
        self._witness.unheard.update(delivery_ids if begun else ())
        for key in delivery_ids:
            if key not in answer and self._forget(key, token) is not None:
                self._know([key], token)

    def settle(self, answer: Sequence[bool], settlements: Sequence[Settlement]) -> None:
        self._permits.update(each.delivery_id for each, ok in zip(settlements, answer, strict=True) if ok)

    # What a process is refused counts from when it hears of it.

    def heard_start(self, answer: Sequence[bool], deliveries: Sequence[Delivery], **_: Any) -> None:
        for each, ok in zip(deliveries, answer, strict=True):
            turn = self._forget(each.id, "")
            if ok and turn is not None:
                self._knows[each.id].append((turn, each.token))
            self._permits[each.id] += not ok

    def heard_renew(
        self, answer: set[str], delivery_ids: Sequence[str], *, token: str, begun: bool = False, **_: Any
    ) -> None:
        self._witness.unheard.subtract(delivery_ids if begun else ())
        for key in answer:
            self._permits[key] += 1
            self._forget(key, token)

    def _know(self, keys: Iterable[str], token: str = "") -> None:
        for key in keys:
            self._knows[key].append((self._turn, token))

    def _forget(self, key: str, token: str) -> int | None:
        """What one attempt was told no longer holds; when it was told."""
        for index, (turn, known) in enumerate(self._knows[key]):
            if known == token:
                del self._knows[key][index]
                return turn
        return None


class WatchedDeliveries(dict[str, Delivery]):
    """The store's table of deliveries: every change of it is held against the allowed moves."""

    def __init__(self, witness: Witness, turn: Callable[[], int]) -> None:
        super().__init__()
        self._witness = witness
        self._turn = turn

    def __setitem__(self, key: str, new: Delivery) -> None:
        old = self.get(key)
        wrong = _wrong_move(old, new) or self._wrongly_brought(old, new)
        if wrong:
            self._witness.broken.append(f"{key}: {wrong}, from {old} to {new}")
        if new.state == "succeeded":
            self._witness.succeeded.setdefault(key, self._turn())
        super().__setitem__(key, new)

    def _wrongly_brought(self, old: Delivery | None, new: Delivery) -> str:
        lost = any(fault.kind in LOSE for fault in self._witness.faults)
        return "" if old or new.state != "pending" or lost else "brought although nothing was lost"

    def update(self, changes: Any, /) -> None:  # type: ignore[override]
        for key, new in changes.items() if isinstance(changes, Mapping) else changes:
            self[key] = new


def _wrong_move(old: Delivery | None, new: Delivery) -> str:
    """What is wrong with this change, or nothing."""
    state = old.state if old else None
    if new.state not in MOVES[state]:
        return f"{state} -> {new.state} is no move"
    if old is None or old.state != "running":
        same_token = old is not None and new.state == "running" and new.token == old.token
        return "claimed without a token of its own" if same_token else ""
    if new.state == "running":
        renewed = new.token == old.token and new.attempts == old.attempts
        if not renewed and new.lost != old.lost + old.begun:
            return "taken over without being counted as lost, or counted although it had not begun"
        return "changed its mind: it had begun" if renewed and old.begun > new.begun else ""
    if new.state == "retrying" and new.attempts == old.attempts - 1:
        return "given back and still owned" if new.token else ""
    return "" if new.token == old.token else "settled by somebody who does not own it"
