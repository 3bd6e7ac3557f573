"""One delivery of one event, and the calls a worker makes for it."""

from typing import Any

import attrs

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import Outcome
from eventdriven_sync.records import Delivery
from tests.contracts.samples import Samples
from tests.contracts.stages import StoreStage

LONG = 60.0


class Lane:
    """Short names for one delivery: its event, its id, its record and its moves."""

    def __init__(self, stage: StoreStage, given: Samples) -> None:
        self.stage = stage
        self.given = given
        self.deliveries = stage.store.deliveries
        self.event = given.event()
        self.id = f"{given.handler}:{self.event.id}"

    @property
    def record(self) -> Delivery:
        record = self.deliveries.get(self.id)
        assert record is not None
        return record

    def settle(self, outcome: Outcome, *, token: str = "live-1", claimed: bool = False, **more: Any) -> bool:
        settlement = self.given.settlement(self.event, outcome, token=token, claimed=claimed)
        [recorded] = self.deliveries.settle([attrs.evolve(settlement, **more)])
        return recorded

    def start(self, *, token: str = "slow-1", lease: float = LONG) -> bool:
        record = self.given.delivery(self.event, state="running", attempts=1, token=token)
        [started] = self.deliveries.start([record], lease=lease)
        return started

    def insert(self, *events: Envelope) -> int:
        return self.deliveries.insert_pending([self.given.delivery(e) for e in events or [self.event]])

    def claim(self, token: str = "claim-1", *, limit: int = 10, lease: float = LONG) -> list[Delivery]:
        return self.deliveries.claim_due(
            [self.given.handler], limit=limit, lease=lease, worker="host:2", token=token
        )

    def reach(self, state: str) -> str:
        """Bring the delivery into this state; return the token of its record."""
        if state == "pending":
            self.insert()
        elif state == "running":
            self.start(token="owner")
        else:
            self.settle(self.given.outcome(state), token="owner")
        assert self.record.state == state
        return "owner"
