"""Jobs: a whole group of dead letters sent back, as a record that any process can go on with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

import attrs

JobState = Literal["canary", "running", "done", "cancelled", "stopped"]
OVER: frozenset[str] = frozenset({"done", "cancelled", "stopped"})
MAX_CANARIES = 100
# A job whose next step is this late, in seconds, has nobody who takes it.
STALLED = 60.0


@attrs.frozen(kw_only=True)
class RetryJob:
    """Dead letters of one cause being sent back: a few first, the others while those succeed.

    Whichever worker leads takes its steps. Letters that died after it began are not its business.

    Attributes:
        id: 24 hex digits; letters it sent back remember it as ``job``.
        handler: ``Group.handler``.
        fingerprint: of the last error; None is every dead letter of the handler.
        since, until: letters whose first attempt was in ``[since, until)``.
        by: who began it.
        canary: how many are sent back and awaited first; 0 begins with all.
        state: ``canary`` while those are awaited, ``running``, ``done``; ``cancelled`` by a person;
            ``stopped`` because letters died again.
        total: letters that matched when it began.
        moved: how many it has sent back.
        canaries: ids of those sent back first.
        note: why it stopped, or who cancelled it.
        advanced_at: when its last step was taken.
        progress: what became of those sent back, by state; filled in when it is asked for.
    """

    id: str
    handler: str
    fingerprint: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    by: str
    reason: str = ""
    canary: int = 1
    state: JobState
    total: int
    moved: int = 0
    canaries: tuple[str, ...] = ()
    note: str = ""
    created_at: datetime
    advanced_at: datetime
    finished_at: datetime | None = None
    progress: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing more is sent back."""
        return self.state in OVER

    def stalled(self, now: datetime) -> bool:
        """Whether its next step is overdue: no worker runs that could lead."""
        return not self.over and (now - self.advanced_at).total_seconds() > STALLED


class Jobs(Protocol):
    """Group retries on record."""

    def add(self, job: RetryJob) -> None:
        """Store a new job."""

    def get(self, job_id: str) -> RetryJob | None:
        """The job, or None."""

    def find(self, *, over: bool | None = None, after: str | None = None, limit: int) -> list[RetryJob]:
        """Jobs, newest first; only those that are over, or are not, if asked for."""

    def change(self, job_id: str, fields: Mapping[str, Any]) -> bool:
        """Change fields of a job unless it is over. False if it is, or is unknown."""
