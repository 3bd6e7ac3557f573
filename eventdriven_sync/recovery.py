"""The recovery lane: deliveries that are due are claimed from the store and run by the same executor.

Retries, dead letters sent back, events the broker lost and deliveries whose worker died all come this way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial

from eventdriven_sync.attempt import RENEWED_BELOW, Attempt
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import StoreError
from eventdriven_sync.handlers import Handler
from eventdriven_sync.lanes import Lane
from eventdriven_sync.pool import Pool
from eventdriven_sync.pulse import Pulse
from eventdriven_sync.records import Delivery
from eventdriven_sync.settling import NEVER, Leases
from eventdriven_sync.store import Store

log = logging.getLogger(__name__)

# After an error of the store; its own client retries more finely while it waits.
PAUSE_AFTER_ERROR = 1.0
# While more is due than was claimed, and at least between two looks.
BREATH = 0.01
# Leases are looked after so many times in their length: what is renewed then has half of it left, for a store
# that is away.
LOOKS = 6


class RecoveryLane:
    """A thread that claims what is due, as much as the pool can take, and renews the leases.

    Args:
        lanes: by handler name.
        max_lost: starts without outcome after which a delivery is dead.
        poll_every: seconds between two looks when nothing is known to be due earlier.

    Attributes:
        pulse: of its thread.
    """

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        lanes: Mapping[str, Lane],
        leases: Leases,
        worker: str,
        lease: float,
        poll_every: float,
        max_lost: int = 3,
    ) -> None:
        self._store = store
        self._pool = pool
        self._lanes = lanes
        self._leases = leases
        self._worker = worker
        self._lease = lease
        self._poll_every = poll_every
        self._max_lost = max_lost
        self._changed = threading.Condition()  # guards _claiming, _stopping and _next_look
        self._claiming = True
        self._stopping = False
        self._next_look = self._renewed = time.monotonic()
        self._more_is_due = False
        self._thread = threading.Thread(target=self._run, name="eventdriven-recovery", daemon=True)
        self.pulse = Pulse(self._thread, pause=max(poll_every, PAUSE_AFTER_ERROR))

    def start(self) -> None:
        """Start the thread."""
        self.pulse.start()

    def stop(self) -> None:
        """Claim nothing more. Leases are still renewed until ``join``."""
        with self._changed:
            self._claiming = False

    def join(self, timeout: float) -> None:
        """End the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join(timeout)

    def expect(self, seconds: float) -> None:
        """Something is due after so many seconds: look then, and not only when it is time anyway."""
        at = time.monotonic() + max(seconds, BREATH)
        with self._changed:
            if at < self._next_look:
                self._next_look = at
                self._changed.notify_all()

    def claim(self) -> int:
        """Claim what is due and the pool can take; how many."""
        handlers, room = self._room()
        if room <= 0:
            return 0
        token = new_id()
        claimed = self._store.deliveries.claim_due(
            handlers, limit=room, lease=self._lease, worker=self._worker, token=token
        )
        postponed = self._postpone(claimed, token)
        kept = [delivery for delivery in claimed if delivery.id not in postponed]
        for name in dict.fromkeys(delivery.handler for delivery in kept):
            lane = self._lanes[name]
            attempts = [_attempt(lane.handler, each) for each in kept if each.handler == name]
            self._leases.hold(attempts)
            self._pool.offer(lane, attempts)
        return len(kept)

    def renew(self) -> None:
        """Prolong the leases of what is held; an attempt that lost its lease may publish no more.

        A lease that was prolonged lately is left alone, and only the store can say so: a transaction does
        it right before it begins, and a renewal that comes after that makes it run again.
        """
        for token, attempts in self._leases.held().items():
            lost = self._store.deliveries.renew(
                list(attempts), token=token, lease=self._lease, ending_within=self._lease * RENEWED_BELOW
            )
            for delivery_id in lost:
                handling = attempts[delivery_id].handling
                if handling:
                    handling.abandoned = True
            self._leases.drop([attempts[delivery_id] for delivery_id in lost])

    def _postpone(self, claimed: Sequence[Delivery], token: str) -> set[str]:
        """Give back all but one of those on their last chance: of them one runs at a time in this process.

        When it dies again, that one is to blame, and not what happened to be claimed beside it. So they go
        back before anything is offered.
        """
        suspects = [delivery.id for delivery in claimed if self._last_chance(delivery)]
        held = [a.delivery for attempts in self._leases.held().values() for a in attempts.values()]
        if not any(self._last_chance(delivery) for delivery in held if delivery):
            suspects = suspects[1:]
        try:
            self._store.deliveries.release(suspects, token=token)
        except StoreError as error:
            # Left alone they would count as lost once more when the lease ends.
            log.warning("Deliveries on their last chance run side by side: %s", error)
            return set()
        return set(suspects)

    def _last_chance(self, delivery: Delivery) -> bool:
        return max(1, self._max_lost - 1) <= delivery.lost < self._max_lost

    def _room(self) -> tuple[list[str], int]:
        """Which handlers could take claimed deliveries, and how many each of them at least.

        A handler gets no more than its share: retries that run long leave room for those of the others.
        """
        held = self._leases.by_handler()
        free = {name: lane.share - held[name] for name, lane in self._lanes.items()}
        # Only what is half empty is asked for: else a busy handler would have every claim cut to one.
        handlers = [n for n, lane in self._lanes.items() if 2 * free[n] >= lane.share and not lane.paused]
        return handlers, min((free[name] for name in handlers), default=0) if self._claiming else 0

    def _run(self) -> None:
        while self._slept():
            self.pulse.beat()
            try:
                pause = self._round()
                self.pulse.well()
            except StoreError as error:
                log.warning("The recovery lane waits for the event store: %s", error)
                pause = PAUSE_AFTER_ERROR
            except Exception:
                log.exception("The recovery lane met an unexpected error and goes on")
                pause = PAUSE_AFTER_ERROR
            self.expect(pause)

    def _slept(self) -> bool:
        """Wait until it is time to look; False when told to stop."""
        with self._changed:
            while not self._stopping and (left := self._next_look - time.monotonic()) > 0:
                self._changed.wait_for(partial(self._is_earlier, self._next_look), timeout=left)
            self._next_look = NEVER  # what is expected from now on counts
            return not self._stopping

    def _is_earlier(self, moment: float) -> bool:
        return self._stopping or self._next_look < moment

    def _round(self) -> float:
        now = time.monotonic()
        if now - self._renewed >= self._lease / LOOKS:
            self.renew()
            self._renewed = now
        room = self._room()[1]
        if room > 0:
            # A full claim means that more may be due; one that found less was all there was.
            self._more_is_due = self.claim() >= room
        if self._more_is_due:
            return BREATH
        return min(self._poll_every, max(BREATH, self._renewed + self._lease / LOOKS - time.monotonic()))


def _attempt(handler: Handler, delivery: Delivery) -> Attempt:
    return Attempt(
        handler=handler, delivery=delivery, event=delivery.event, token=delivery.token, checked=True
    )
