"""Whether the event store has what NATS alone accepted until a moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eventdriven_sync.broker import ConsumerSpec
from eventdriven_sync.errors import BrokerUnavailable

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

log = logging.getLogger(__name__)


class Recorded:
    """Tells a look at the store that misses nothing from one that came too early. For one thread.

    Looks are compared by how many events they found. One that finds as many as a look before it, between
    which the recorders passed what their streams held at that time, has found all.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._found = -1
        self._ends: dict[str, int] = {}
        self._passed = False

    def all_of(self, found: int) -> bool:
        """Whether a look that found so many events has found all that were accepted before the first look."""
        specs = self._bus.topology.recorders()
        if not specs or (self._passed and found == self._found):
            return True
        try:
            if found != self._found:
                self._ends = self._read_ends(specs)
                self._found, self._passed = found, False
            self._passed = all(self._is_past(spec) for spec in specs)
        except BrokerUnavailable as error:
            log.info("What is not recorded yet is not known: %s", error)
        return False

    def _read_ends(self, specs: Sequence[ConsumerSpec]) -> dict[str, int]:
        timeout = self._bus.settings.broker_timeout
        return {
            state.name: state.last_sequence
            for spec in specs
            for state in self._bus.broker.streams(spec.stream.name, timeout=timeout)
        }

    def _is_past(self, spec: ConsumerSpec) -> bool:
        end = self._ends.get(spec.stream.name, 0)
        state = self._bus.broker.consumer_state(
            spec.stream.name, spec.name, timeout=self._bus.settings.broker_timeout
        )
        return not end or (state is not None and state.acknowledged >= end)


def unrecorded(bus: EventBus, tokens: Sequence[str]) -> int:
    """How many messages the recorders of these streams have not looked at; stored events are among them.

    Raises:
        BrokerUnavailable: it cannot be asked.
    """
    timeout = bus.settings.broker_timeout
    specs = [bus.topology.recorder(token) for token in tokens]
    states = [bus.broker.consumer_state(each.stream.name, each.name, timeout=timeout) for each in specs]
    return sum(state.pending + state.ack_pending for state in states if state)
