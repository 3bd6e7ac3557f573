"""Jobs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from eventdriven_sync.jobs import RetryJob
from eventdriven_sync.stores.memory.events import page
from eventdriven_sync.stores.memory.state import State


class MemoryJobs:
    """The ``Jobs`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add(self, job: RetryJob) -> None:
        """Store a new job."""
        with self._state.open() as tables:
            tables.jobs[job.id] = job

    def get(self, job_id: str) -> RetryJob | None:
        """The job, or None."""
        with self._state.open() as tables:
            return tables.jobs.get(job_id)

    def find(self, *, over: bool | None = None, after: str | None = None, limit: int) -> list[RetryJob]:
        """Jobs, newest first; only those that are over, or are not, if asked for."""
        with self._state.open() as tables:
            found = [job for job in tables.jobs.values() if over is None or job.over == over]
        return page(found, order=lambda job: (job.created_at, job.id), after=after, limit=limit)

    def change(self, job_id: str, fields: Mapping[str, Any]) -> bool:
        """Change fields of a job unless it is over. False if it is, or is unknown."""
        with self._state.open() as tables:
            job = tables.jobs.get(job_id)
            if job is None or job.over:
                return False
            tables.jobs[job_id] = evolve(job, **fields)
            return True
