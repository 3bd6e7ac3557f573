"""Sending whole groups of dead letters back: a few first, the others step by step while those succeed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from eventdriven_sync.jobs import RetryJob
from eventdriven_sync.outcome import FINAL_STATES
from eventdriven_sync.store import DeliveryQuery, Store

log = logging.getLogger(__name__)

CHUNK = 500
# Letters sent back and not settled yet, of one job: more are held until some are.
MOST_OPEN = 5000
# Seconds for the steps of one round.
PATIENCE = 2.0
MOST_JOBS = 20


def letters_of(job: RetryJob) -> DeliveryQuery:
    """The dead letters a job has still to send back."""
    return DeliveryQuery(
        states=("dead",),
        handler=job.handler,
        fingerprint=job.fingerprint,
        since=job.since,
        until=job.until,
        died_before=job.created_at,
        limit=CHUNK,
        brief=True,
    )


class GroupRetries:
    """Takes the steps of group retries. For one thread; whoever calls it leads.

    All that is known of a job is in the store, and every step may be repeated: a process that dies, or
    loses the lead, leaves it to the next.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def round(self) -> int:
        """Take steps of every job that is not over, for a few seconds at most; how many."""
        deadline = time.monotonic() + PATIENCE
        steps = 0
        for job in reversed(self._store.jobs.find(over=False, limit=MOST_JOBS)):
            current: RetryJob | None = job
            while current is not None and not current.over and time.monotonic() < deadline:
                steps += 1
                if not self._step(current):
                    break
                current = self._store.jobs.get(job.id)
        return steps

    def _step(self, job: RetryJob) -> bool:
        """Whether there is something to do at once."""
        if job.state == "canary":
            return self._send_canaries(job) if not job.canaries else self._look_at_canaries(job)
        return self._send_more(job)

    def _send_canaries(self, job: RetryJob) -> bool:
        found = self._store.deliveries.find(letters_of(job))[: job.canary]
        if not found:
            return self._end(job, "done", "nothing was left to send back")
        # On record before they are sent: whoever goes on must not choose others.
        return self._change(job, canaries=tuple(letter.id for letter in found))

    def _look_at_canaries(self, job: RetryJob) -> bool:
        query = DeliveryQuery(ids=job.canaries, states=("dead",), died_before=job.created_at)
        self._store.deliveries.retry_dead(query, by=job.by, job=job.id)
        states = self._store.deliveries.states(job.canaries)
        dead = [state for state in states.values() if state == "dead"]
        if dead:
            self._change(job, moved=len(job.canaries))
            return self._end(job, "stopped", f"{len(dead)} of the first {len(states)} died again")
        if any(state not in FINAL_STATES for state in states.values()):
            self._change(job, moved=len(job.canaries))
            return False
        return self._change(job, state="running", moved=len(job.canaries))

    def _send_more(self, job: RetryJob) -> bool:
        counts = self._store.deliveries.count(DeliveryQuery(job=job.id))
        dead, moved = counts.get("dead", 0), sum(counts.values())
        if job.canary and dead > max(job.canary, moved // 10):
            return self._end(job, "stopped", f"{dead:,} of {moved:,} died again", moved=moved)
        if sum(count for state, count in counts.items() if state not in FINAL_STATES) >= MOST_OPEN:
            self._change(job, moved=moved)
            return False
        ids = tuple(letter.id for letter in self._store.deliveries.find(letters_of(job)))
        if not ids:
            return self._end(job, "done", "", moved=moved)
        query = DeliveryQuery(ids=ids, states=("dead",), died_before=job.created_at)
        sent = self._store.deliveries.retry_dead(query, by=job.by, job=job.id)
        return self._change(job, moved=moved + sent)

    def _end(self, job: RetryJob, state: str, note: str, **fields: Any) -> bool:
        self._change(job, state=state, note=note, finished_at=self._store.directory.now(), **fields)
        log.info("Group retry %s of %s: %s %s", job.id, job.handler, state, note)
        return False

    def _change(self, job: RetryJob, **fields: Any) -> bool:
        """False if somebody ended it meanwhile."""
        changed: Mapping[str, Any] = fields | {"advanced_at": self._store.directory.now()}
        return self._store.jobs.change(job.id, changed)
